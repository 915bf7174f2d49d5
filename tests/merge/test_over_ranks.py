"""The merge of files over any number of ranks is the merge in memory; faults are everyone's and leave nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hvdkit.errors import HvdkitError, MergeError
from hvdkit.merge import RULES, merge_states
from hvdkit.merge.execute import RECORD_FILE, merge_files
from hvdkit.merge.plan import expanded
from hvdkit.merge.recipe import parse_recipe
from hvdkit.merge.soup_of_files import choose_members
from hvdkit.runtime import World, gather_objects, share_object, together
from tests.merge.submodels import read, tensors_of, write, write_family


@pytest.fixture
def family(world: World, shared_path: Path) -> list[Path]:
    """A base and three submodels of it, the same files for all ranks."""
    return share_object(world, together(world, lambda: write_family(shared_path) if world.is_root else []))


def merged(world: World, content: dict[str, Any], out: Path) -> Path:
    return merge_files(world, expanded(parse_recipe(content)), out, lambda text: None)


def message(world: World, content: dict[str, Any], out: Path) -> str:
    """What is raised, the same on all ranks. Collective."""
    with pytest.raises(HvdkitError) as caught:
        merged(world, content, out)
    texts = gather_objects(world, str(caught.value))
    assert len({text.split(" (on rank")[0] for text in texts}) == 1
    return texts[0]


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_merge_in_memory(rule: str, world: World, family: list[Path], shared_path: Path) -> None:
    base, *models = family[: 1 + (RULES[rule].only_models or 3)]
    weights = [0.5, 1.0, 0.25][: len(models)]
    content = {
        "rule": rule, "base": str(base), "shard_bytes": 4000,
        "models": [{"path": str(path), "weight": w, "density": 0.6} for path, w in zip(models, weights, strict=True)],
    }  # fmt: skip
    out = merged(world, content, shared_path / "out" / "merged")
    wanted = merge_states([tensors_of(seed) for seed in range(1, len(models) + 1)], rule, base=tensors_of(0),
                          weights=weights, density=0.6)  # fmt: skip
    found = read(out)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert (out / "tokenizer.json").read_text() == "tokens of base" and not (out / "training_args.bin").exists()
    record = json.loads((out / RECORD_FILE).read_text())
    assert record["recipe"]["rule"] == rule
    assert [entry["path"] for entry in record["inputs"]] == [str(path) for path in (*models, base)]
    assert len({entry["hash"] for entry in record["inputs"]}) == len(models) + 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]


def test_the_same_inputs_have_the_same_hash(world: World, family: list[Path], shared_path: Path) -> None:
    hashes = []
    for number in range(2):
        out = merged(world, {"models": [str(path) for path in family[1:]]}, shared_path / f"out{number}")
        hashes.append([entry["hash"] for entry in json.loads((out / RECORD_FILE).read_text())["inputs"]])
    assert hashes[0] == hashes[1]


def test_the_dtype_of_the_output(world: World, family: list[Path], shared_path: Path) -> None:
    content = {"models": [str(path) for path in family[1:]], "dtype": "bfloat16", "files_from": str(family[2])}
    out = merged(world, content, shared_path / "out")
    wanted = merge_states([tensors_of(seed) for seed in (1, 2, 3)])
    found = read(out)
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in wanted.items() if name != "positions")
    assert found["positions"].dtype == torch.int64
    assert json.loads((out / "config.json").read_text()) == {"torch_dtype": "bfloat16", "of": "b"}


def _spoil(path: Path, name: str, value: float) -> None:
    tensors = tensors_of(2)
    tensors[name][3] = value
    write(path, tensors)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "b: layers.1.up.weight holds NaN"),
        ("whole numbers", "positions is torch.int64 and not the same in"),
        ("shape", r"embed.weight: torch.float32 (50, 17) in"),
        ("gone", "there is no such file or folder"),
        ("cut", "bytes and should have"),
        ("out", "exists: name another folder"),
        ("float16", "too large for float16"),
        ("file in the way", "cannot be written"),
    ],
)
def test_one_clear_error_and_nothing_left(
    fault: str, said: str, world: World, family: list[Path], shared_path: Path
) -> None:
    out = shared_path / "out" / "merged"
    content: dict[str, Any] = {"models": [str(path) for path in family[1:]]}

    def prepare() -> None:
        out.parent.mkdir()
        if fault == "nan":
            _spoil(family[2], "layers.1.up.weight", float("nan"))
        elif fault == "whole numbers":
            _spoil(family[2], "positions", 77)
        elif fault == "float16":
            _spoil(family[2], "head.bias", 1e6)
        elif fault == "shape":
            write(family[2], {**tensors_of(2), "embed.weight": torch.zeros(50, 17)})
        elif fault == "cut":
            path = family[2] / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-7])
        elif fault == "out":
            out.mkdir()

    together(world, prepare if world.is_root else lambda: None)
    content |= {"dtype": "float16"} if fault == "float16" else {}
    if fault == "gone":
        content["models"].append(str(shared_path / "nothing"))
    if fault == "file in the way":
        out = family[1] / "model.safetensors" / "merged"
    assert said in message(world, content, out)
    left = sorted(path.name for path in (shared_path / "out").iterdir())
    assert left == (["merged"] if fault == "out" else [])


def test_greedy_soup_of_files(world: World, family: list[Path], shared_path: Path) -> None:
    """The metric is the distance from the mean of the first and third submodel: they are kept, the second is not."""
    wanted = merge_states([tensors_of(1), tensors_of(3)])

    def distance(folder: Path) -> float:
        return sum(float((tensor - wanted[name]).float().norm()) for name, tensor in read(folder).items())

    recipe = expanded(parse_recipe({
        "rule": "greedy_soup", "metric": "some.module:distance", "models": [str(path) for path in family[1:]]
    }))  # fmt: skip
    said: list[str] = []
    chosen = choose_members(world, recipe, distance, shared_path / "out", said.append)
    assert {model.path for model in chosen.models} == {str(family[1]), str(family[3])}
    assert len(said) == 6 and said[-1].startswith("greedy soup of ")
    assert sorted(path.name for path in shared_path.iterdir()) == ["a", "b", "base", "c"]
    found = read(merge_files(world, chosen, shared_path / "out", lambda text: None))
    assert all(torch.allclose(found[name].double(), wanted[name].double(), atol=1e-6) for name in wanted)


def test_two_merges_into_one_folder(world: World, family: list[Path], shared_path: Path) -> None:
    from hvdkit.merge.output import output_folder

    out = shared_path / "merged"
    if world.is_root:
        with output_folder(out) as beside, pytest.raises(MergeError, match="another merge is writing it"):
            (beside / "x").touch()
            with output_folder(out):
                pass
        assert [path.name for path in out.iterdir()] == ["x"]


def test_what_a_killed_merge_left_is_removed(world: World, family: list[Path], shared_path: Path) -> None:
    left = shared_path / "out" / f".merged.{32 * '0'}.part"
    other = shared_path / "out" / f".merged.v2.{32 * '0'}.part"  # of another merge, perhaps under way
    together(world, lambda: [path.mkdir(parents=True) for path in (left, other)] if world.is_root else None)
    merged(world, {"models": [str(path) for path in family[1:]]}, shared_path / "out" / "merged")
    assert sorted(path.name for path in (shared_path / "out").iterdir()) == [other.name, "merged"]


def test_tied_tensors_stay_tied(world: World, shared_path: Path) -> None:
    """Files hold a tied tensor once; the merged ones too."""

    def prepare() -> None:
        for seed in (1, 2):
            save_file({"embed.weight": tensors_of(seed)["embed.weight"]}, shared_path / f"{seed}.safetensors")

    together(world, prepare if world.is_root else lambda: None)
    out = merged(world, {"models": [str(shared_path / f"{seed}.safetensors") for seed in (1, 2)]}, shared_path / "out")
    assert list(read(out)) == ["embed.weight"] and not (out / "config.json").exists()
