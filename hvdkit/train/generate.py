"""`hvdkit generate RUN`: continue prompts with a trained model, on one rank or divided over many."""

import argparse
import sys
from pathlib import Path

import torch

from hvdkit.checkpoint import find_model
from hvdkit.data import load_tokenizer
from hvdkit.errors import ConfigError
from hvdkit.models import generate, load_model
from hvdkit.runtime import World, end_job_on_error, gather_objects, init, together


def main(argv: list[str] | None = None) -> int:
    """Print one continuation per prompt, in order; returns the exit status."""
    options = _parser().parse_args(argv)
    with end_job_on_error():
        world = init()
        torch.set_num_threads(world.threads)
        texts = _continue(world, options)
        if world.is_root:
            print("\n---\n".join(texts))
    return 0


def _continue(world: World, options: argparse.Namespace) -> list[str]:
    folder = together(world, lambda: find_model(options.run))
    model, tokenizer = together(world, lambda: (load_model(folder).to(world.device), load_tokenizer(folder)))
    if model.objective != "causal":
        raise ConfigError(f"{options.run} holds a {model.objective} model; only causal models continue a text")
    mine = {
        number: generate(
            model,
            tokenizer,
            prompt,
            options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed + number,
        )
        for number, prompt in enumerate(options.prompt)
        if number % world.size == world.rank
    }
    texts: dict[int, str] = {}
    for part in gather_objects(world, mine):
        texts.update(part)
    return [texts[number] for number in range(len(options.prompt))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hvdkit generate", description="Continue prompts with a trained model.")
    parser.add_argument("run", type=Path, help="a run folder, a checkpoint, or a model folder")
    parser.add_argument("--prompt", nargs="+", default=["def "], help="one or more texts to continue (default: 'def ')")
    parser.add_argument("--tokens", type=_count, default=200, help="most tokens to add to each (default: 200)")
    parser.add_argument("--temperature", type=_share, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument(
        "--top-k", type=_count, default=40, help="choose among the k likeliest; 0 for all (default: 40)"
    )
    parser.add_argument("--seed", type=_count, default=0, help="of the random choice (default: 0)")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 0 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number, 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
