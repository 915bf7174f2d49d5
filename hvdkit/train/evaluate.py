"""`hvdkit evaluate RUN`: the exact loss of a trained model on text, on one rank or divided over many."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hvdkit.checkpoint import find_model
from hvdkit.data import CorpusConfig, load_tokenizer, prepare_corpus
from hvdkit.models import load_model
from hvdkit.runtime import World, end_job_on_error, init, together
from hvdkit.train.config import parse
from hvdkit.train.loss import evaluate
from hvdkit.train.run_folder import saved_config


def main(argv: list[str] | None = None) -> int:
    """Print the loss; returns the exit status."""
    options = _parser().parse_args(argv)
    with end_job_on_error():
        world = init()
        torch.set_num_threads(world.threads)
        result = _measure(world, options)
        if world.is_root:
            print(json.dumps(result) if options.json else _sentence(result))
    return 0


def _measure(world: World, options: argparse.Namespace) -> dict[str, Any]:
    folder = together(world, lambda: find_model(options.run))
    model, tokenizer = together(world, lambda: (load_model(folder).to(world.device), load_tokenizer(folder)))
    context = min(model.context, options.context) if options.context else model.context
    corpus = prepare_corpus(world, _corpus_config(options), context=context, tokenizer=tokenizer)
    samples = corpus.samples(options.part, model.objective, context)
    total = evaluate(world, model, samples, options.batch_size)
    result: dict[str, Any] = {
        "loss_nats_per_token": total.mean(),
        "perplexity": math.exp(min(700.0, total.mean())),
        "targets": total.targets,
        "part": options.part,
    }
    if model.objective == "causal" and options.part == "validation":
        result["loss_nats_per_byte"] = corpus.nats_per_byte(total.mean())
    return result


def _corpus_config(options: argparse.Namespace) -> CorpusConfig:
    """The run's own text, divided as it was for training, but for what the command line says."""
    saved = saved_config(options.run)
    config = parse([], defaults=saved).corpus if saved else CorpusConfig()
    if options.data:
        config = replace(config, data=tuple(options.data))
    if options.validation_share is not None:
        config = replace(config, validation_share=options.validation_share)
    return replace(config, tokens="bytes")  # unused: the model's own tokenizer is


def _sentence(result: dict[str, Any]) -> str:
    per_byte = f", {result['loss_nats_per_byte']:.4f} nats/byte" if "loss_nats_per_byte" in result else ""
    return (
        f"{result['part']} loss {result['loss_nats_per_token']:.4f} nats/token{per_byte}, "
        f"perplexity {result['perplexity']:.2f}, over {result['targets']:,} targets"
    )


def _at_least_1(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hvdkit evaluate", description="Measure the loss of a trained model.")
    parser.add_argument("run", type=Path, help="a run folder, a checkpoint, or a model folder")
    parser.add_argument("--data", nargs="*", default=[], help="as for training; default: what the run trained on")
    parser.add_argument("--validation-share", type=float, help="share of the text held out; default: as in the run")
    parser.add_argument("--part", choices=["validation", "train"], default="validation", help="which part of the data")
    parser.add_argument("--batch-size", type=_at_least_1, default=16, help="sequences at once and rank (default: 16)")
    parser.add_argument("--context", type=_at_least_1, help="tokens per sequence; default: the model's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
