"""Checkpoints are complete or absent, verified when read, and never followed out of their folder."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdkit.checkpoint import Saver, find_checkpoint, find_model, load_checkpoint, prune
from hvdkit.checkpoint.folder import remove_leftovers
from hvdkit.checkpoint.manifest import sealed
from hvdkit.errors import CheckpointError, HvdkitError
from hvdkit.runtime import World, gather_objects
from tests.jobs import run_ranks

STATE: dict[str, Any] = {"step": 7, "position": (1, 40), "optimizer": {"state": {0: {"exp_avg": torch.arange(9.0)}}}}


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "more").mkdir()
    (folder / "more" / "tokenizer").write_text("tokens")


def save_one(world: World, checkpoints: Path, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
    return Saver(world, checkpoints, keep=0).save(step, state, {"rank": world.rank}, write)


def save(world: World, checkpoints: Path, *steps: int) -> list[Path]:
    return [save_one(world, checkpoints, step, write_model, STATE) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message_on_all(world: World, work: Callable[[], Any]) -> str:
    """The CheckpointError that `work` raises alike on all ranks. Collective."""
    with pytest.raises(CheckpointError) as caught:
        work()
    texts = gather_objects(world, str(caught.value))
    assert len(set(texts)) == 1
    return texts[0]


def test_saved_checkpoint_is_read_back_on_every_rank(world: World, shared_path: Path) -> None:
    (folder,) = save(world, shared_path / "run" / "checkpoints", 7)
    assert folder == shared_path / "run" / "checkpoints" / "step-00000007"
    assert len(set(gather_objects(world, folder))) == 1
    checkpoint = load_checkpoint(folder)
    assert checkpoint.folder == folder and checkpoint.model == folder / "model"
    state = checkpoint.common()
    assert state["step"] == 7 and state["position"] == (1, 40)
    assert [checkpoint.own(rank) for rank in range(world.size)] == [{"rank": rank} for rank in range(world.size)]
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.arange(9.0))
    assert (checkpoint.model / "more" / "tokenizer").read_text() == "tokens"
    assert names(folder.parent) == ["step-00000007"]
    ranks = [f"rank-{rank:05d}.json" for rank in range(world.size)]
    written = [name for name in names(folder) if not name.startswith("common-")]
    assert written == sorted(["common.json", "manifest.json", "model", *ranks])


def test_only_rank_0_writes(world: World, shared_path: Path) -> None:
    called: list[Path] = []

    def note(folder: Path) -> None:
        called.append(folder)
        write_model(folder)

    save_one(world, shared_path / "c", 1, note, STATE)
    assert gather_objects(world, len(called)) == [1] + [0] * (world.size - 1)


def test_a_fault_while_writing_is_one_error_on_all_ranks_and_leaves_nothing(world: World, shared_path: Path) -> None:
    checkpoints = shared_path / "checkpoints"

    def failing(folder: Path) -> None:
        write_model(folder)
        raise OSError(28, "No space left on device")

    text = message_on_all(world, lambda: save_one(world, checkpoints, 3, failing, STATE))
    assert "step-00000003 cannot be written" in text and "No space left on device" in text
    text = message_on_all(world, lambda: save_one(world, checkpoints, 3, write_model, {"odd": {1, 2}}))
    assert "odd: a set cannot be kept" in text
    save(world, checkpoints, 3)
    text = message_on_all(world, lambda: save(world, checkpoints, 3))
    assert "step-00000003 cannot be written" in text and "File exists" in text
    text = message_on_all(world, lambda: save(world, checkpoints / "step-00000003" / "manifest.json", 4))
    assert "cannot be written: [Errno 17] File exists: " in text
    assert names(checkpoints) == ["step-00000003"]
    load_checkpoint(checkpoints / "step-00000003")


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel refuses, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_of_one_rank_is_one_error_on_all_ranks(world: World, shared_path: Path) -> None:
    """Weights are written by safetensors, which has its own kind of error for it."""
    state = {"big": torch.zeros(100_000)}

    def work() -> None:
        if world.is_root:
            with small_disk(100_000):
                save_one(world, shared_path / "c", 1, write_model, state)
        else:
            save_one(world, shared_path / "c", 1, write_model, state)

    assert "step-00000001 cannot be written" in message_on_all(world, work)
    assert names(shared_path / "c") == []
    gather_objects(world, None)
    save_one(world, shared_path / "c", 1, write_model, state)


CRASH = """
import os, signal, sys
from pathlib import Path
import torch
from hvdkit.checkpoint import Saver
from hvdkit.runtime import init

world = init()
def write(folder):
    (folder / "half").write_text("half")
    if sys.argv[2] == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
for step in map(int, sys.argv[3:]):
    Saver(world, Path(sys.argv[1])).save(step, {"a": torch.ones(3)}, {}, write)
