"""The built-in models against transformers' with the same weights, published sizes, and what their parts promise."""

import dataclasses
import math

import pytest
import torch

from hvdkit.errors import ConfigError
from hvdkit.models import BERT, GPT, PRESETS, ModelConfig, build_model, count_parameters
from hvdkit.models.layers import Rotary
from hvdkit.runtime import launch_info

transformers_loads_once = pytest.mark.skipif(
    launch_info().size > 1, reason="communicates nothing, and each rank would import transformers"
)

TINY = {"layers": 2, "width": 24, "heads": 3, "vocab_size": 41, "context": 10}
GPT_TINY = ModelConfig("gpt", activation="gelu-tanh", **TINY)
BERT_TINY = ModelConfig("bert", norm_eps=1e-12, **TINY)
SHAPES = [GPT_TINY, dataclasses.replace(GPT_TINY, positions="rope"), BERT_TINY]


def shape_name(config: ModelConfig) -> str:
    return f"{config.architecture}-{config.positions}"


def make(config: ModelConfig, seed: int = 0) -> GPT | BERT:
    """A model in float64 with weights and biases far from their beginnings, so that every part matters."""
    torch.manual_seed(seed)
    model = GPT(config) if config.architecture == "gpt" else BERT(config)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens(b: int = 3, t: int = 10) -> torch.Tensor:
    return torch.randint(0, 41, (b, t), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "vocab_size", "context", "expected"),
    [
        ("gpt2", 50257, 1024, 124_439_808),  # OpenAI's release, as transformers counts it
        # BERT-base with its pooler; the head that predicts tokens adds a layer, a norm, and a bias per token.
        ("bert-base", 30522, 512, 109_482_240 + (768 * 768 + 768) + 2 * 768 + 30522),
    ],
)
def test_published_numbers_of_parameters(name: str, vocab_size: int, context: int, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build_model(name, vocab_size, context)) == expected
    assert (PRESETS[name].vocab_size, PRESETS[name].context) == (vocab_size, context)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_takes_vocabulary_and_context_of_the_run(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 300, 48)
        assert model(torch.zeros(2, 48, dtype=torch.int64)).shape == (2, 48, 300)
    assert (model.name, model.vocab_size, model.context) == (name, 300, 48)
    assert model.objective == ("masked" if name.startswith("bert") else "causal")


@transformers_loads_once
@torch.no_grad()
def test_gpt_computes_what_gpt2_computes() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = make(GPT_TINY)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=41, n_positions=10, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )
    ).double()  # fmt: skip
    body = theirs.transformer
    body.wte.weight.copy_(ours.embedding.weight)
    body.wpe.weight.copy_(ours.positions.weight)
    body.ln_f.load_state_dict(ours.norm.state_dict())
    for mine, block in zip(ours.layers, body.h, strict=True):
        block.ln_1.load_state_dict(mine.norm_attention.state_dict())
        block.ln_2.load_state_dict(mine.norm_feed_forward.state_dict())
        for linear, conv in (
            (mine.attention.qkv, block.attn.c_attn),
            (mine.attention.out, block.attn.c_proj),
            (mine.feed_forward.up, block.mlp.c_fc),
            (mine.feed_forward.down, block.mlp.c_proj),
        ):
            conv.weight.copy_(linear.weight.T)
            conv.bias.copy_(linear.bias)
    assert count_parameters(ours) == count_parameters(theirs)
    for t in (1, 7, 10):
        torch.testing.assert_close(ours(tokens(t=t)), theirs(tokens(t=t)).logits, rtol=1e-12, atol=1e-12)


