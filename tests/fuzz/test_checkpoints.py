"""Checkpoints: every JSON file of a valid one changed, with hashes that fit again, since whoever writes the files
writes the manifest too."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from hvdkit.checkpoint import find_checkpoint, load_checkpoint, pack, save_checkpoint, unpack
from hvdkit.errors import CheckpointError
from hvdkit.runtime import World
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import as_json, changed_bytes, changed_trees, files

STATE: dict[str, Any] = {
    "step": 7, "position": (1, 40), "optimizer": {"state": {0: {"exp_avg": torch.arange(9.0)}}, "lr": [0.1, None]},
    "name": "x", "flag": True,
}  # fmt: skip


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def with_hashes_that_fit(folder: Path, old: dict[str, str], manifest: bytes) -> bytes:
    """`manifest` with the hash of every changed file of the checkpoint in `folder` in place of the old one."""
    for name, digest in old.items():
        if (folder / name).is_file():
            manifest = manifest.replace(digest.encode(), sha256(folder / name).encode())
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.timeout(0)
def test_checkpoints(world: World, tmp_path: Path) -> None:
    folder = save_checkpoint(world, tmp_path / "run" / "checkpoints", 7, write_model, STATE)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    old = {path.relative_to(folder).as_posix(): sha256(path) for path in whole}
    manifest = folder / "manifest.json"
    (tmp_path / "x").write_text("outside")
    (folder / "link").symlink_to(tmp_path / "x")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    texts = sorted(path for path in whole if path.suffix == ".json")
    others = sorted(whole.keys() - set(texts))
    changed = st.sampled_from(texts).flatmap(
        lambda path: st.tuples(st.just(path), files(changed_trees([json.loads(whole[path])]), as_json))
    )
    damaged = st.sampled_from(others).flatmap(
        lambda path: st.tuples(st.just(path), changed_bytes(st.just(whole[path])))
    )
    last = [manifest]

    def read(drawn: tuple[tuple[Path, bytes], bool]) -> None:
        (path, data), fits = drawn
        for before in {*last, manifest}:
            before.write_bytes(whole[before])
        last[:] = [path]
        path.write_bytes(data)
        if fits:
            manifest.write_bytes(with_hashes_that_fit(folder, old, manifest.read_bytes()))
        assert find_checkpoint(tmp_path / "run") == folder
        assert isinstance(load_checkpoint(folder).state, dict)

    fuzz("checkpoints", st.tuples(st.one_of(changed, changed, damaged), st.booleans()), read, CheckpointError)


TENSORS: dict[str, torch.Tensor] = {}
PACKED = json.loads(json.dumps(pack(STATE, TENSORS)))


@pytest.mark.timeout(0)
def test_packed_states() -> None:
    fuzz(
        "packed states",
        changed_trees([PACKED], 4),
        lambda tree: unpack(json.loads(json.dumps(tree)), TENSORS),
        CheckpointError,
    )


@pytest.mark.parametrize(
    "packed",
    [
        {"__items__": 3}, {"__items__": [[1]]}, {"__items__": [[[], 1]]}, {"__tensor__": []}, {"__tensor__": "gone"},
        {"__tuple__": 3}, {}, {"__items__": [], "more": 1}, {"__items__": [[None, 1]]},
    ],
    ids=range(9),
)  # fmt: skip
def test_packed_states_that_once_broke_out(packed: Any) -> None:
    with pytest.raises(CheckpointError, match="a saved state cannot hold"):
        unpack(packed, TENSORS)


def spoiled(folder: Path, name: str, content: bytes) -> None:
    """Put other bytes into a file of a checkpoint, with a manifest that agrees."""
    before = sha256(folder / name)
    (folder / name).write_bytes(content)
    manifest = folder / "manifest.json"
    manifest.write_bytes(with_hashes_that_fit(folder, {name: before}, manifest.read_bytes()))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 3000,
        b"3",
        b"[]",
        b'{"__items__": 3}',
        b'"\\ud800"',
        b'{"__items__": [["a", %b%b]]}' % (b"[" * 300, b"]" * 300),
    ],
    ids=range(6),
)
def test_states_that_once_broke_out(content: bytes, world: World, tmp_path: Path) -> None:
    folder = save_checkpoint(world, tmp_path, 1, write_model, STATE)
    for path in sorted(folder.glob("state*.json")):
        spoiled(folder, path.name, content)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, (2**63).to_bytes(8, "little") + b"{}", save({"a": torch.zeros(3)})[:-1]], ids=range(4)
)
def test_tensors_that_once_broke_out(content: bytes, world: World, tmp_path: Path) -> None:
    folder = save_checkpoint(world, tmp_path, 1, write_model, STATE)
    for path in sorted(folder.glob("state*.safetensors")):
        spoiled(folder, path.name, content)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
