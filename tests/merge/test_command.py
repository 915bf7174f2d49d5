"""`hvdkit merge` as a person starts it: what it prints, and what is left when it is killed or has no room."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from hvdkit.merge import merge_states
from tests.jobs import LAUNCHERS, ROOT, clean_environ, run_program, run_ranks, succeed
from tests.merge.submodels import read, tensors_of, write_family

pytestmark = pytest.mark.launch


def recipe(folder: Path, **content: object) -> Path:
    """A recipe file that merges a new family in `folder`."""
    base, *models = write_family(folder)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": str(base), "models": [str(model) for model in models], **content}))
    return path


def test_a_merge_on_two_ranks(tmp_path: Path) -> None:
    path = recipe(tmp_path, rule="ties")
    done = succeed(run_ranks(2, "-m", "hvdkit.merge", path, "--out", tmp_path / "merged"))
    assert re.fullmatch(rf"merged 3 submodels into {tmp_path}/merged in [\d.]+ s\n", done.stdout)
    wanted = merge_states([tensors_of(seed) for seed in (1, 2, 3)], "ties", base=tensors_of(0))
    found = read(tmp_path / "merged")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_dry_run_shows_everything_and_writes_nothing(tmp_path: Path) -> None:
    path = recipe(tmp_path, rule="ties", tensors=[{"match": "*norm*", "rule": "average"}])
    before = sorted(tmp_path.rglob("*"))
    done = succeed(run_ranks(2, "-m", "hvdkit.merge", path, "--dry-run"))
    for text in ("submodel 2: ", "base: ", "ties: base + ", "average: sum_i", "equal in all, copied, 1 tensors",
                 "model.safetensors: 9 tensors", "rank 1: ", "memory: "):  # fmt: skip
        assert text in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("launcher", ["python", "mpirun", "horovodrun-gloo"])
def test_a_fault_is_one_message(launcher: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, rule="tiess", scale="x")
    done = run_ranks(2, "-m", "hvdkit.merge", path, "--out", tmp_path / "merged", launcher=launcher)
    assert done.returncode != 0 and not (tmp_path / "merged").exists()
    printed = done.stdout + done.stderr
    assert "did you mean ties?" in printed and "scale: must be a number" in printed
    if launcher != "horovodrun-gloo":  # its launcher ends with a traceback of its own
        assert "Traceback" not in printed


def test_a_killed_rank_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    script = (
        "import os, signal, hvdkit.merge.output as o, hvdkit.merge.__main__ as m\n"
        "plain = o.OutputFiles.write\n"
        "def write(self, name, start, values):\n"
        "    plain(self, name, start, values)\n"
        "    os.environ['OMPI_COMM_WORLD_RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "o.OutputFiles.write = write\n"
        "raise SystemExit(m.main())"
    )
    path = recipe(tmp_path)
    (tmp_path / "out").mkdir()
    done = run_ranks(2, "-c", script, path, "--out", tmp_path / "out" / "merged")
    assert done.returncode != 0
    left = [entry.name for entry in (tmp_path / "out").iterdir()]
    assert all(name.startswith(".merged.") for name in left), left
    succeed(run_ranks(2, "-m", "hvdkit.merge", path, "--out", tmp_path / "out" / "merged"))
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["merged"]


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import time, hvdkit.merge.output as o, hvdkit.merge.__main__ as m\n"
        "def write(*all):\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "o.OutputFiles.write = write\n"
        "raise SystemExit(m.main())"
    )
    path = recipe(tmp_path)
    (tmp_path / "out").mkdir()
    job = subprocess.Popen(
        [sys.executable, "-c", script, path, "--out", tmp_path / "out" / "merged"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environ(), start_new_session=True,
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "writing\n"
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert job.returncode != 0 and not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    merge = f"{sys.executable} -m hvdkit.merge {path} --out {disk}/merged"
    script = f"mount -t tmpfs -o size=8k tmpfs {disk} && {merge}; echo status $?; ls -A {disk}"
    done = run_program(["unshare", "-m", "sh", "-c", script])
    assert "No space left on device" in done.stderr and "the merged model cannot be written" in done.stderr
    assert done.stdout == "status 1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give processes folders of their own")
@pytest.mark.parametrize("hidden", ["models", "base too", "output too"])
def test_ranks_that_see_different_files(hidden: str, tmp_path: Path) -> None:
    """Rank 0 sees the first and third submodel, rank 1 the second; the merge is that of a rank that sees all."""
    base, *models = write_family(tmp_path / "all")
    places = [tmp_path / ("there" if number == 1 else "here") / path.name for number, path in enumerate(models)]
    for path, place in zip(models, places, strict=True):
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "empty").mkdir()
    if hidden == "base too":
        base = base.rename(tmp_path / "here" / "base")
    path = tmp_path / "recipe.yaml"
    content = {"rule": "dare_ties", "base": str(base), "dtype": "bfloat16",
               "tensors": [{"match": "*up*", "rule": "karcher"}],
               "models": [{"path": str(place), "density": 0.5} for place in places]}  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    out = tmp_path / "elsewhere" / "merged"

    def rank(*unseen: str) -> list[str]:
        mounts = "".join(f"mount --bind {tmp_path}/empty {tmp_path}/{folder} && " for folder in unseen)
        return ["-np", "1", "unshare", "-m", "sh", "-c", f"{mounts}{sys.executable} -m hvdkit.merge {path} --out {out}"]

    also = ["elsewhere"] if hidden == "output too" else []
    succeed(run_program([*LAUNCHERS["mpirun"], *rank("there"), ":", *rank("here", *also)]))
    states = [tensors_of(seed) for seed in (1, 2, 3)]
    wanted = merge_states(states, "dare_ties", base=tensors_of(0), density=0.5)
    wanted |= {name: tensor for name, tensor in merge_states(states, "karcher").items() if "up" in name}
    found = read(out)
    assert all(torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in wanted.items())
    assert found["head.bias"].dtype == torch.bfloat16 and found["positions"].dtype == torch.int64


def test_models_of_hvdkit_merge_to_one_that_generates(tmp_path: Path) -> None:
    tiny = ["--data", str(ROOT / "hvdkit" / "merge"), "--steps", "2", "--context", "16", "--eval-batches", "1",
            "--sample-tokens", "0"]  # fmt: skip
    for seed in ("1", "2"):
        succeed(run_ranks(1, "-m", "hvdkit.train", *tiny, "--seed", seed, "--out", tmp_path / seed, launcher="python"))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"models": [str(tmp_path / "1"), str(tmp_path / "2")], "weigh_by": "validation_loss"})
    )
    succeed(run_program(["hvdkit", "merge", path, "--out", tmp_path / "merged"]))
    done = succeed(run_program(["hvdkit", "generate", tmp_path / "merged", "--prompt", "def", "--tokens", "5"]))
    assert done.stdout.startswith("def")


def test_progress_is_told_with_the_time_left(tmp_path: Path) -> None:
    script = (
        "import time, hvdkit.data.progress as p, hvdkit.merge.__main__ as m\n"
        "plain = p.Progress.advance\n"
        "def advance(self, n):\n"
        "    self._every_s = 0; time.sleep(0.01); plain(self, n)\n"
        "p.Progress.advance = advance\n"
        "raise SystemExit(m.main())"
    )
    started = time.monotonic()
    done = succeed(run_ranks(1, "-c", script, recipe(tmp_path), "--out", tmp_path / "merged", launcher="python"))
    assert re.search(r"merging: 0 MB of 0, [\d,]+ s left \([\d.,]+ MB/s\)", done.stdout)
    assert time.monotonic() - started < 60
