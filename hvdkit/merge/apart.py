"""Merges files that lie on different hosts: every rank reads what its host has, blocks cross the network once.

The tensors are merged one after another, each by all ranks (`exchange`). Where every rank sees the output folder it
writes its own blocks, else rank 0 gathers and writes them. A base that is not on every host is broadcast tensor by
tensor, and then takes memory of the largest tensor's size.
"""

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from hvdkit.data.progress import Progress, Say
from hvdkit.errors import MergeError
from hvdkit.merge.blocks import Grid
from hvdkit.merge.c_library import trim_heap
from hvdkit.merge.exchange import Group, Held, merge_exchanging
from hvdkit.merge.lanes import Bytes, lanes_of, typed
from hvdkit.merge.output import OutputFiles
from hvdkit.merge.plan import Plan, Task
from hvdkit.merge.sight import Sight
from hvdkit.merge.tensor import Read, Scratch, TensorMerge, computed_in
from hvdkit.runtime import World, gather_objects, raise_together, share_object, together


def merge_apart(world: World, plan: Plan, sight: Sight, files: OutputFiles | None, say: Say) -> None:
    """Merge all tensors of `plan`; `files` is None on ranks that don't see the output. Collective."""
    all_write = all(gather_objects(world, files is not None))
    progress = Progress("merging", sum(task.out.n_bytes for task in plan.tasks), say)
    for task in plan.tasks:
        if task.settings is None:
            _copy(world, task, plan, sight, files)
        else:
            _merge(world, task, plan, sight, files, all_write)
        progress.advance(task.out.n_bytes)
        if files is not None:
            files.done(task.name)
        trim_heap()


def _merge(world: World, task: Task, plan: Plan, sight: Sight, files: OutputFiles | None, all_write: bool) -> None:
    assert task.settings is not None
    lanes = lanes_of(world)
    dtypes = [_dtype(sight, number, task.name) for number in task.models]
    base = _base(world, task, sight) if task.settings.rule.has_base else None
    of_base = [_dtype(sight, -1, task.name)] if base is not None else []
    merge = TensorMerge(
        task.name, task.out.shape, computed_in([*dtypes, *of_base]), task.settings,
        [_read(sight, number, task.name) for number in task.models], base, Scratch(),
        [*(plan.recipe.models[number].path for number in task.models), str(plan.recipe.base)],
    )  # fmt: skip
    faults: list[Exception] = []

    def write(group: Group, merged: torch.Tensor | None) -> None:
        if merged is not None and files is not None:
            _attempt(faults, partial(files.write, task.name, group[world.rank].start, merged))

    def send(group: Group, merged: torch.Tensor | None) -> None:
        lengths = [(block.stop - block.start) * merge.dtype.itemsize for block in group]
        lengths += [0] * (world.size - len(group))
        part: Bytes = np.zeros(lengths[world.rank], dtype=np.uint8)
        if merged is not None:
            part = merged.contiguous().view(torch.uint8).numpy()
        for block, data in zip(group, lanes.gather(part, lengths), strict=False):
            if files is not None:
                _attempt(faults, partial(files.write, task.name, block.start, typed(data, merge.dtype)))

    held = Held([sight.owners[number] for number in task.models], dtypes)
    merge_exchanging(world, lanes, merge, held, write if all_write else send)
    if base is not None and world.rank == sight.owners[-1]:  # which has merged its own blocks only
        faults += _faults_of(partial(_read_whole, _read(sight, -1, task.name), task))
    raise_together(world, faults[0] if faults else None)


def _attempt(faults: list[Exception], work: Callable[[], None]) -> None:
    """Do `work`, or remember why it failed: the other ranks go on to the next collective."""
    try:
        work()
    except Exception as error:
        faults.append(error)


def _faults_of(work: Callable[[], None]) -> list[Exception]:
    faults: list[Exception] = []
    _attempt(faults, work)
    return faults


def _read_whole(read: Read, task: Task) -> None:
    """So that its hash is known."""
    for block in Grid(task.out.shape).blocks():
        read(block.start, block.stop)


def _nothing() -> None:
    pass


def _copy(world: World, task: Task, plan: Plan, sight: Sight, files: OutputFiles | None) -> None:
    """A tensor of whole numbers, if it is the same in all submodels."""
    mine = [number for number in task.models if sight.owners[number] == world.rank]
    blocks = Grid(task.out.shape).blocks()

    def digests() -> dict[int, str]:
        found = {}
        for number in mine:
            digest = hashlib.sha256()
            for block in blocks:
                read = _read(sight, number, task.name)
                digest.update(read(block.start, block.stop).view(torch.uint8).numpy().data)
            found[number] = digest.hexdigest()
        return found

    gathered = gather_objects(world, together(world, digests))
    by_model = {number: digest for part in gathered for number, digest in part.items()}
    first = task.models[0]
    for number, digest in by_model.items():
        if digest != by_model[first]:
            one, other = plan.recipe.models[first].path, plan.recipe.models[number].path
            raise MergeError(
                f"{task.name} is {task.out.dtype} and not the same in {one} and {other}: it cannot be merged"
            )
    owner = sight.owners[first]
    for block in blocks:
        read = partial(_read(sight, first, task.name), block.start, block.stop)
        mine_of_block = together(world, read if world.rank == owner else _nothing)
        values: torch.Tensor = share_object(world, mine_of_block, root=owner)  # type: ignore[assignment]
        write = partial(files.write, task.name, block.start, values) if files is not None and world.is_root else None
        together(world, write or _nothing)


def _base(world: World, task: Task, sight: Sight) -> Read:
    """The base's tensor, readable on this rank."""
    if all(gather_objects(world, sight.mine[-1] is not None)):
        return _read(sight, -1, task.name)
    owner, info = sight.owners[-1], sight.infos[-1]
    assert info is not None

    def whole() -> torch.Tensor:
        read = _read(sight, -1, task.name)
        blocks = [read(block.start, block.stop).clone() for block in Grid(task.out.shape).blocks()]
        return torch.cat([torch.empty(0, dtype=info[task.name].dtype), *blocks])

    mine = together(world, lambda: whole() if world.rank == owner else None)
    values: torch.Tensor = share_object(world, mine, root=owner)  # type: ignore[assignment]
    return lambda start, stop: values[start:stop]


def _read(sight: Sight, number: int, name: str) -> Read:
    submodel = sight.mine[number]

    def read(start: int, stop: int) -> torch.Tensor:
        assert submodel is not None, "only its owner reads it"
        return submodel.read(name, start, stop)

    return read


def _dtype(sight: Sight, number: int, name: str) -> torch.dtype:
    infos = sight.infos[number]
    assert infos is not None
    return infos[name].read_as or infos[name].dtype
