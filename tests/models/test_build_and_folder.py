"""What --model names, and models that come back from their folder exactly as they were."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models import (
    PRESETS,
    LanguageModel,
    ModelConfig,
    build_model,
    count_parameters,
    distinct_tensors,
    load_model,
    load_tensors,
    load_weights,
    save_model,
)
from hvdkit.models.build import from_config

OWN = "tests.models.own_models:"
TOKENS = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(2))


def make(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(3)
    if name == "rope":
        return from_config(ModelConfig("gpt", 2, 24, 3, 41, 8, positions="rope"), name).to(dtype)
    return build_model(name, 41, 8).to(dtype)


def assert_equal(model: LanguageModel, other: LanguageModel) -> None:
    assert type(model) is type(other)
    for attribute in ("name", "objective", "vocab_size", "context"):
        assert getattr(model, attribute) == getattr(other, attribute)
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == other.state_dict()[name].dtype, name
        assert torch.equal(tensor, other.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(model.eval()(TOKENS), other.eval()(TOKENS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt-toy", "bert-toy", "rope", OWN + "tied_pair", OWN + "masked_pair"])
def test_saved_model_is_read_back_exactly(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    save_model(tmp_path / "model", model)
    assert_equal(model, load_model(tmp_path / "model"))
    other = make(name, dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    load_weights(other, tmp_path / "model")
    assert_equal(model, other)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_weights_are_converted_to_the_models_dtype(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make("gpt-toy", torch.float64))
    model = make("gpt-toy", torch.float32)
    load_weights(model, tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_folder_is_never_overwritten(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make("gpt-toy"))
    with pytest.raises(FileExistsError):
        save_model(tmp_path / "model", make("bert-toy"))
    assert load_model(tmp_path / "model").name == "gpt-toy"


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path: Path) -> None:
    model = make(OWN + "tied_pair")
    assert count_parameters(model) == 41 * 8
    assert list(distinct_tensors(model)) == ["inner.scale", "inner.embedding.weight"] or list(
        distinct_tensors(model)
    ) == ["inner.embedding.weight", "inner.scale"]
    save_model(tmp_path / "model", model)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["inner.embedding.weight", "inner.scale"]
        assert file.metadata() == {"format": "pt"}
    inner = load_model(tmp_path / "model").inner
    assert isinstance(inner, nn.Module)
    assert inner.head.weight is inner.embedding.weight
    save_model(tmp_path / "gpt", make("gpt-toy"))
    with safe_open(tmp_path / "gpt" / "model.safetensors", "pt") as file:
        assert len([name for name in file.keys() if file.get_slice(name).get_shape() == [41, 32]]) == 1  # noqa: SIM118


def test_equal_tensors_that_are_not_shared_are_both_saved() -> None:
    pair = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for part in pair:
        nn.init.ones_(part.weight)
    assert len(distinct_tensors(pair)) == 4
    empty = nn.ParameterList([nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))])
    assert len(distinct_tensors(empty)) == 2


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    small = make("gpt-toy")
    save_model(tmp_path / "small", small)
    wide = from_config(dataclasses.replace(PRESETS["gpt-toy"], layers=1, vocab_size=50, context=8), "wide")
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(wide, tmp_path / "small")
    text = str(caught.value)
    assert str(tmp_path / "small") in text
    assert "embedding.weight is (41, 32) there and (50, 32) here" in text
    assert "not in this model: layers.1." in text and "more" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())
    with pytest.raises(CheckpointError, match=r"missing there: norm\.bias"):
        load_tensors(small, {k: v for k, v in distinct_tensors(small).items() if k != "norm.bias"}, "here")


def test_folder_without_a_readable_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model: config\.json cannot be read"):
        load_model(tmp_path)
    save_model(tmp_path / "model", make("gpt-toy"))
    weights, description = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    whole = weights.read_bytes()
    for content in (whole[:-5], b"", b"\xff" * 100):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
            load_model(tmp_path / "model")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_model(tmp_path / "model")
    for broken, reason in (
        ("{", "cannot be read"),
        ('{"hvdkit_model": {"architecture": "gpt", "layers": 2, "width": 32, "heads": 5}}', "multiple of heads"),
        ('{"hvdkit_model": {"function": "tests.models.own_models:tied_pair"}}', "objective"),
        (
            '{"hvdkit_model": {"function": "no_such:f", "objective": "causal", "vocab_size": 1, "context": 1}}',
            "no_such",
        ),
    ):
        description.write_text(broken)
        with pytest.raises(CheckpointError, match=reason):
            load_model(tmp_path / "model")


def test_model_folder_as_the_name_of_a_model(tmp_path: Path) -> None:
    model = make("gpt-toy")
    save_model(tmp_path / "model", model)
    folder = str(tmp_path / "model")
    assert_equal(model, build_model(folder, 41, 8))
    assert build_model(folder, 30, 5).vocab_size == 41
    for vocab_size, context in ((42, 8), (41, 9)):
        with pytest.raises(ConfigError, match=rf"takes 41 token ids and sequences of 8; this run has {vocab_size}"):
            build_model(folder, vocab_size, context)


@pytest.mark.parametrize("function", ["tied_pair", "masked_pair", "tuple_pair", "object_pair"])
def test_own_function_may_return_logits_in_the_usual_ways(function: str) -> None:
    model = build_model(OWN + function, 41, 8)
    assert model(TOKENS).shape == (2, 8, 41)
    assert model.objective == ("masked" if function == "masked_pair" else "causal")
    assert model.name == OWN + function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("last_only", r"must map tokens \(2, 8\) to logits \(2, 8, 41\); it gave logits of shape \(2, 41\)"),
        ("returns_nothing", "it gave no logits"),
    ],
)
def test_own_model_that_gives_something_else_is_an_error(function: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_model(OWN + function, 41, 8)(TOKENS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt-minni", "--model gpt-minni is not known; did you mean gpt-mini; use one of gpt-toy"),
        ("", "is not known"),
        ("no/such/folder", "is not known"),
        ("no_such_module:model", "module no_such_module cannot be imported"),
        (OWN + "missing", "has no function missing"),
        (OWN + "no_module", "returned a str; it must return a torch.nn.Module"),
        (OWN + "other_arguments", "it is called with vocab_size and context, and failed"),
    ],
)
def test_name_of_no_model_is_an_error(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_model(name, 41, 8)


def test_config_says_how_hvdkit_builds_the_model(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make("rope"))
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    assert description["model_type"] == "hvdkit"
    assert description["hvdkit_model"]["positions"] == "rope"
