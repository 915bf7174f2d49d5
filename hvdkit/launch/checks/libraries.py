"""Python, torch, Horovod: what is there, and whether Horovod was built for what is there."""

import platform
import sys
from collections.abc import Iterator

from hvdkit.errors import BuildError
from hvdkit.horovod_build.toolchain import find_toolchain
from hvdkit.horovod_build.unverified import is_unverified
from hvdkit.launch.facts import Facts
from hvdkit.launch.findings import Finding, ok, problem, warning

BUILD = "`hvdkit horovod build`"


def python(facts: Facts) -> Iterator[Finding]:
    same = ".".join(platform.python_version_tuple()[:2])  # pickles travel between the ranks
    yield ok("Python", f"{platform.python_version()}, {sys.executable}", same)


def torch(facts: Facts) -> Iterator[Finding]:
    answer = facts.torch
    if "error" in answer:
        yield problem("torch", answer["error"], "install it: `pip install torch`", "none")
        return
    cuda = f"CUDA {answer['cuda']}, {answer['gpus']} GPUs usable" if answer["cuda"] else "CPU build"
    yield ok("torch", f"{answer['version']} ({cuda})", answer["version"])


def horovod(facts: Facts) -> Iterator[Finding]:
    answer = facts.horovod
    if "error" in answer:
        missing = "No module named 'horovod'" in answer["error"]
        found = "not installed" if missing else f"installed, but does not load: {answer['error']}"
        remedy = f"build it: {BUILD}" if missing else f"it was probably built against another torch or MPI: {BUILD}"
        yield problem("Horovod", found, remedy, "none")
        return
    parts = [name for name, key in (("MPI", "mpi"), ("Gloo", "gloo"), ("NCCL", "nccl")) if answer[key]]
    found = f"{answer['version']} with {', '.join(parts) or 'neither MPI nor Gloo'}"
    if not answer["mpi"] and not answer["gloo"]:
        yield problem("Horovod", found, f"build it again with MPI and Gloo: {BUILD}", found)
    elif not answer["mpi"]:
        yield warning("Horovod", found, f"only `hvdkit run --gloo` can work; for MPI too: {BUILD}", found)
    else:
        yield ok("Horovod", found, found)


def built_with(facts: Facts) -> Iterator[Finding]:
    """Horovod's extension belongs to the torch whose headers it was compiled with."""
    if "error" in facts.horovod:
        return
    torch_then, mpi = facts.horovod["torch"], facts.record.get("mpi")
    who = mpi["version"] if isinstance(mpi, dict) else "unknown MPI (not built by this hvdkit)"
    found = f"torch {torch_then or 'unknown'}, {who}"
    torch_now = facts.torch.get("version")
    if torch_then and torch_now and torch_then != torch_now:
        yield problem("built with", f"{found}; but torch {torch_now} is installed", f"build it again: {BUILD}")
    elif is_unverified():
        yield warning("built with", f"{found}; not verified yet", "the first init() of several ranks will verify it")
    else:
        yield ok("built with", found)


def build_tools(facts: Facts) -> Iterator[Finding]:
    """Only where Horovod has to be built: would it succeed?"""
    if "error" not in facts.horovod or "error" in facts.torch:
        return
    try:
        tools = find_toolchain()
    except BuildError as error:
        yield problem("build tools", "something is missing", str(error))
    else:
        yield ok("build tools", f"{tools.compiler}, {tools.mpi.version}, CMake {tools.cmake}")


def gpu(facts: Facts) -> Iterator[Finding]:
    if "error" in facts.torch or "error" in facts.horovod:
        return
    gpus, nccl = facts.torch["gpus"], facts.horovod["nccl"]
    if nccl:
        yield ok("NCCL", _nccl_version(nccl), str(nccl))
    elif gpus and facts.horovod["cuda"]:
        yield warning("NCCL", f"{gpus} GPUs, but Horovod was built without NCCL: gradients travel through the CPU",
                      "build it again: `hvdkit horovod build --gpu nccl`")  # fmt: skip
    elif gpus:
        yield problem("NCCL", f"{gpus} GPUs, but Horovod was built for CPUs and cannot reduce their tensors",
                      "load the CUDA toolkit and build it again: `hvdkit horovod build --gpu nccl`; or train on the "
                      "CPU with CUDA_VISIBLE_DEVICES= (empty)")  # fmt: skip
    else:
        yield ok("NCCL", "not needed: no GPU here")


def _nccl_version(code: int) -> str:
    """21805 is 2.18.5; before 2.9 the number had one digit less, 2708 is 2.7.8."""
    base = 10000 if code >= 10000 else 1000
    return f"{code // base}.{code % base // 100}.{code % 100}"
