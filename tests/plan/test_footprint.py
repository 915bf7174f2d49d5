"""Bytes and operations without values, against those counted by hand, and against a real backward pass."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hvdkit.errors import ConfigError
from hvdkit.models import PRESETS, LanguageModel, build_model, count_parameters, write_model
from hvdkit.models.construct import from_config
from hvdkit.models.language_model import OwnModel
from hvdkit.plan.footprint import Footprint, _LiveBytes, fake_batch, measure_footprint
from hvdkit.train.loss import mean_loss

WIDTH, VOCABULARY, TOKENS = 64, 100, 48


class _TwoMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, VOCABULARY, bias=False)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class _Looks(_TwoMaps):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if float(self.embedding.weight.sum()) > 1:
            return super().forward(tokens)
        return super().forward(tokens)


def _own(module: type[nn.Module]) -> LanguageModel:
    return OwnModel(module(), "tests:own", "causal", VOCABULARY, TOKENS)


def _footprint(module: type[nn.Module] = _TwoMaps) -> Footprint:
    return measure_footprint(lambda: _own(module), 2, TOKENS // 2, autocast=False)


def test_counted_by_hand() -> None:
    found = _footprint()
    assert found.parameters == found.trained == WIDTH * (2 * VOCABULARY + WIDTH)
    # A map's forward pass, and two products of that size in backward, but for no gradient of the tokens.
    assert found.flops == 3 * 2 * TOKENS * WIDTH * (WIDTH + VOCABULARY)
    assert found.root == 4 * WIDTH * VOCABULARY
    assert (found.layer, found.layers) == (4 * WIDTH * VOCABULARY, 2)
    assert found.message_bytes == (4 * found.parameters,)
    # Kept for backward: two inputs of maps, and log-probabilities; at the worst moment also the logits' gradient and
    # that of one map's weight and input.
    least = 4 * TOKENS * (2 * WIDTH + 2 * VOCABULARY)
    assert least <= found.activations <= least + 4 * (WIDTH * VOCABULARY + TOKENS * (WIDTH + VOCABULARY))


@pytest.mark.parametrize("model", ["gpt-toy", "bert-toy", "gpt-mini"])
def test_equals_what_a_real_pass_holds(model: str) -> None:
    planned = measure_footprint(lambda: build_model(model, 259, 32), 4, 32, autocast=False)
    real = build_model(model, 259, 32)
    for parameter in real.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    gc.collect()
    live = _LiveBytes(real)
    with live:
        mean_loss(real, fake_batch(4, 32)).backward()
    assert planned.parameters == count_parameters(real)
    assert abs(planned.activations - live.most) <= 0.02 * live.most


def test_large_models_take_no_memory() -> None:
    found = measure_footprint(lambda: build_model("gpt2-xl", 50257, 1024), 1, 1024, autocast=True)
    assert found.parameters == 1_557_611_200  # GPT-2 XL's
    assert found.layers == 48
    assert found.flops == pytest.approx(6 * found.parameters * 1024, rel=0.13)  # attention's too


def test_attention_counts() -> None:
    """A token of a sequence four times as long looks at four times as many: 6 x 2 x width x layers for each more."""
    short, long = (measure_footprint(lambda n=n: build_model("gpt-mini", 259, n), 1, n, False) for n in (128, 512))
    more = long.flops / 512 - short.flops / 128
    # Two products forward; backward four, and the scores anew.
    assert more == pytest.approx((2 + 5) * 2 * 128 * 4 * (512 - 128))


def test_models_that_convert_themselves_and_those_in_folders(tmp_path: Path) -> None:
    half = measure_footprint(lambda: _own(lambda: _TwoMaps().bfloat16()), 2, 4, autocast=False)  # type: ignore[arg-type]
    assert half.itemsize == 2
    write_model(tmp_path, build_model("gpt-toy", 259, 32))
    folder = measure_footprint(lambda: build_model(str(tmp_path), 259, 32), 2, 32, False, reads_files=True)
    named = measure_footprint(lambda: build_model("gpt-toy", 259, 32), 2, 32, autocast=False)
    assert (folder.parameters, folder.activations) == (named.parameters, named.activations)


def test_checkpointing_needs_less() -> None:
    kept, again = (
        measure_footprint(
            lambda saves=saves: from_config(replace(PRESETS["gpt-mini"], checkpoint_activations=saves), "m"),
            8,
            128,
            autocast=False,
        )
        for saves in (False, True)
    )
    assert again.activations < 0.7 * kept.activations
    assert again.flops > 1.2 * kept.flops


def test_a_model_that_looks_at_values() -> None:
    with pytest.raises(ConfigError, match="the model cannot be planned: on tensors without values it fails with"):
        _footprint(_Looks)