"""


@pytest.mark.launch
def test_killed_in_the_middle_of_saving_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    assert run_ranks(1, "-c", CRASH, checkpoints, "well", "5", launcher="python").returncode == 0
    assert run_ranks(1, "-c", CRASH, checkpoints, "crash", "6", launcher="python").returncode == -signal.SIGKILL
    assert len(names(checkpoints)) == 2, "what was written before the end lies under a hidden name"
    assert find_checkpoint(tmp_path / "run") == checkpoints / "step-00000005"
    load_checkpoint(checkpoints / "step-00000005")
    remove_leftovers(checkpoints)
    assert names(checkpoints) == ["step-00000005"], "and goes with the next ones"


def test_any_changed_byte_or_missing_file_is_detected(world: World, tmp_path: Path) -> None:
    folder = save_one(world, tmp_path / str(world.rank), 1, write_model, STATE)
    gather_objects(world, None)
    if not world.is_root:
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            whole = path.read_bytes()
            for place in {0, len(whole) // 2, len(whole) - 1}:
                changed = bytearray(whole)
                changed[place] ^= 1
                path.write_bytes(changed)
                with pytest.raises(
                    CheckpointError, match=f"is damaged: {path.relative_to(folder)} is not what was written"
                ):
                    load_checkpoint(folder)
            path.write_bytes(whole[:-1])
            with pytest.raises(CheckpointError, match="is damaged"):
                load_checkpoint(folder)
            path.unlink()
            with pytest.raises(CheckpointError, match=f"cannot be read: .*{path.name}"):
                load_checkpoint(folder)
            path.write_bytes(whole)
    load_checkpoint(folder)


@pytest.fixture
def checkpoint(world: World, tmp_path: Path) -> Path:
    """A checkpoint of rank 0's own, to spoil; other ranks get one that is not there. Collective."""
    return save_one(world, tmp_path / "checkpoints", 1, write_model, STATE)


def test_manifest_that_leads_out_of_the_folder_is_refused(world: World, checkpoint: Path, tmp_path: Path) -> None:
    if not world.is_root:
        return
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (checkpoint / "link").symlink_to(secret)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("../../secret", str(secret), "model/../../../secret", "link"):
        files = {**manifest["files"], name: {"n_bytes": 6, "xxh3_128": "0" * 32}}
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(CheckpointError, match="points outside its folder"):
            load_checkpoint(checkpoint)


def test_manifest_that_cannot_be_trusted_is_refused(world: World, checkpoint: Path) -> None:
    if not world.is_root:
        return
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    without_state = {name: written for name, written in manifest["files"].items() if name != "common.json"}
    for content, reason in (
        (sealed({**manifest, "files": without_state}), "cannot be read: its manifest lacks common.json"),
        (
            json.dumps({**manifest, "world_size": world.size + 1}),
            "cannot be read: its manifest is not what was written",
        ),
        (json.dumps({**manifest, "validation_loss": 0.5}), "cannot be read: its manifest is not what was written"),
        (json.dumps({**manifest, "format": 1}), "has format 1; this hvdkit reads format 2"),
        (json.dumps({**manifest, "world_size": 10**9}), "cannot be read"),
        (json.dumps({**manifest, "step": -1}), "cannot be read: step=-1"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ):
        (checkpoint / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(checkpoint)


def test_prune_keeps_the_newest_and_what_is_not_ours(world: World, shared_path: Path) -> None:
    checkpoints = shared_path / "checkpoints"
    save(world, checkpoints, 100_000_000, 9, 20, 100)
    if world.is_root:
        (checkpoints / "step-00000100").rename(checkpoints / "step-00000100-good")
        (checkpoints / ".step-00000200.abc.part").mkdir()
        (checkpoints / "notes").mkdir()
        (checkpoints / "step-00000300").mkdir()  # of another program: no manifest
        everything = names(checkpoints)
        prune(checkpoints, keep=0)
        remove_leftovers(checkpoints)
        kept_all = [name for name in everything if not name.endswith(".part")]
        assert names(checkpoints) == kept_all
        prune(checkpoints, keep=5)
        assert names(checkpoints) == kept_all
        assert find_checkpoint(shared_path).name == "step-100000000"
        prune(checkpoints, keep=2)
        assert names(checkpoints) == [name for name in kept_all if name != "step-00000009"]
        prune(checkpoints, keep=1)
        assert names(checkpoints) == ["notes", "step-00000100-good", "step-00000300", "step-100000000"]
    gather_objects(world, None)


def test_what_a_path_means(world: World, shared_path: Path) -> None:
    run = shared_path / "run"
    save(world, run / "checkpoints", 5, 10)
    newest = run / "checkpoints" / "step-00000010"
    older = run / "checkpoints" / "step-00000005"
    assert find_checkpoint(run) == newest
    assert find_checkpoint(older) == older
    for path, model in ((run, newest / "model"), (older, older / "model"), (older / "model", older / "model")):
        assert find_model(path) == model
    for path in (shared_path, shared_path / "missing", run / "checkpoints"):
        with pytest.raises(HvdkitError, match="neither a checkpoint nor a run folder"):
            find_checkpoint(path)
        with pytest.raises(HvdkitError, match="holds no model"):
            find_model(path)
