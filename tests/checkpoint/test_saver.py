"""Saving beside training: what is saved is the moment of the call, faults reach all ranks, and little is kept."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdkit.checkpoint import Saver, load_checkpoint, open_newest, prune, set_aside
from hvdkit.errors import CheckpointError
from hvdkit.runtime import World, gather_objects
from tests.checkpoint.test_folder import message_on_all, names, save_one, small_disk, write_model


def state_of(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all ranks have alike, and what this one has."""
    generator = torch.Generator().manual_seed(0)
    common = {
        "moments": {number: torch.randn(number, 7, generator=generator) for number in range(9)},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "step": 3,
    }
    common["a view"] = common["moments"][8][2:4]
    return common, {"mine": torch.full((5,), float(world.rank)), "empty": torch.empty(0, 4), "rank": world.rank}


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("background", [False, True], ids=["at once", "background"])
def test_every_rank_gets_all_back(world: World, shared_path: Path, background: bool) -> None:
    common, own = state_of(world)
    wanted = [state_of(world)[0], gather_objects(world, state_of(world)[1])]
    saver = Saver(world, shared_path, background=background, config={"lr": 0.1})
    folder = saver.save(3, common, own, write_model, validation_loss=1.5)
    if background:  # what is saved does not follow
        for tensor in (*common["moments"].values(), common["half"], common["one"], own["mine"]):
            tensor.zero_()
    saver.finish()
    checkpoint = load_checkpoint(folder)
    assert_same(checkpoint.common(), wanted[0])
    for rank in range(world.size):
        assert_same(checkpoint.own(rank), wanted[1][rank])
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.world_size, manifest.validation_loss) == (3, world.size, 1.5)
    assert manifest.config == {"lr": 0.1} and manifest.versions["torch"] == torch.__version__
    assert names(shared_path) == [folder.name], "nothing else is left"
    assert not [name for name in names(folder) if name.startswith(".")]
    assert saver.time.saves == 1 and saver.time.n_bytes > 0 and (saver.time.background_s > 0) == background
    assert threading.active_count() == len(threading.enumerate())


def test_what_is_alike_is_written_once_and_by_all(world: World, shared_path: Path) -> None:
    common = {"large": {number: torch.randn(1000) for number in range(8 * world.size)}}
    saver = Saver(world, shared_path)
    saver.save(1, common, {}, model_bytes=0)
    written = gather_objects(world, saver.time.n_bytes)
    assert max(written) < 1.3 * sum(written) / world.size
    assert 4 * 8000 * world.size < sum(written) < 4 * 8000 * world.size + 6000 * world.size


def test_a_fault_in_the_background_is_raised_on_all_at_the_next_save(world: World, shared_path: Path) -> None:
    saver = Saver(world, shared_path, background=True)
    saver.save(1, {"a": torch.ones(3)}, {})
    saver.finish()
    last = world.size - 1
    own = {"big": torch.zeros(100_000)} if world.rank == last else {}
    with small_disk(50_000):
        saver.save(2, {}, own)
        text = message_on_all(world, lambda: saver.save(3, {}, {}))
    assert "step-00000002 cannot be written" in text
    assert world.size == 1 or f"(on rank {last} of {world.size})" in text
    assert names(shared_path) == ["step-00000001"], "the older one stays, and nothing of the new one does"
    gather_objects(world, None)
    saver.save(3, {}, {})
    saver.finish()
    assert names(shared_path) == ["step-00000001", "step-00000003"]


def test_the_newest_and_the_best_are_kept(world: World, shared_path: Path) -> None:
    saver = Saver(world, shared_path, keep=2, keep_best=1)
    kept = []
    for step, loss in enumerate([3.0, 1.0, 2.0, None, float("nan"), 0.5, 0.7, 0.9], start=1):
        saver.save(step, {}, {}, validation_loss=loss)
        kept.append([int(name[5:]) for name in names(shared_path)])
        gather_objects(world, None)
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7], [6, 7, 8]]


