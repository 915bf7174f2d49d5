"""Continues a text with a causal model."""

import math

import torch

from hvdkit.data.tokenizer import Tokenizer
from hvdkit.models.language_model import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    n_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> str:
    """`prompt` and up to `n_tokens` tokens after it; ends early at the end-of-text token. Not collective.

    `temperature` 0 takes the likeliest token each time; `top_k` 0 considers all. The same arguments give the same
    text. Raises ValueError for a masked model or a negative number.
    """
    if model.objective != "causal":
        raise ValueError(f"{model.name} is a {model.objective} model; only causal models continue a text")
    if n_tokens < 0 or not 0 <= temperature < math.inf or top_k < 0:
        raise ValueError(
            f"n_tokens={n_tokens}, temperature={temperature} and top_k={top_k} must be 0 or more, and finite"
        )
    was_training = model.training
    model.eval()
    try:
        ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
        added = _continue(model, tokenizer, ids, n_tokens, temperature, top_k, seed)
    finally:
        model.train(was_training)
    # Decoded together with the prompt: some tokenizers drop the space before a text's first word.
    return prompt + tokenizer.decode(ids + added)[len(tokenizer.decode(ids)) :]


def _continue(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    n_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> list[int]:
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(n_tokens):
        window = torch.tensor([ids[-model.context :]], device=device)
        logits = model(window)[0, -1, : tokenizer.vocab_size].double().cpu()
        following = _choose(logits, temperature, top_k, random)
        if following == tokenizer.eot_id:
            break
        ids.append(following)
    return ids[len(prompt) :]


def _choose(logits: torch.Tensor, temperature: float, top_k: int, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k and top_k < len(logits):
        smallest = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    # The largest becomes 0 first, which a temperature close to 0 cannot make infinite.
    return int(torch.multinomial(((logits - logits.max()) / temperature).softmax(-1), 1, generator=random))
