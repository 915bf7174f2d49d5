"""Recipes say all that is wrong with them at once, and mean for each tensor what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvdkit.errors import ConfigError, HvdkitError, MergeError
from hvdkit.merge.files import Submodel
from hvdkit.merge.plan import expanded, layer_of, make_plan
from hvdkit.merge.recipe import Model, parse_recipe, read_recipe
from hvdkit.merge.weights import exponential_weights, recorded_weights
from tests.merge.submodels import tensors_of, write, write_family


def plan_of(content: dict[str, Any]) -> Any:
    recipe = expanded(parse_recipe(content))
    paths = [*(model.path for model in recipe.models), recipe.base]
    return make_plan(recipe, [Submodel(Path(path)).infos if path else None for path in paths])


def test_a_recipe_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "rule: ties\nbase: b\nmodels:\n- one\n- {path: two, weight: [0, 1], density: 0.5}\nshard_bytes: 2GB\n"
    )
    recipe = read_recipe(path)
    assert recipe.models == (Model("one"), Model("two", (0.0, 1.0), (0.5,)))
    assert (recipe.rule, recipe.base, recipe.shard_bytes) == ("ties", "b", 2 * 10**9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], ["must be a mapping"]),
        ({}, ["models: at least one"]),
        (
            {"models": [{"weight": "x"}, 3], "rul": "ties", "scale": "much", "dtype": "float33", "seed": 1.5},
            ["models[0].path: is missing",
             "models[0].weight: must be a number, not 'x'", "models[1]: must be a mapping",
             "rul: there is no such entry; did you mean rule?", "scale: must be a number", "did you mean float32?",
             "seed: must be a whole number"],
        ),
        (
            {"models": ["a", "b"], "rule": "ties", "decay": 1, "metric": "m:f", "missing": "no", "weigh_by": "luck",
             "shard_bytes": "5XB",
             "tensors": [{"weights": [1]}, {"layers": "3-1"}, {"rule": "tie"}, {"match": ""}, {"rule": "ema"}]},
            ["base: ties merges task vectors", "metric: package",
             "decay: 1 must be in [0, 1)", "missing: 'no' is not one of", "weigh_by",
             "shard_bytes: must be bytes like 5GB",
             "tensors[1].layers: must be a layer or a range", "did you mean ties?",
             "tensors[3].match: must be a text", "tensors[4].rule: 'ema' is not one of"],
        ),
    ],
)  # fmt: skip
def test_all_faults_at_once(content: Any, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(content, "my.yaml")
    assert str(caught.value).startswith("my.yaml:\n")
    for text in said:
        assert text in str(caught.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("models: [")
    for name in ("bad.yaml", "gone.yaml"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
            read_recipe(tmp_path / name)


def test_layers_and_gradients(tmp_path: Path) -> None:
    base, one, other = map(str, write_family(tmp_path, 2))
    plan = plan_of({
        "rule": "ties", "base": base,
        "models": [{"path": one, "weight": [0, 1]}, {"path": other, "density": [0.2, 0.4, 1]}],
        "tensors": [{"match": "*norm*", "rule": "average"}, {"layers": "1-2", "weights": [3, [0, 4]], "scale": 2}],
    })  # fmt: skip
    by_name = {task.name: task.settings for task in plan.tasks}
    assert by_name["positions"] is None
    assert by_name["embed.weight"].weights == (0, 1) and by_name["embed.weight"].densities == (1, 0.2)
    assert by_name["head.bias"].weights == (1, 1) and by_name["head.bias"].densities == (1, 1)
    assert by_name["layers.0.up.weight"].weights == (0, 1)
    assert by_name["layers.1.up.weight"].weights == (3, 2) and by_name["layers.1.up.weight"].densities == (1, 0.4)
    assert by_name["layers.1.up.weight"].scale == 2 and by_name["layers.0.up.weight"].scale == 1
    assert by_name["layers.2.norm.weight"].rule.name == "average"
    assert [layer_of(name) for name in ("h.10.x2.w", "w3.w", "3.w", "w")] == [10, None, 3, None]
    # Every tensor is on one rank, and no rank has more than another by more than a tensor.
    shares = plan.shares(3)
    assert sorted(task.name for share in shares for task in share) == sorted(by_name)
    filled = [sum(task.out.count for task in share) for share in shares]
    assert max(filled) - min(filled) <= 50 * 16


def test_what_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    base, one, other = write_family(tmp_path, 2)
    tensors = tensors_of(2)
    tensors["embed.weight"] = tensors["embed.weight"][:40].clone()
    tensors["positions"] = tensors["positions"].float()
    del tensors["head.bias"]
    write(other, tensors)
    with pytest.raises(MergeError) as caught:
        plan_of({"models": [str(one), str(other)]})
    for text in (f"(40, 16) in {other}", f"positions: torch.float32 (5,) in {other}", f"head.bias: {other} lacks it"):
        assert text in str(caught.value)
    with pytest.raises(MergeError, match=r"density 2, 2 must be in \(0, 1\]"):
        plan_of({"models": [{"path": str(one), "density": 2}] * 2, "rule": "ties", "base": str(base)})
    with pytest.raises(MergeError, match="add up to 0"):
        plan_of({"models": [{"path": str(one), "weight": 1}, {"path": str(one), "weight": -1}]})
    with pytest.raises(MergeError) as caught:
        plan_of({"models": [str(one)], "tensors": [{"match": "attn*"}, {"layers": 9}, {"weights": [1, 2]}]})
    for text in ("tensors[0]: no tensor matches 'attn*'", "tensors[1]: no tensor matches '*', layers 9-9",
                 "tensors[2].weights: 2 weights for 1 submodels"):  # fmt: skip
        assert text in str(caught.value)
    for weights in ([0.1, 0.2, -0.3], [0, 0, 0]):  # of which the first adds up to 6e-17
        with pytest.raises(MergeError, match="add up to 0"):
            plan_of({"models": [{"path": str(one), "weight": weight} for weight in weights]})


def test_missing_tensors_by_choice(tmp_path: Path) -> None:
    base, one, other = write_family(tmp_path, 2)
    write(other, {name: tensor for name, tensor in tensors_of(2).items() if name != "head.bias"})
    write(base, {name: tensor for name, tensor in tensors_of(0).items() if name != "embed.weight"})
    content = {"rule": "ties", "base": str(base), "models": [str(one), str(other)], "missing": "leave_out"}
    by_name = {task.name: task for task in plan_of(content).tasks}
    assert by_name["head.bias"].models == (0,) and by_name["head.bias"].settings.weights == (1,)
    assert by_name["embed.weight"].settings.rule.name == "average"
    with pytest.raises(MergeError, match=f"embed.weight: the base {base} lacks it"):
        plan_of({**content, "missing": "error", "models": [str(one)]})


def test_weights_over_checkpoints(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        write(tmp_path / f"step-{step:04d}", tensors_of(1))
    recipe = expanded(parse_recipe({"rule": "ema", "decay": 0.75, "models": [str(tmp_path / "step-*")]}))
    assert [Path(model.path).name for model in recipe.models] == ["step-0009", "step-0010", "step-0011"]
    assert [model.weight for model in recipe.models] == [(0.5625,), (0.1875,), (0.25,)]
    average = 0.0
    values = [3.0, 5.0, 2.0, 8.0]
    for number, value in enumerate(values):
        average = value if number == 0 else 0.9 * average + 0.1 * value
    weights = exponential_weights(4, 0.9)
    assert sum(weight * value for weight, value in zip(weights, values, strict=True)) == pytest.approx(average)
    with pytest.raises(MergeError, match="nothing matches"):
        expanded(parse_recipe({"models": [str(tmp_path / "gone-*")]}))


def test_weights_that_runs_recorded(tmp_path: Path) -> None:
    for name, tokens, loss in (("one", 1000, 2.0), ("two", 3000, 1.0)):
        (tmp_path / name / "checkpoints" / "step-00000001").mkdir(parents=True)
        lines = [{"step": 1, "tokens": 5, "validation_loss": 3.0}, {"step": 2, "tokens": tokens},
                 {"step": 2, "validation_loss": loss}]  # fmt: skip
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "tok')
    paths = [tmp_path / "one", tmp_path / "two"]
    assert recorded_weights(paths, "tokens") == [1000, 3000]
    assert recorded_weights(paths, "validation_loss") == pytest.approx([0.36788, 1.0], abs=1e-5)
    early = tmp_path / "two" / "checkpoints" / "step-00000001"
    assert recorded_weights([tmp_path / "one", early], "tokens") == [1000, 5]
    with pytest.raises(HvdkitError, match="tells its tokens"):
        recorded_weights([tmp_path], "tokens")


def test_checkpoints_go_by_number(tmp_path: Path) -> None:
    for step in (200, 1000, 1200):
        write(tmp_path / f"checkpoint-{step}", tensors_of(1))
    recipe = expanded(parse_recipe({"rule": "ema", "models": [str(tmp_path / "checkpoint-*")]}))
    assert [Path(model.path).name for model in recipe.models] == [
        "checkpoint-200",
        "checkpoint-1000",
        "checkpoint-1200",
    ]