@transformers_loads_once
@torch.no_grad()
def test_bert_computes_what_bert_computes() -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=41, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=10, hidden_dropout_prob=0, attention_probs_dropout_prob=0, pad_token_id=None,
    )  # fmt: skip
    ours, theirs, pooling = make(BERT_TINY), BertForMaskedLM(config).double(), BertModel(config).double()
    body = theirs.bert
    body.embeddings.word_embeddings.weight.copy_(ours.embedding.weight)
    body.embeddings.position_embeddings.weight.copy_(ours.positions.weight)
    body.embeddings.token_type_embeddings.weight.copy_(ours.segments.weight)
    body.embeddings.LayerNorm.load_state_dict(ours.norm_embedding.state_dict())
    for mine, layer in zip(ours.layers, body.encoder.layer, strict=True):
        for part, weight, bias in zip(
            (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value),
            mine.attention.qkv.weight.chunk(3),
            mine.attention.qkv.bias.chunk(3),
            strict=True,
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        layer.attention.output.dense.load_state_dict(mine.attention.out.state_dict())
        layer.attention.output.LayerNorm.load_state_dict(mine.norm_attention.state_dict())
        layer.intermediate.dense.load_state_dict(mine.feed_forward.up.state_dict())
        layer.output.dense.load_state_dict(mine.feed_forward.down.state_dict())
        layer.output.LayerNorm.load_state_dict(mine.norm_feed_forward.state_dict())
    head = theirs.cls.predictions
    head.transform.dense.load_state_dict(ours.head.state_dict())
    head.transform.LayerNorm.load_state_dict(ours.head_norm.state_dict())
    head.bias.copy_(ours.head_bias)
    pooling.load_state_dict(body.state_dict(), strict=False)
    pooling.pooler.dense.load_state_dict(ours.pooler.state_dict())
    assert count_parameters(ours) == count_parameters(theirs) + count_parameters(ours.pooler)

    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-11, atol=1e-11)
    segments, mask = (
        (torch.arange(10) > 5).long().expand(3, 10),
        torch.arange(10).expand(3, 10) < torch.tensor([[10], [7], [3]]),
    )
    hidden = ours.encode(tokens(), segments, mask)
    wanted = pooling(tokens(), token_type_ids=segments, attention_mask=mask.long())
    torch.testing.assert_close(hidden[mask], wanted.last_hidden_state[mask], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.pool(hidden), wanted.pooler_output, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("config", SHAPES, ids=shape_name)
@torch.no_grad()
def test_only_a_causal_model_is_blind_to_what_follows(config: ModelConfig) -> None:
    model = make(config)
    before = tokens()
    after = before.clone()
    after[:, 6] = (after[:, 6] + 1) % 41
    change = (model(after) - model(before)).abs().amax(dim=(0, 2))
    assert (change[6:] > 1e-6).all()
    if config.architecture == "gpt":
        # A position's product may be blocked differently with another length, hence not bit by bit.
        assert (change[:6] < 1e-12).all()
        torch.testing.assert_close(model(before[:, :4]), model(before)[:, :4], rtol=1e-12, atol=1e-12)
    else:
        assert (change[:6] > 1e-6).all()


@torch.no_grad()
def test_rotary_positions_turn_complex_numbers_and_see_distances_only() -> None:
    rotary = Rotary(8, 32).double()
    x = torch.randn(2, 3, 32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.arange(32, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotary(x), torch.cat((turned.real, turned.imag), -1), rtol=1e-6, atol=1e-6)
    query, key = x[0, 0, :1].expand(32, 8), x[0, 1, :1].expand(32, 8)
    scores = rotary(query) @ rotary(key).T
    for distance in range(32):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_model_with_rotary_positions_knows_the_order() -> None:
    model = make(dataclasses.replace(GPT_TINY, positions="rope"))
    assert model.positions is None
    swapped = tokens()[:, [1, 0, *range(2, 10)]]
    assert (model(swapped)[:, 2:] - model(tokens())[:, 2:]).abs().max() > 1e-3


@pytest.mark.parametrize("config", SHAPES, ids=shape_name)
def test_saving_memory_changes_nothing_of_loss_and_gradients(config: ModelConfig) -> None:
    results = []
    for save_memory in (False, True):
        shape = dataclasses.replace(config, dropout=0.2, checkpoint_activations=save_memory)
        model = make(shape)
        torch.manual_seed(5)
        loss = model(tokens()).square().mean()
        loss.backward()
        used = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), used))
    (loss, gradients), (loss_again, gradients_again) = results
    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name
    assert {name for name, _ in model.named_parameters()} - gradients.keys() <= {
        "pooler.weight",
        "pooler.bias",
        "segments.weight",
    }


@pytest.mark.parametrize("config", SHAPES, ids=shape_name)
def test_weights_begin_as_published(config: ModelConfig) -> None:
    torch.manual_seed(0)
    shape = dataclasses.replace(config, width=192, vocab_size=400, layers=8)
    model = GPT(shape) if shape.architecture == "gpt" else BERT(shape)
    residual = 0.02 / math.sqrt(16) if shape.architecture == "gpt" else 0.02
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            wanted = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == wanted).all(), name
        elif parameter.numel() > 10_000:
            expected = residual if name.endswith(("out.weight", "down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    # At the beginning every token is about as likely: the loss is log(vocabulary).
    logits = model(torch.randint(0, 400, (4, 10)))
    assert logits.log_softmax(-1).mean().item() == pytest.approx(-math.log(400), abs=0.2)


@pytest.mark.parametrize("config", SHAPES, ids=shape_name)
def test_a_sequence_that_is_too_long_is_an_error(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="11 tokens is longer than this model's context of 10"):
        make(config)(torch.zeros(1, 11, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": 5}, "width=24 must be a multiple of heads=5"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"activation": "relu"}, "activation='relu' must be one of gelu, gelu-tanh"),
        ({"architecture": "t5"}, "architecture='t5' must be one of gpt, bert"),
        ({"positions": "rope", "heads": 8}, "an even width per head"),
        ({"positions": "rope", "architecture": "bert"}, "needs architecture gpt"),
    ],
)
def test_a_shape_that_cannot_be_is_an_error(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(GPT_TINY, **change)


def test_shape_goes_through_plain_values() -> None:
    for config in (*PRESETS.values(), *SHAPES):
        assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="unknown experts; was it saved by a newer hvdkit"):
        ModelConfig.from_dict({**GPT_TINY.to_dict(), "experts": 8})
    with pytest.raises(ConfigError, match="not a usable configuration"):
        ModelConfig.from_dict({"architecture": "gpt"})
