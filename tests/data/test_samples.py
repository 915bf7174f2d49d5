"""Samples ask for every token once, and hide as many as BERT does, whatever the number of ranks."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdkit.data.batches import IGNORED, Batch, CausalSamples, MaskedSamples
from hvdkit.data.sampler import Position, ShardedSampler

PAD, MASK, EOT, VOCABULARY = 258, 257, 256, 259


def stream(n: int) -> np.ndarray:
    """(n,) uint16 ids of bytes, with an end of text now and then."""
    ids = np.random.Generator(np.random.PCG64(3)).integers(0, 256, n).astype(np.uint16)
    ids[::97] = EOT
    return ids


def masked(ids: np.ndarray, context: int = 32, seed: int = 0) -> MaskedSamples:
    return MaskedSamples(ids, context, PAD, mask_id=MASK, vocab_size=VOCABULARY, seed=seed, kept_ids=(EOT,))


@pytest.mark.parametrize("context", [1, 2, 5, 32])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 6, 10, 11, 12, 100])
def test_causal_samples_ask_for_each_token_but_the_first_once(n: int, context: int) -> None:
    ids = stream(n)
    samples = CausalSamples(ids, context, PAD)
    batch = samples.batch(range(len(samples)))
    assert batch.inputs.shape == batch.targets.shape == (len(samples), context)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    asked = batch.targets != IGNORED
    assert batch.targets[asked].tolist() == ids[1:].tolist()
    assert batch.inputs[asked].tolist() == ids[:-1].tolist()
    assert (batch.inputs[~asked] == PAD).all()
    assert batch.n_targets == max(0, n - 1)
    assert not asked[:-1].logical_not().any(), "only the last sample is filled up"


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000])
def test_masked_samples_hide_tokens_and_ask_for_those_only(n: int) -> None:
    ids = stream(n)
    samples = masked(ids)
    assert len(samples) == -(-n // 32)
    batch = samples.batch(range(len(samples)), epoch=0)
    inputs, targets = batch.inputs.flatten()[:n], batch.targets.flatten()[:n]
    asked = targets != IGNORED
    assert (targets[asked] == torch.from_numpy(ids.astype(np.int64))[asked]).all()
    assert (inputs[~asked] == torch.from_numpy(ids.astype(np.int64))[~asked]).all()
    assert not (targets == EOT).any()
    assert (batch.inputs.flatten()[n:] == PAD).all() and (batch.targets.flatten()[n:] == IGNORED).all()
    assert batch.n_targets == int(asked.sum())


def test_masked_samples_hide_in_berts_proportions() -> None:
    ids = stream(200_000)
    samples = masked(ids, context=100)
    batch = samples.batch(range(len(samples)), epoch=3)
    whole = torch.from_numpy(ids.astype(np.int64)).view(-1, 100)
    asked = batch.targets != IGNORED
    n = int(asked.sum())
    eligible = int((whole != EOT).sum())
    assert n / eligible == pytest.approx(0.15, abs=0.004)  # 5 standard deviations
    hidden = batch.inputs[asked] == MASK
    left = batch.inputs[asked] == whole[asked]
    assert hidden.sum().item() / n == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.012)
    assert left.sum().item() / n == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.009)
    others = batch.inputs[asked][~hidden & ~left]
    # Drawn evenly from the whole vocabulary.
    assert torch.bincount(others, minlength=VOCABULARY).max() < 40
    assert others.double().mean().item() == pytest.approx((VOCABULARY - 1) / 2, abs=7)


def test_masks_depend_on_seed_epoch_and_sample_and_on_nothing_else() -> None:
    ids = stream(5000)
    samples = masked(ids)
    everything = samples.batch(range(len(samples)), epoch=1)
    backwards = samples.batch(range(len(samples))[::-1], epoch=1)
    assert torch.equal(everything.inputs, backwards.inputs.flip(0))
    assert torch.equal(everything.targets, backwards.targets.flip(0))
    for other in (samples.batch(range(len(samples)), epoch=2), masked(ids, seed=1).batch(range(len(samples)), epoch=1)):
        assert not torch.equal(everything.targets, other.targets)
    fixed = samples.batch(range(len(samples)))
    assert torch.equal(fixed.inputs, samples.batch(range(len(samples)), None).inputs)
    assert not torch.equal(fixed.targets, samples.batch(range(len(samples)), epoch=0).targets)
    rows = [tuple(row) for row in (everything.targets != IGNORED).tolist()]
    assert len(set(rows)) > len(rows) * 0.9, "samples hide different places"


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_global_batch_is_the_same_for_any_number_of_ranks(kind: str) -> None:
    ids = stream(3210)
    samples = CausalSamples(ids, 32, PAD) if kind == "causal" else masked(ids)
    for position in (Position(0, 0), Position(2, 91)):
        batches = []
        for size in (1, 2, 3, 8):
            samplers = [ShardedSampler(len(samples), 13, rank, size, seed=4) for rank in range(size)]
            parts = [samples.batch(sampler.indices(position), position.epoch) for sampler in samplers]
            whole = Batch(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]), 0)
            batches.append((whole.inputs, whole.targets, sum(p.n_targets for p in parts)))
        for inputs, targets, n_targets in batches[1:]:
            assert torch.equal(inputs, batches[0][0]) and torch.equal(targets, batches[0][1])
            assert n_targets == batches[0][2]


def test_batch_splits_in_order_and_an_empty_one_stays_one() -> None:
    samples = CausalSamples(stream(300), 32, PAD)
    batch = samples.batch(range(len(samples)))
    for rows in (1, 3, 4, 100):
        parts = batch.split(rows)
        assert [len(part.inputs) for part in parts[:-1]] == [rows] * (len(parts) - 1)
        assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
        assert sum(part.n_targets for part in parts) == batch.n_targets == 299
    empty = samples.batch([])
    assert empty.inputs.shape == (0, 32) and empty.n_targets == 0
    assert [part.inputs.shape for part in empty.split(4)] == [(0, 32)]
    with pytest.raises(ValueError, match="rows=0"):
        batch.split(0)


def test_sample_outside_is_an_error() -> None:
    samples = CausalSamples(stream(100), 32, PAD)
    for index in (-1, len(samples)):
        with pytest.raises(IndexError, match=f"sample {index} is not one of 4"):
            samples.batch([index])
    with pytest.raises(ValueError, match="context=0"):
        CausalSamples(stream(100), 0, PAD)


def test_pickled_samples_map_the_file_again(tmp_path: Path) -> None:
    """A worker process must not be sent the whole corpus."""
    ids = stream(400_000)
    (tmp_path / "train.bin").write_bytes(ids.tobytes())
    mapped = np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r")
    samples = masked(mapped)
    sent = pickle.dumps(samples)
    assert len(sent) < 2000
    for other in (pickle.loads(sent), copy.deepcopy(samples)):
        assert isinstance(other.ids, np.memmap)
        assert torch.equal(other.batch([7, 9], 1).inputs, samples.batch([7, 9], 1).inputs)
    # Ids that are not in a file travel with the samples.
    assert np.array_equal(pickle.loads(pickle.dumps(CausalSamples(ids, 8, PAD))).ids, ids)
