"""The text of every domain in three parts: to train on, to choose merges by, and held out for the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hvdkit.data import (
    Corpus,
    Domain,
    Samples,
    Tokenizer,
    join_samples,
    prepare_corpus,
    sample_range,
    spread_samples,
)
from hvdkit.errors import DataError
from hvdkit.runtime import World
from hvdkit.train.config import TrainConfig
from hvdkit.train.report import plural


@dataclass(frozen=True)
class DividedText:
    """One item per domain in each list. What merges are chosen by is never trained on, and never in the table."""

    domains: Sequence[Domain]
    corpora: Sequence[Corpus]
    training: Sequence[Samples]
    choosing: Sequence[Samples]
    held_out: Sequence[Samples]

    @property
    def tokenizer(self) -> Tokenizer:
        """Of all domains."""
        return self.corpora[0].tokenizer

    def mixture(self, samples_per_domain: int) -> Samples:
        """As many samples of each domain; those of a short one come again."""
        return join_samples([spread_samples(part, samples_per_domain) for part in self.training])


def prepare_domains(
    world: World,
    config: TrainConfig,
    domains: Sequence[Domain],
    tokenizer: Tokenizer | None,
    say: Callable[[str], None],
) -> list[Corpus]:
    """A corpus for each domain, all with one tokenizer. Collective; raises DataError on all ranks alike."""
    if tokenizer is None and config.tokenizer == "bpe":  # one vocabulary for all
        tokenizer = prepare_corpus(world, config.corpus, say=say).tokenizer
    parts = [replace(config.corpus, data=(domain.data,)) for domain in domains]
    return [prepare_corpus(world, part, context=config.context, say=say, tokenizer=tokenizer) for part in parts]


def divide_text(
    config: TrainConfig, domains: Sequence[Domain], corpora: Sequence[Corpus], objective: str
) -> DividedText:
    """Divide each domain's corpus. The last part of the training text, as much as is held out, is set aside to choose
    by. Of both `eval_batches` says how much is looked at. Raises DataError for a domain that is too short."""
    most = config.eval_batches * config.batch_size // len(domains)
    training: list[Samples] = []
    choosing: list[Samples] = []
    held_out: list[Samples] = []
    for domain, corpus in zip(domains, corpora, strict=True):
        train = corpus.samples("train", objective, config.context, config.seed)
        held = corpus.samples("validation", objective, config.context, config.seed)
        aside = max(1, round(len(train) * config.validation_share))
        cut = len(train) - aside
        if cut < 1:
            raise DataError(
                f"{domain.data}: {plural(len(train), 'sequence')} of {config.context} tokens: too few to train on some "
                "and choose merges by others"
            )
        training.append(sample_range(train, 0, cut))
        choosing.append(_some(sample_range(train, cut, len(train)), most and max(1, most // 4)))
        held_out.append(_some(held, most and max(1, most)))
    return DividedText(domains, corpora, training, choosing, held_out)


def _some(samples: Samples, most: int) -> Samples:
    return samples if not most or most >= len(samples) else spread_samples(samples, most)
