"""Hugging Face's models: built by type, saved so that from_pretrained reads them, loaded from what it wrote."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdkit.data import ByteTokenizer
from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models import LanguageModel, build_model, load_model, load_weights, save_model
from hvdkit.runtime import launch_info

pytestmark = pytest.mark.skipif(
    launch_info().size > 1, reason="communicates nothing, and each rank would import transformers"
)

SMALL_BERT = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    objective: str
    architecture: str


CASES = [
    Case("hf:gpt2,n_layer=2,n_embd=32,n_head=2", "causal", "GPT2LMHeadModel"),
    Case(f"hf:bert,{SMALL_BERT}", "masked", "BertForMaskedLM"),
    Case(f"hf:bert,{SMALL_BERT},is_decoder=true", "causal", "BertLMHeadModel"),
    Case(f"hf:llama,{SMALL_BERT},num_key_value_heads=1", "causal", "LlamaForCausalLM"),
    Case(f"hf:roberta,{SMALL_BERT}", "masked", "RobertaForMaskedLM"),
    Case("hf:distilbert,n_layers=2,dim=32,n_heads=2,hidden_dim=64", "masked", "DistilBertForMaskedLM"),
    Case("hf:opt,hidden_size=32,num_hidden_layers=2,num_attention_heads=2,ffn_dim=64,word_embed_proj_dim=32", "causal",
         "OPTForCausalLM"),
    Case(f"hf:modernbert,{SMALL_BERT}", "masked", "ModernBertForMaskedLM"),
]  # fmt: skip
TOKENS = torch.arange(2 * 24).view(2, 24) + 3


def make(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(1)
    return build_model(name, 259, 24).to(dtype).eval()


def auto(objective: str) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM if objective == "causal" else transformers.AutoModelForMaskedLM


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.architecture)
@torch.no_grad()
def test_built_by_type_saved_for_from_pretrained_and_read_back(tmp_path: Path, case: Case) -> None:
    model = make(case.name)
    assert (model.objective, type(model.inner).__name__) == (case.objective, case.architecture)
    assert (model.name, model.vocab_size, model.context) == (case.name, 259, 24)
    logits = model(TOKENS)  # as long as the context
    assert logits.shape == (2, 24, 259)

    save_model(tmp_path / "model", model)
    theirs = auto(case.objective).from_pretrained(str(tmp_path / "model"), local_files_only=True).eval()
    assert torch.equal(theirs(input_ids=TOKENS).logits, logits)

    ours = load_model(tmp_path / "model").eval()
    assert (ours.objective, ours.vocab_size, ours.context) == (case.objective, 259, 24)
    assert torch.equal(ours(TOKENS), logits)

    torch.manual_seed(99)
    resumed = build_model(case.name, 259, 24).eval()
    assert not torch.equal(resumed(TOKENS), logits)
    load_weights(resumed, tmp_path / "model")
    assert torch.equal(resumed(TOKENS), logits)
    assert resumed.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.architecture)
@torch.no_grad()
def test_weights_in_several_files_and_in_float64(tmp_path: Path, case: Case) -> None:
    model = make(case.name, torch.float64)
    model.inner.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    assert not (tmp_path / "model" / "model.safetensors").exists()
    logits = model(TOKENS)
    assert torch.equal(load_model(tmp_path / "model").eval()(TOKENS), logits), "also in its dtype"
    resumed = make(case.name, torch.float64)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.mul_(2)
    load_weights(resumed, tmp_path / "model")
    assert torch.equal(resumed(TOKENS), logits)


@torch.no_grad()
def test_encoder_without_a_head_is_an_error_and_not_a_random_head(tmp_path: Path) -> None:
    model = make(CASES[1].name)
    model.inner.bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=r"weights of a BertForMaskedLM are missing: cls\.predictions"):
        load_model(tmp_path / "encoder")


def test_folder_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    save_model(tmp_path / "gpt", make(CASES[0].name))
    other = make(CASES[0].name.replace("n_layer=2", "n_layer=3"))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not fit the model: missing there: transformer\.h\.2\.") as caught:
        load_weights(other, tmp_path / "gpt")
    assert str(tmp_path / "gpt") in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    weights = tmp_path / "gpt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'gpt'}: transformers cannot load it"):
        load_model(tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_model(tmp_path / "gpt")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf:no-such-type", "hf:no-such-type: transformers has no model type 'no-such-type'$"),
        ("hf:", "has no model type ''"),
        ("hf:gpt2,n_layers=2", "a gpt2 configuration has no n_layers$"),
        ("hf:gpt2,save_pretrained=2", "a gpt2 configuration has no save_pretrained$"),
        ("hf:gpt2,n_layer", "'n_layer' must have the form option=value"),
        ("hf:gpt2,n_layer=[", "'n_layer=.' has a value that is not YAML"),
        ("hf:gpt2,n_layer=two", "n_layer"),
        ("hf:gpt2,n_embd=30,n_head=4", "hf:gpt2,n_embd=30,n_head=4: "),
        ("hf:gpt2,n_embd=8,n_head=0", "hf:gpt2,n_embd=8,n_head=0: "),
        (
            "hf:gpt2,n_embd=8,n_head=1,n_positions=20",
            "takes 259 token ids and sequences of 20; this run has 259 and 24",
        ),
        (
            "hf:gpt2,n_embd=8,n_head=1,vocab_size=100",
            "takes 100 token ids and sequences of 24; this run has 259 and 24",
        ),
        ("hf:t5", "hf:t5: transformers has neither a causal nor a masked language model of it"),
    ],
)
def test_type_or_option_that_cannot_be_is_one_error(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        build_model(name, 259, 24)
    assert "\n" not in str(caught.value)


def test_options_count_over_vocabulary_and_context_of_the_run() -> None:
    model = build_model("hf:gpt2,n_layer=1,n_embd=8,n_head=1,n_positions=64,vocab_size=512", 259, 24)
    assert (model.vocab_size, model.context) == (512, 64)
    assert model(torch.zeros(1, 64, dtype=torch.int64)).shape == (1, 64, 512)
    by_another_name = build_model("hf:gpt2,n_layer=1,n_embd=8,n_head=1,max_position_embeddings=64", 259, 24)
    assert by_another_name.context == 64


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.architecture)
@torch.no_grad()
def test_special_tokens_are_those_of_the_runs_tokenizer(tmp_path: Path, case: Case) -> None:
    tokenizer = ByteTokenizer()
    model = build_model(case.name, tokenizer.vocab_size, 24, tokenizer).eval()
    assert (model.vocab_size, model.context) == (259, 24)
    config = model.inner.config
    assert config.pad_token_id == tokenizer.pad_id
    assert config.eos_token_id in (tokenizer.eot_id, None)
    save_model(tmp_path / "model", model)
    theirs = auto(case.objective).from_pretrained(str(tmp_path / "model"), local_files_only=True).eval()
    assert torch.equal(theirs(input_ids=TOKENS).logits, model(TOKENS))
    if case.objective == "causal":
        assert theirs.generation_config.eos_token_id == tokenizer.eot_id
    without = build_model(case.name, 259, 24)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(without.inner.config, name, None)
        assert number is None or number < 259
