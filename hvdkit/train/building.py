"""What a run is made of: tokenizer, initial model, optimizer."""

from pathlib import Path
from typing import Any

import torch

from hvdkit.data import Tokenizer, has_tokenizer, load_tokenizer
from hvdkit.errors import CheckpointError
from hvdkit.models import LanguageModel, build_model, load_model
from hvdkit.train.config import TrainConfig


def tokenizer_of(source: Path | None) -> Tokenizer | None:
    """The tokenizer of the model in the folder `source`, if it has one."""
    return load_tokenizer(source) if source is not None and has_tokenizer(source) else None


def initial_model(config: TrainConfig, tokenizer: Tokenizer, source: Path | None) -> LanguageModel:
    """The model that training starts from, on the CPU: that in the folder `source`, or a new one, with weights from
    torch's generator. Raises CheckpointError if it does not take the run's tokens and sequences."""
    if source is not None:
        model = load_model(source)
    else:
        model = build_model(config.model, tokenizer.vocab_size, config.context, tokenizer)
    if model.vocab_size < tokenizer.vocab_size or model.context < config.context:
        raise CheckpointError(
            f"{source}: its model takes {model.vocab_size} token ids and sequences of {model.context}, the run has "
            f"{tokenizer.vocab_size} and {config.context}; use --context {model.context} or less"
        )
    return model.to(torch.float64 if config.precision == "float64" else torch.float32)


def make_optimizer(model: LanguageModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays matrices only, fused where this torch has a fused AdamW for the device."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": config.lr, "betas": (0.9, config.beta2)}
    try:  # with copies, since a constructor that raises has written its options into them
        return torch.optim.AdamW([dict(group) for group in groups], **options, fused=True)
    except RuntimeError:  # CPUs before torch 2.4
        return torch.optim.AdamW(groups, **options)
