"""What each rank writes of a checkpoint, and reads of it.

`common` is state that all ranks have alike: its outline is rank 0's, its tensors are divided over the ranks by their
sizes. `own` is what a rank alone has (generators, shards, what compression has not sent).

    common.json              rank 0
    common-00002.safetensors the tensors of `common` that rank 2 wrote
    rank-00002.json          `own` of rank 2
    rank-00002.safetensors
    model/                   rank 0
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvdkit.checkpoint.manifest import Written
from hvdkit.checkpoint.structure import pack, unpack
from hvdkit.errors import CheckpointError
from hvdkit.files.durable import flush_folder
from hvdkit.files.hashes import hash_file
from hvdkit.files.tensors import write_tensors
from hvdkit.untrusted import parse_json

State = dict[str, Any]
WriteModel = Callable[[Path], None]


@dataclass(frozen=True)
class Part:
    """What one rank has to write."""

    outlines: Mapping[str, str]
    """JSON files, by name."""
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    """Safetensors files, by name."""
    write_model: WriteModel | None
    """Puts the model's files into the folder that it is given."""

    def write(self, folder: Path) -> dict[str, Written]:
        """Write it into `folder`, flush it, and read it back from the disk; returns the files.

        Raises CheckpointError if the disk does not hold what was written, OSError if it takes no more.
        """
        hashes = {name: write_tensors(folder / name, tensors) for name, tensors in self.tensors.items()}
        for name, text in self.outlines.items():
            (folder / name).write_text(text, encoding="utf-8")
            hashes[name] = hash_file(folder / name)
        if self.write_model is not None:
            (folder / "model").mkdir()
            self.write_model(folder / "model")
            written = sorted(path for path in (folder / "model").rglob("*") if path.is_file())
            hashes.update({path.relative_to(folder).as_posix(): hash_file(path) for path in written})
        flush_folder(folder, list(hashes))
        for name, digest in hashes.items():
            if hash_file(folder / name, from_disk=True) != digest:
                raise CheckpointError(f"{folder / name}: the disk does not hold what was written to it")
        return {name: Written((folder / name).stat().st_size, digest) for name, digest in hashes.items()}


def make_part(
    rank: int, size: int, common: State, own: State, write_model: WriteModel | None, *, model_bytes: int, copies: bool
) -> Part:
    """This rank's part. With `copies` its tensors do not follow the living ones. Not collective.

    `model_bytes` is what rank 0 writes besides. Raises CheckpointError for what cannot be kept.
    """
    shared: dict[str, torch.Tensor] = {}
    outline = json.dumps(pack(common, shared, "common", copies=False))
    mine: dict[str, torch.Tensor] = {}
    own_outline = json.dumps(pack(own, mine, "own", copies=copies))
    writers = _writers({name: tensor.nbytes for name, tensor in shared.items()}, size, model_bytes)
    portion = {name: tensor for name, tensor in shared.items() if writers[name] == rank}
    if copies:
        portion = {name: tensor.clone() for name, tensor in portion.items()}
    outlines = {_own_name(rank, "json"): own_outline}
    if rank == 0:
        outlines["common.json"] = outline
    tensors = {_own_name(rank, "safetensors"): mine, f"common-{rank:05d}.safetensors": portion}
    return Part(outlines, {name: found for name, found in tensors.items() if found}, write_model if rank == 0 else None)


def read_common(folder: Path, names: Mapping[str, Any]) -> State:
    """The state that all ranks have alike, of the checkpoint in `folder` with the files `names`."""
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if name.startswith("common-"):
            tensors.update(_load(folder / name))
    return _unpacked(folder / "common.json", tensors)


def read_own(folder: Path, names: Mapping[str, Any], rank: int) -> State:
    """The state that rank `rank` alone had."""
    name = _own_name(rank, "safetensors")
    return _unpacked(folder / _own_name(rank, "json"), _load(folder / name) if name in names else {})


def outlines_of(world_size: int) -> set[str]:
    """The files that a checkpoint of so many ranks has at the least."""
    return {"common.json", *(_own_name(rank, "json") for rank in range(world_size))}


def _own_name(rank: int, kind: str) -> str:
    return f"rank-{rank:05d}.{kind}"


def _writers(sizes: Mapping[str, int], ranks: int, first_load: int) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to whoever has least."""
    loads = [first_load, *[0] * (ranks - 1)]
    writers = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        writers[name] = loads.index(min(loads))
        loads[writers[name]] += sizes[name]
    return writers


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem


def _unpacked(path: Path, tensors: Mapping[str, torch.Tensor]) -> State:
    try:
        state = unpack(parse_json(path.read_text(encoding="utf-8")), dict(tensors))
        if not isinstance(state, dict):
            raise ValueError("it holds no table")
        return state
    except (OSError, ValueError, CheckpointError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
