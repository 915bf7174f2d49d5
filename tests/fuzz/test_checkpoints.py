"""Checkpoints: any file of a valid one changed, mostly with a manifest that agrees, since whoever writes the files
writes the manifest too."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from hvdkit.checkpoint import Saver, find_checkpoint, find_model, list_checkpoints, load_checkpoint, pack, prune, unpack
from hvdkit.checkpoint.manifest import sealed
from hvdkit.errors import CheckpointError
from hvdkit.files.hashes import hash_file
from hvdkit.runtime import World
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import NAMES, as_json, changed_bytes, changed_trees, files

STATE: dict[str, Any] = {
    "step": 7, "position": (1, 40), "optimizer": {"state": {0: {"exp_avg": torch.arange(9.0)}}, "lr": [0.1, None]},
    "name": "x", "flag": True,
}  # fmt: skip
OWN = {"cpu": torch.arange(5), "python": (3, (1, 2), None)}


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.fixture
def checkpoint(world: World, tmp_path: Path) -> Path:
    if world.size > 1:
        pytest.skip("one rank spoils its own checkpoint")
    saver = Saver(world, tmp_path / "run" / "checkpoints", config={"lr": 0.1})
    folder = saver.save(7, STATE, OWN, write_model, validation_loss=1.5)
    saver.finish()
    return folder


def agree(folder: Path, name: str) -> None:
    """Write the length and hash of this file, as it is now, into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"n_bytes": (folder / name).stat().st_size, "xxh3_128": hash_file(folder / name)}
    (folder / "manifest.json").write_text(sealed(manifest))


def read_all(folder: Path) -> None:
    found = load_checkpoint(folder)
    assert isinstance(found.common(), dict)
    for rank in range(found.manifest.world_size):
        assert isinstance(found.own(rank), dict)


@pytest.mark.timeout(0)
def test_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    whole = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    manifest = checkpoint / "manifest.json"
    (tmp_path / "x").write_text("outside")
    (checkpoint / "link").symlink_to(tmp_path / "x")
    (checkpoint / "loop").symlink_to(checkpoint / "loop")
    os.mkfifo(checkpoint / "pipe")
    texts = sorted(path for path in whole if path.suffix == ".json")
    others = sorted(whole.keys() - set(texts))
    changed = st.sampled_from([manifest, *texts]).flatmap(
        lambda path: st.tuples(st.just(path), files(changed_trees([json.loads(whole[path])]), as_json))
    )
    damaged = st.sampled_from(others).flatmap(
        lambda path: st.tuples(st.just(path), changed_bytes(st.just(whole[path])))
    )
    last = [manifest]

    def read(drawn: tuple[tuple[Path, bytes], bool]) -> None:
        (path, data), agrees = drawn
        for before in {*last, manifest}:
            before.write_bytes(whole[before])
        last[:] = [path]
        path.write_bytes(data)
        if agrees and path != manifest:
            agree(checkpoint, path.relative_to(checkpoint).as_posix())
        prune(checkpoint.parent, keep=1, keep_best=1)
        assert list_checkpoints(checkpoint.parent) == [checkpoint]
        assert find_checkpoint(tmp_path / "run") == checkpoint and find_model(checkpoint) == checkpoint / "model"
        read_all(checkpoint)

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
@pytest.mark.parametrize("name", ["common.json", "rank-00000.json"])
def test_states_that_once_broke_out(name: str, content: bytes, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(content)
    agree(checkpoint, name)
    with pytest.raises(CheckpointError):
        read_all(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 100, (2**63).to_bytes(8, "little") + b"{}", save({"a": torch.zeros(3)})[:-1]],
    ids=range(4),
)
def test_tensors_that_once_broke_out(content: bytes, checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        path.write_bytes(content)
        agree(checkpoint, path.name)
    with pytest.raises(CheckpointError):
        read_all(checkpoint)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__metadata__"], ids=range(len(NAMES) - 1))
def test_a_manifest_names_files_of_its_folder_only(name: str, checkpoint: Path) -> None:
    (checkpoint.parent / "x").write_text("outside")
    (checkpoint / "link").symlink_to(checkpoint.parent / "x")
    (checkpoint / "loop").symlink_to(checkpoint / "loop")
    os.mkfifo(checkpoint / "pipe")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"n_bytes": 7, "xxh3_128": "0" * 32}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoint)


def test_a_pipe_in_place_of_a_file_is_refused(checkpoint: Path) -> None:
    for name in ("common.json", "manifest.json"):
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        with pytest.raises(CheckpointError, match="not a regular file"):
            load_checkpoint(checkpoint)
