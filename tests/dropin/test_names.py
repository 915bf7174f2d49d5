"""Every public name of horovod.torch is there, with Horovod's signature."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import hvdkit as hvd
from hvdkit.runtime import World
from tests.jobs import run_program, succeed

OWN_SIGNATURE = {"init", "shutdown", "DistributedOptimizer"}
OWN_KEYWORDS = [(name, inspect.Parameter.KEYWORD_ONLY, None) for name in ("strategy", "weight", "out")]
TAKES_STRATEGY = {
    grouped + name + ending
    for name in ("allreduce", "allgather", "broadcast", "reducescatter")
    for ending in ("", "_", "_async", "_async_")
    for grouped in (["", "grouped_"] if name != "broadcast" else [""])
}


def horovod_names() -> list[str]:
    horovod = importlib.import_module("horovod.torch")
    return [name for name in dir(horovod) if not name.startswith("_")]


def arguments(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults, without annotations."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_every_name_is_there(world: World) -> None:
    names = horovod_names()
    assert len(names) >= 67
    missing = [name for name in names if not hasattr(hvd, name)]
    assert missing == []
    assert set(names) <= set(hvd.__all__)


def test_signatures_are_horovods(world: World) -> None:
    horovod = importlib.import_module("horovod.torch")
    for name in horovod_names():
        theirs, ours = getattr(horovod, name), getattr(hvd, name)
        if name in OWN_SIGNATURE or not (inspect.isfunction(theirs) or inspect.ismethod(theirs)):
            continue
        own = [argument for argument in arguments(ours) if argument in OWN_KEYWORDS]
        assert arguments(ours) == [*arguments(theirs), *own], name
        assert ("strategy" in inspect.signature(ours).parameters) == (name in TAKES_STRATEGY), name


def test_init_and_shutdown_take_what_horovods_take(world: World) -> None:
    """Horovod's pass their arguments on to a method of its basics."""
    basics = importlib.import_module("horovod.torch.mpi_ops")._basics
    assert arguments(hvd.init) == arguments(basics.init)
    assert arguments(hvd.shutdown) == arguments(basics.shutdown) == []


def test_distributed_optimizer_adds_keywords_only(world: World) -> None:
    horovod = importlib.import_module("horovod.torch")
    theirs = inspect.signature(horovod.DistributedOptimizer).parameters
    ours = inspect.signature(hvd.DistributedOptimizer).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        if name != "compression":
            assert ours[name].default == parameter.default, name
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(theirs) :])


@pytest.mark.parametrize(
    "name",
    [
        "mpi_ops",
        "compression",
        "functions",
        "optimizer",
        "sync_batch_norm",
        "elastic",
        "elastic.sampler",
        "elastic.state",
    ],
)
def test_submodules_that_scripts_import(world: World, name: str) -> None:
    theirs, ours = importlib.import_module(f"horovod.torch.{name}"), importlib.import_module(f"hvdkit.{name}")
    for attribute in vars(theirs):
        defined_there = getattr(getattr(theirs, attribute), "__module__", None) == theirs.__name__
        if not attribute.startswith("_") and defined_there:
            assert hasattr(ours, attribute), attribute


def test_run_is_horovods_function(world: World) -> None:
    assert hvd.run is importlib.import_module("horovod").run


@pytest.mark.launch
def test_without_horovod(tmp_path: Path) -> None:
    """An environment that has all packages but Horovod: the import works, the first use says what to do."""
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    for entry in packages.iterdir():
        if not entry.name.startswith(("horovod", "__editable__")) and entry.suffix != ".pth":
            (tmp_path / entry.name).symlink_to(entry)
    root = Path(hvd.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n"
        "import hvdkit as hvd\n"
        "print('imported', hvd.__version__)\n"
        "hvd.init()"
    )
    result = run_program([sys._base_executable, "-S", "-E", "-c", code])  # type: ignore[attr-defined]
    assert "imported" in result.stdout, result.stderr
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "Horovod is not installed" in last and "hvdkit horovod build" in last


@pytest.mark.launch
def test_the_import_is_light() -> None:
    heavy = ["transformers", "matplotlib", "tokenizers", "tensorboard", "jsonargparse", "horovod", "mpi4py.MPI"]
    code = f"import sys, hvdkit; print([name for name in {heavy} if name in sys.modules])"
    assert succeed(run_program([sys.executable, "-c", code])).stdout.strip() == "[]"
