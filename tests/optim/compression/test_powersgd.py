"""Low rank: exact where the gradient is of low rank, otherwise as good as the best approximation in the end."""

import pytest
import torch

from hvdkit.optim.compression import PowerSGD
from hvdkit.optim.compression.powersgd import orthonormal
from hvdkit.runtime import World
from tests.optim.compression.counting import collectives_of
from tests.optim.compression.problems import assert_same_bits, contribution

MATRIX = torch.Size((60, 45))


def factors(rank: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """This rank's part: a (60, 45) matrix of rank `columns`, with the column space that all ranks share."""
    left = contribution(0, 1, 60 * columns, dtype).view(60, columns)
    return left @ contribution(rank, 2, 45 * columns, dtype).view(columns, 45)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("kind", ["naive", "engine"])
def test_low_rank_is_exact(world: World, kind: str, columns: int, dtype: torch.dtype, tolerance: float) -> None:
    state = PowerSGD(rank=4).for_bucket([MATRIX], dtype, "cpu")
    wanted = torch.stack([factors(rank, columns, dtype) for rank in range(world.size)]).sum(dim=0)
    for _ in range(4):
        flat = factors(world.rank, columns, dtype).flatten()
        state.sum_(flat, "test", collectives_of(kind, world))
        assert_same_bits(world, flat)
        assert (flat.view(MATRIX) - wanted).norm() < tolerance * wanted.norm()


def test_warm_start_finds_the_best_approximation(world: World) -> None:
    """Without what is kept of errors, repeated steps on one matrix reach the truncated singular decomposition."""
    whole = contribution(0, 3, MATRIX.numel(), torch.float64).view(MATRIX)
    left, _, right = torch.linalg.svd(whole, full_matrices=False)
    whole = left @ torch.diag(0.6 ** torch.arange(45, dtype=torch.float64)) @ right
    best = (0.6 ** torch.arange(4, 45, dtype=torch.float64)).norm()
    state = PowerSGD(rank=4).for_bucket([MATRIX], torch.float64, "cpu")
    for _ in range(40):
        state.state_dict()[0]["error"].zero_()
        flat = (whole / world.size).flatten()
        state.sum_(flat, "test", collectives_of("naive", world))
    assert (flat.view(MATRIX) - whole).norm() == pytest.approx(float(best), rel=1e-6)


def test_vectors_are_exact_and_travel_with_all_p(world: World) -> None:
    """Two all-reduces per bucket; a matrix smaller than its factors is sent whole."""
    shapes = [torch.Size(s) for s in [(60, 45), (45,), (), (3, 4), (100, 30)]]
    state, collectives = PowerSGD(rank=4).for_bucket(shapes, torch.float32, "cpu"), collectives_of("naive", world)
    flat = contribution(world.rank, 0, 2700 + 45 + 1 + 12 + 3000)
    sent = state.sum_(flat, "test", collectives)
    exact = torch.stack([contribution(r, 0, len(flat)) for r in range(world.size)]).double().sum(dim=0).float()
    assert torch.equal(flat[2700:2758], exact[2700:2758])
    assert not torch.equal(flat[:2700], exact[:2700]) and not torch.equal(flat[2758:], exact[2758:])
    columns = 4 * (60 + 100), 4 * (45 + 30)
    assert collectives.calls == [
        f"all_reduce test.p ({58 + columns[0]},) torch.float32",
        f"all_reduce test.q ({columns[1]},) torch.float32",
    ]
    assert sent == pytest.approx(2 * (world.size - 1) / world.size * 4 * (58 + sum(columns)))
    assert [sorted(entry) for entry in state.state_dict()] == [["error", "q"], [], [], [], ["error", "q"]]


def test_an_untouched_start_does_not_silence_a_direction(world: World) -> None:
    """An embedding: rows that had no gradient so far get one, in directions that Q does not hold."""
    shape = torch.Size((200, 40))
    state = PowerSGD(rank=4).for_bucket([shape], torch.float32, "cpu")
    received = torch.zeros(shape)
    wanted = torch.zeros(shape)
    for step in range(60):
        gradient = torch.zeros(shape)
        if step < 20:
            gradient[100 + step, step % 40] = 1.0
        wanted += gradient * world.size
        flat = gradient.flatten()
        state.sum_(flat, "test", collectives_of("naive", world))
        received += flat.view(shape)
    assert (received - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_orthonormal(dtype: torch.dtype, tolerance: float) -> None:
    """Rows orthonormal or zero, the same span; of any size and condition."""
    tall = contribution(0, 0, 3000 * 4, dtype).view(3000, 4)
    twice = tall[:, [0, 1, 0, 1]]
    uneven = tall * torch.tensor([1, 1e-2, 1e-4, 1e-5], dtype=dtype)
    cases = [tall, twice, uneven, tall * 1e30, tall * 1e-30, torch.zeros(5, 4, dtype=dtype), tall[:4]]
    ranks = [4, 2, 4, 4, 4, 0, 4]
    for matrix, rows, rank in zip(cases, orthonormal([case.t() for case in cases]), ranks, strict=True):
        result = rows.t()
        gram = result.double().t() @ result.double()
        lengths = gram.diagonal()
        assert int((lengths > 0.5).sum()) == rank
        torch.testing.assert_close(gram, torch.diag((lengths > 0.5).double()), rtol=0, atol=tolerance)
        scale = matrix.abs().max().clamp_min(1e-37)
        missed = matrix / scale - result @ (result.t() @ (matrix / scale))
        assert missed.norm() <= 1e-5 * (matrix / scale).norm()


def test_orthonormal_is_the_same_for_any_number_of_threads() -> None:
    tall = contribution(0, 0, 50_000 * 4).view(50_000, 4)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(orthonormal([tall.t().contiguous()])[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_options() -> None:
    with pytest.raises(ValueError, match="rank=0 must be 1 or more"):
        PowerSGD(rank=0)
