"""Merge recipes, and the metrics of runs that weights are read from."""

import json
from pathlib import Path

import pytest

from hvdkit.errors import ConfigError, MergeError
from hvdkit.merge.recipe import parse_recipe, read_recipe
from hvdkit.merge.weights import recorded_weights
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import BILLION, as_json, as_yaml, changed_trees, files

RECIPES = [
    {"models": ["runs/a", {"path": "runs/b", "weight": 2}]},
    {
        "rule": "ties", "base": "runs/start", "scale": 0.8, "seed": 3, "dtype": "bfloat16", "shard_bytes": "5GB",
        "models": [{"path": "runs/a", "weight": 0.7, "density": [0.3, 0.7]}, {"path": "runs/*", "weight": [1, 2]}],
        "tensors": [{"match": "*norm*", "rule": "average"}, {"layers": "0-3", "weights": [1, [3, 4]], "scale": 1.0},
                    {"layers": 2, "density": 0.5}],
    },
    {"rule": "greedy_soup", "metric": "package.module:function", "models": ["a", "b"], "missing": "leave_out",
     "weigh_by": "tokens", "files_from": "a", "gamma": 0.1, "epsilon": 0.2},
    {"rule": "ema", "decay": 0.3, "models": ["step-*"]},
]  # fmt: skip
METRICS = [[{"step": 1, "tokens": 5, "validation_loss": 3.0}, {"step": 2, "tokens": 9, "lr": 0.1}]]


@pytest.mark.timeout(0)
def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_recipe(path).to_dict()

    fuzz("recipe files", files(changed_trees(RECIPES), as_yaml), read, ConfigError)


@pytest.mark.timeout(0)
def test_recipes_as_plain_data() -> None:
    fuzz("recipes as data", changed_trees(RECIPES, 5), parse_recipe, ConfigError)


@pytest.mark.timeout(0)
def test_metrics_of_runs(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def write(lines: object) -> bytes:
        return b"\n".join(map(as_json, lines)) if isinstance(lines, list) else as_json(lines)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for what in ("tokens", "validation_loss"):
            recorded_weights([tmp_path], what)

    fuzz("metrics of runs", files(changed_trees(METRICS), write), read, MergeError)


@pytest.mark.parametrize(
    "text",
    [
        BILLION.decode(),
        "models: [a]\nscale: " + "9" * 400,
        "models: [a]\nscale: .inf",
        "models: [a]\nshard_bytes: " + "9" * 400,
        "models: [a]\ntensors: [{layers: '" + "9" * 5000 + "'}]",
        "models: [a]\nseed: 0x" + "f" * 9000,
        "models: [a]\nseed: 2001-13-45",
        "models: [a]\nseed: !!bool x",
        "models: " + "[" * 3000,
        "models: ['\\ud800'",
    ],
    ids=range(10),
)
def test_recipes_that_once_broke_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"tokens": 3}', '{"step": "x", "tokens": 3}', json.dumps({"step": 1, "tokens": 10**400})]
)
def test_metrics_that_once_broke_out(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line)
    with pytest.raises(MergeError, match="tells its tokens"):
        recorded_weights([tmp_path], "tokens")
