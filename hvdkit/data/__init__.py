"""Text becomes token ids on disk, and token ids become batches, the same whatever the number of ranks.

    config = CorpusConfig(data=("books/*.txt",), tokens="bpe", vocab_size=8192)
    corpus = prepare_corpus(world, config, context=128)            # collective; raises DataError on all ranks alike
    samples = corpus.samples("train", "causal", 128, seed)          # or "validation"; or "masked"
    sampler = ShardedSampler(len(samples), global_batch, world.rank, world.size, seed)
    position = Position()                                           # two ints: epoch, and samples consumed of it
    batch = samples.batch(sampler.indices(position), position.epoch)  # Batch(inputs, targets, n_targets)
    position = sampler.following(position)

    for indices in evaluation_indices(len(held_out), batch_size, world.rank, world.size):
        batch = held_out.batch(indices)                             # no epoch: masks are fixed
    corpus.nats_per_byte(nats_per_token)                            # of the validation part

With workers: `DataLoader(BatchDataset(samples, sampler), batch_size=None, sampler=sampler.positions(position, steps))`.
"""

from hvdkit.data.batches import IGNORED, Batch, CausalSamples, MaskedSamples, Samples
from hvdkit.data.byte_tokens import ByteTokenizer
from hvdkit.data.corpus import Corpus, CorpusConfig
from hvdkit.data.domains import Domain, find_domains
from hvdkit.data.loader import BatchDataset
from hvdkit.data.prepare import prepare_corpus
from hvdkit.data.sampler import Position, ShardedSampler, evaluation_indices
from hvdkit.data.selected import SelectedSamples, join_samples, sample_range, spread_samples
from hvdkit.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, save_tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "BatchDataset",
    "ByteTokenizer",
    "CausalSamples",
    "Corpus",
    "CorpusConfig",
    "Domain",
    "MaskedSamples",
    "Position",
    "Samples",
    "SelectedSamples",
    "ShardedSampler",
    "Tokenizer",
    "evaluation_indices",
    "find_domains",
    "has_tokenizer",
    "join_samples",
    "load_tokenizer",
    "prepare_corpus",
    "sample_range",
    "save_tokenizer",
    "spread_samples",
]
