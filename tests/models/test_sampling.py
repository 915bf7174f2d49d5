"""Generated text against a walk by hand, and what seed, temperature and top-k promise."""

from pathlib import Path

import pytest
import torch

from hvdkit.data import ByteTokenizer
from hvdkit.data.bpe_tokens import BpeTokenizer
from hvdkit.models import LanguageModel, build_model, generate
from hvdkit.models.state import State

TOKENIZER = ByteTokenizer()


class NextByte(LanguageModel):
    """Expects the byte after the last one, and ends the text after `last`; its likelihoods fall off with distance."""

    def __init__(self, last: str = "\x7f") -> None:
        super().__init__("next-byte", "causal", 259, 16)
        self.last = ord(last)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(tokens.shape[1])
        wanted = torch.where(tokens == self.last, TOKENIZER.eot_id, tokens + 1)
        return -(torch.arange(259) - wanted[..., None]).abs().double()

    def write(self, folder: Path, state: State | None = None) -> None:
        raise NotImplementedError


def test_temperature_0_takes_the_likeliest_and_the_end_ends() -> None:
    model = NextByte(last="f")
    assert generate(model, TOKENIZER, "a", 3, temperature=0) == "abcd"
    assert generate(model, TOKENIZER, "a", 100, temperature=0) == "abcdef"
    assert generate(model, TOKENIZER, "a", 0) == "a"


def test_temperature_close_to_0_is_as_temperature_0() -> None:
    for temperature in (1e-3, 1e-30, 1e-300):
        assert generate(NextByte(), TOKENIZER, "a", 5, temperature=temperature, top_k=0) == "abcdef"


def test_a_prompt_longer_than_the_context_is_seen_through_its_end() -> None:
    model = NextByte()
    prompt = "z" * 50 + "é" * 5 + "a"
    assert generate(model, TOKENIZER, prompt, 3, temperature=0) == prompt + "bcd"
    assert max(model.seen) == 16
    model.seen.clear()
    assert generate(model, TOKENIZER, "abc", 20, temperature=0) == "abcdefghijklmnopqrstuvw"
    assert model.seen == [*range(3, 16)] + [16] * 7


def test_an_empty_prompt_begins_a_text() -> None:
    model = NextByte()
    assert generate(model, TOKENIZER, "", 3, temperature=0) == ""  # special tokens only
    assert model.seen == [1, 2, 3]


def test_same_seed_same_text_and_no_trace_in_torchs_generator() -> None:
    torch.manual_seed(0)
    model = build_model("gpt-toy", 259, 32)
    state = torch.get_rng_state()
    texts = [generate(model, TOKENIZER, "def ", 30, seed=seed, top_k=0) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_top_k_and_temperature_shape_the_choice() -> None:
    """The likelihoods after "a" are proportional to exp(-|distance| / temperature): compare frequencies."""

    def following(seed: int, top_k: int, temperature: float) -> str:
        return generate(NextByte(), TOKENIZER, "a", 1, seed=seed, top_k=top_k, temperature=temperature)[1:]

    assert {following(seed, 1, 9.0) for seed in range(20)} == {"b"}
    assert {following(seed, 3, 9.0) for seed in range(100)} == {"a", "b", "c"}
    wide = [following(seed, 3, 1.0) for seed in range(1000)]
    expected = 1 / (1 + 2 * torch.tensor(-1.0).exp().item())
    assert wide.count("b") / 1000 == pytest.approx(expected, abs=0.08)


def test_mode_of_the_model_is_given_back_also_after_an_error() -> None:
    class Failing(NextByte):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            raise KeyError("inside the model")

    for model, mode in ((NextByte(), True), (NextByte(), False)):
        model.train(mode)
        generate(model, TOKENIZER, "a", 2)
        assert model.training is mode
    failing = Failing().train()
    with pytest.raises(KeyError):
        generate(failing, TOKENIZER, "a", 2)
    assert failing.training


def test_space_between_prompt_and_continuation_stays() -> None:
    """Tokenizers such as Llama's mark a word's beginning, and drop the space before a text's first word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "▁c": 2, "</s>": 3}, unk_token="</s>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    tokenizer = BpeTokenizer(library.to_str(), {"eos_token": "</s>"}, "words")
    assert tokenizer.encode("a b") == [0, 1] and tokenizer.decode([0, 1]) == "a b"

    class NextWord(NextByte):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens + 1, 259).double()

    assert generate(NextWord(), tokenizer, "a", 5, temperature=0) == "a b c"


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(ValueError, match="bert-toy is a masked model; only causal models continue a text"):
        generate(build_model("bert-toy", 259, 32), TOKENIZER, "a", 5)
    for arguments in ({"n_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}):
        with pytest.raises(ValueError, match="must be 0 or more"):
            generate(NextByte(), TOKENIZER, "a", **{"n_tokens": 5, **arguments})
