"""Tensors in shared memory: the results of the naive reduction, for whole tensors and parts, and memory that goes."""

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.collectives.naive import reduce_in_order
from hvdkit.collectives.reduction import REDUCIBLE
from hvdkit.errors import CollectiveMismatchError
from hvdkit.runtime import World
from tests.collectives.test_algorithms import assert_reduced, everyones, reductions
from tests.jobs import LAUNCHERS, run_program, succeed

SHARED_FOLDER = Path("/dev/shm")
COUNT = 200_003


@pytest.fixture(autouse=True)
def _mpi(world: World) -> None:
    if why_no_direct(world):
        pytest.skip("hvdkit's own algorithms need MPI")


def mapped_bytes() -> int:
    """Bytes of the files of `empty_shared` that this process has mapped."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/dev/shm/hvdkit-" in line:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            total += end - begin
    return total


@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_reductions_of_shared_tensors(world: World, dtype: torch.dtype) -> None:
    """The whole, a part that begins in the middle, and nothing."""
    algorithm = direct_collectives(world).algorithms
    tensor = hvd.empty_shared(COUNT, dtype=dtype)
    for reduction in reductions(world, dtype):
        for part in (slice(0, None), slice(1001, 1010), slice(5, 5)):
            parts = everyones(world, len(tensor[part]), dtype)
            tensor.fill_(7)
            tensor[part] = parts[world.rank]
            algorithm.method("all_reduce", "shared_memory")(tensor[part], reduction)
            assert_reduced(tensor[part], reduce_in_order(parts, reduction))
            rest = torch.cat([tensor[: part.start], tensor[part.start + len(parts[0]) :]])
            assert (rest == 7).all()
        counts = [COUNT - 7 * (world.size - 1)] + [7] * (world.size - 1)
        parts = everyones(world, COUNT, dtype)
        tensor[:] = parts[world.rank]
        out = torch.zeros(counts[world.rank], dtype=dtype)
        algorithm.method("reduce_scatter", "shared_memory")(tensor, out, counts, reduction)
        start = sum(counts[: world.rank])
        assert_reduced(out, reduce_in_order(parts, reduction)[start : start + len(out)])
        assert torch.equal(tensor, parts[world.rank])


def test_broadcast_of_shared_tensors(world: World) -> None:
    tensor = hvd.empty_shared(3, 1001)
    for root in range(world.size):
        tensor.fill_(world.rank)
        hvd.broadcast_(tensor, root, strategy="shared_memory")
        assert (tensor == root).all()


def test_same_bits_in_every_repetition(world: World) -> None:
    tensor, seen = hvd.empty_shared(COUNT), set()
    for _ in range(4):
        tensor[:] = everyones(world, COUNT, torch.float32)[world.rank]
        hvd.allreduce_(tensor, op=hvd.Average, strategy="shared_memory")
        seen.update(hvd.allgather_object(tensor.numpy().tobytes()))
    assert len(seen) == 1


def test_ranks_may_bring_different_memory(world: World) -> None:
    """One rank an ordinary tensor, another the same number of values from another place: no shortcut, same result."""
    shared = hvd.empty_shared(2000)
    for mine in (shared[:1000] if world.rank else torch.zeros(1000), shared[world.rank : world.rank + 1000]):
        mine.fill_(world.rank + 1)
        hvd.allreduce_(mine, op=hvd.Sum, strategy="shared_memory")
        assert (mine == world.size * (world.size + 1) / 2).all()


def test_ranks_that_want_different_tensors_are_told(world: World) -> None:
    if world.size == 1:
        pytest.skip("needs two ranks")
    with pytest.raises(CollectiveMismatchError, match=r"empty_shared of float32 \(2, 3\)"):
        hvd.empty_shared(2, 3 if world.rank == 0 else 4)
    with pytest.raises(ValueError, match="lengths of 0 or more"):
        hvd.empty_shared(-1)
    assert hvd.empty_shared(0).shape == (0,)


def test_memory_goes_with_the_last_tensor_and_has_no_name(world: World) -> None:
    gc.collect()
    before = mapped_bytes()
    tensor = hvd.empty_shared(2**18)
    assert not list(SHARED_FOLDER.glob("hvdkit-*"))
    part = tensor[10:20]
    del tensor
    gc.collect()
    assert mapped_bytes() - before == world.size * 2**20
    part.fill_(1)
    hvd.allreduce_(part, op=hvd.Sum, strategy="shared_memory")
    assert (part == world.size).all()
    del part
    gc.collect()
    assert mapped_bytes() == before


ALLOCATE = """
import torch
import hvdkit as hvd
hvd.init()
tensor = hvd.empty_shared(10, 2**20)
tensor.fill_(hvd.rank() + 1)
hvd.allreduce_(tensor, op=hvd.Sum, strategy="auto")
assert (tensor == 3).all()
"""


@pytest.mark.launch
@pytest.mark.parametrize(
    ("megabytes", "warning"),
    [
        (200, None),
        (64, "empty_shared: an ordinary tensor, for want of room: 80 MB"),
        (6, "shared_memory collectives are not used: "),
    ],
)
def test_without_room_it_is_an_ordinary_tensor(megabytes: int, warning: str | None) -> None:
    """In a mount namespace with a small /dev/shm, as a Docker container has."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and util-linux's unshare")
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs {SHARED_FOLDER} && exec "$@"'
    # Open MPI's own segments go elsewhere, for they need 4 MB a rank.
    job = [*LAUNCHERS["mpirun"], "--mca", "btl_vader_backing_directory", "/tmp", "-np", "2"]
    result = run_program(["unshare", "-m", "sh", "-c", mount, "sh", *job, sys.executable, "-c", ALLOCATE])
    if "unshare: " in result.stderr:
        pytest.skip(result.stderr.strip())
    succeed(result)
    assert "room" not in result.stderr if warning is None else result.stderr.count(warning) == 1
