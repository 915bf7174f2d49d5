"""Ensembles over ranks against one process that computes all submodels and combines them plainly."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hvdkit as hvd
from hvdkit.errors import HvdkitError, MergeError
from hvdkit.runtime import World, gather_objects


def submodel(number: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(100 + number)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, classes)).to(dtype)


def inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def plainly(outputs: list[torch.Tensor], weights: list[float], combine: str) -> torch.Tensor:
    """By the definitions, all outputs at once."""
    if combine == "concatenate":
        return torch.cat(outputs, -1)
    stacked, w = torch.stack(outputs), torch.tensor(weights, dtype=outputs[0].dtype).view(-1, 1, 1, 1)
    if combine == "probabilities":
        stacked = stacked.softmax(-1)
    if combine == "vote":
        stacked = (stacked == stacked.max(-1, keepdim=True).values).to(stacked.dtype)
    mean = (stacked * w).sum(0) / w.sum()
    return mean.log() if combine == "probabilities" else mean


def numbers_on(world: World, rank: int, held: str) -> list[int]:
    """Which submodels a rank holds: one each; two each; or, in the last case, all on the last rank."""
    if held == "one":
        return [rank]
    if held == "two":
        return [2 * rank, 2 * rank + 1]
    return [0, 1, 2] if rank == world.size - 1 else []


@pytest.mark.parametrize("held", ["one", "two", "last rank"])
@pytest.mark.parametrize("combine", ["probabilities", "logits", "vote", "concatenate"])
def test_equals_one_process(world: World, combine: Any, held: str) -> None:
    everything = [number for rank in range(world.size) for number in numbers_on(world, rank, held)]
    mine = [submodel(number) for number in numbers_on(world, world.rank, held)]
    weights = None if combine == "concatenate" else [1.0 + number for number in numbers_on(world, world.rank, held)]
    found = hvd.Ensemble(world, mine, weights, combine)(inputs())
    with torch.no_grad():
        outputs = [submodel(number)(inputs()) for number in everything]
    wanted = plainly(outputs, [1.0 + number for number in everything], combine)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    assert len(set(gather_objects(world, found.numpy().tobytes()))) == 1, "the same bits everywhere"


def test_its_cross_entropy_is_the_ensembles(world: World) -> None:
    targets = torch.arange(28).reshape(4, 7) % 5
    found = hvd.Ensemble(world, submodel(world.rank))(inputs())
    loss = F.cross_entropy(found.flatten(0, 1), targets.flatten())
    with torch.no_grad():
        mean = torch.stack([submodel(rank)(inputs()).softmax(-1) for rank in range(world.size)]).mean(0)
    assert float(loss) == pytest.approx(float(-mean.gather(-1, targets[..., None]).log().mean()))


def test_a_vote_is_a_majority(world: World) -> None:
    """Rank r votes for class r, all but the first and with its weight; the first has the smallest."""
    model = nn.Identity()
    votes = F.one_hot(torch.tensor([min(world.rank, 1)]), 3).float()
    shares = hvd.Ensemble(world, model, 1.0 + world.rank, "vote")(votes)
    total = world.size * (world.size + 1) / 2
    assert shares.tolist()[0] == pytest.approx([1 / total, 1 - 1 / total, 0.0])


def test_low_precision_and_rare_classes(world: World) -> None:
    """16-bit outputs are combined in float32; what all rule out stays finite; concatenated widths may differ."""
    model = submodel(world.rank, dtype=torch.bfloat16)
    found = hvd.Ensemble(world, model)(inputs(torch.bfloat16))
    assert found.dtype == torch.float32
    with torch.no_grad():
        outputs = [submodel(rank, dtype=torch.bfloat16)(inputs(torch.bfloat16)).float() for rank in range(world.size)]
    assert torch.allclose(found, plainly(outputs, [1.0] * world.size, "probabilities"), atol=1e-5)
    assert hvd.Ensemble(world, nn.Identity())(torch.tensor([[0.0, -500.0]])).isfinite().all()
    wide = hvd.Ensemble(world, submodel(world.rank, classes=2 + world.rank), combine="concatenate")(inputs())
    assert wide.shape == (4, 7, sum(2 + rank for rank in range(world.size)))


def test_submodels_do_not_drop_out(world: World) -> None:
    ensemble = hvd.Ensemble(world, nn.Sequential(nn.Dropout(0.5)).train(), combine="logits")
    assert torch.equal(ensemble(torch.ones(2, 3)), torch.ones(2, 3))


def test_faults_reach_every_rank(world: World) -> None:
    one, last = submodel(0), world.rank == world.size - 1
    for weights, text in ((-1.0 if last else 1.0, "0 or more"), ([1.0, 2.0], "2 weights for 1 submodels"),
                          (0.0, "not all 0"), (float("nan"), "finite")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            hvd.Ensemble(world, one, weights)
    with pytest.raises(ValueError, match="probabilities, logits, vote, concatenate"):
        hvd.Ensemble(world, one, combine="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one rank"):
        hvd.Ensemble(world, [])
    with pytest.raises(ValueError, match="concatenation has no weights"):
        hvd.Ensemble(world, one, 2.0, "concatenate")
    ensemble = hvd.Ensemble(world, submodel(0, classes=4 if last else 5))
    if world.size > 1:
        with pytest.raises(MergeError, match="outputs differ"):
            ensemble(inputs())
    with pytest.raises(HvdkitError, match="RuntimeError"):
        ensemble(torch.ones(2, 99 if last else 3, dtype=torch.float64))
    with pytest.raises(MergeError, match="must return logits"):
        hvd.Ensemble(world, nn.Identity())(torch.ones(2, dtype=torch.int64))