def test_a_new_one_is_there_before_an_old_one_goes(world: World, shared_path: Path) -> None:
    """A disk that is full for the new one leaves the old ones."""
    saver = Saver(world, shared_path, keep=1, keep_best=0)
    saver.save(1, {}, {})
    with small_disk(50_000):
        text = message_on_all(world, lambda: saver.save(2, {"big": torch.zeros(100_000)}, {}))
    assert "step-00000002 cannot be written" in text and names(shared_path) == ["step-00000001"]


def test_what_the_disk_changed_is_noticed_when_saving(world: World, shared_path: Path, monkeypatch: Any) -> None:
    """By reading back: here the disk loses what the last rank wrote, between writing and reading."""
    import hvdkit.checkpoint.parts as parts

    real = parts.flush_folder

    def losing(folder: Path, given: Iterator[str]) -> None:
        real(folder, given)
        if world.rank == world.size - 1:
            path = folder / f"rank-{world.rank:05d}.json"
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(parts, "flush_folder", losing)
    saver = Saver(world, shared_path)
    assert "the disk does not hold what was written" in message_on_all(world, lambda: saver.save(1, {}, {"a": 1}))
    assert names(shared_path) == []
    gather_objects(world, None)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_the_one_before_a_damaged_newest_is_used(world: World, shared_path: Path) -> None:
    checkpoints = shared_path / "checkpoints"
    folders = [save_one(world, checkpoints, step, write_model, {"step": step}) for step in (1, 2, 3)]
    gather_objects(world, None)
    if world.is_root:
        damage(folders[2] / "model" / "weights")
        (folders[1] / f"rank-{world.size - 1:05d}.json").unlink()
    gather_objects(world, None)
    said: list[str] = []
    checkpoint = open_newest(world, shared_path, said.append)
    assert checkpoint.folder == folders[0] and checkpoint.common() == {"step": 1}
    assert [line.partition(":")[0] for line in said] == [
        f"checkpoint {folders[2]} is damaged", f"checkpoint {folders[1]} cannot be read"
    ]  # fmt: skip
    assert all(line.endswith("; the checkpoint before it is used") for line in said)
    assert "is damaged: model/weights" in message_on_all(world, lambda: open_newest(world, folders[2], said.append))
    if world.is_root:
        damage(folders[0] / "common.json")
    gather_objects(world, None)
    assert "is damaged: common.json" in message_on_all(world, lambda: open_newest(world, shared_path, said.append))


def test_prune_ignores_a_manifest_that_is_damaged(world: World, shared_path: Path) -> None:
    save_one(world, shared_path, 1, write_model, {})
    save_one(world, shared_path, 2, write_model, {})
    if world.is_root:
        (shared_path / "step-00000002" / "manifest.json").write_text(json.dumps([]))
        prune(shared_path, keep=1, keep_best=1)
        assert names(shared_path) == ["step-00000002"]
    gather_objects(world, None)


def test_a_newest_one_that_lost_its_manifest_is_no_secret(world: World, shared_path: Path) -> None:
    folders = [save_one(world, shared_path / "checkpoints", step, write_model, {"step": step}) for step in (1, 2)]
    gather_objects(world, None)
    if world.is_root:
        (folders[1] / "manifest.json").unlink()
    gather_objects(world, None)
    said: list[str] = []
    checkpoint = open_newest(world, shared_path, said.append)
    assert checkpoint.folder == folders[0] and "step-00000002 cannot be read" in said[0]
    if world.is_root:
        set_aside(folders[0].parent, folders[0])
        assert names(folders[0].parent) == ["step-00000001", "step-00000002.damaged"]
    gather_objects(world, None)
    save_one(world, shared_path / "checkpoints", 2, write_model, {"step": 2})


def test_a_step_is_saved_once(world: World, shared_path: Path) -> None:
    saver = Saver(world, shared_path)
    saver.save(1, {}, {})
    with pytest.raises(CheckpointError, match=r"step-00000001 cannot be written: .*File exists"):
        saver.save(1, {}, {})
    load_checkpoint(shared_path / "step-00000001")
