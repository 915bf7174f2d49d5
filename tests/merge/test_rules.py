"""Every merge rule against its reference, the papers' worked cases by hand, and what must hold for all of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hvdkit.errors import MergeError
from hvdkit.merge import RULES, Settings, merge_states
from hvdkit.merge.blocks import BLOCK_ELEMENTS, Grid
from hvdkit.merge.order_statistics import by_sorting, order_statistics
from hvdkit.merge.sparsify import SPARSIFIERS, Place
from tests.merge.references import reference

WEIGHTS = [0.5, 1.0, 0.25]
BY_CHANCE = ("dare_linear", "dare_ties", "della_linear", "della")
EXACT = [name for name in RULES if name not in BY_CHANCE]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, count: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    """`count` tensors around a base, which comes second."""
    random = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=random, dtype=torch.float64)
    return [
        (base + torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype) for _ in range(count)
    ], base.to(dtype)


def merge(name: str, models: list[torch.Tensor], base: torch.Tensor | None, **more: Any) -> torch.Tensor:
    """One tensor by way of `merge_states`."""
    from_base = None if base is None else {"x": base}
    return merge_states([{"x": model} for model in models], name, base=from_base, **more)["x"]


@pytest.mark.parametrize("density", [0.3, 0.9])
@pytest.mark.parametrize("shape", [(1,), (7,), (20, 15), (3, 4, 5)])
@pytest.mark.parametrize("name", EXACT)
def test_equals_the_reference(name: str, shape: tuple[int, ...], density: float) -> None:
    count = RULES[name].only_models or 3
    if shape == (1,) and RULES[name].combiner == "spherical":
        shape = (4,)  # numbers have no angles, and the reference wants more dimensions than tensors
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        models, base = tensors(shape, dtype, count)
        scale = 0.7 if RULES[name].has_base else 1.0
        merged = merge(name, models, base, weights=WEIGHTS[:count], density=density, scale=scale)
        wanted = reference(
            name, [model.double().numpy() for model in models], base.double().numpy(), WEIGHTS[:count],
            density=density, scale=scale,
        )  # fmt: skip
        assert merged.dtype == dtype and merged.shape == base.shape
        assert np.abs(merged.double().numpy() - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["average", "karcher", "ties", "breadcrumbs", "model_stock"])
def test_a_tensor_of_several_blocks(name: str) -> None:
    shape = (3, BLOCK_ELEMENTS // 2 + 5)
    models, base = tensors(shape, torch.float32)
    assert len(Grid(shape).blocks()) == 3
    merged = merge(name, models, base, weights=WEIGHTS, density=0.4)
    # The consensus by the vectorised formula: the reference's loop would take a minute here.
    if name == "ties":
        vectors = np.stack([model.double().numpy() - base.double().numpy() for model in models])
        threshold = np.sort(np.abs(vectors).reshape(3, -1), axis=1)[:, -round(0.4 * base.numel())]
        vectors *= np.abs(vectors) >= threshold[:, None, None]
        weighted = vectors * np.array(WEIGHTS)[:, None, None]
        agrees = np.sign(vectors) == np.sign(weighted.sum(axis=0))
        votes = (agrees * np.array(WEIGHTS)[:, None, None] * (vectors != 0)).sum(axis=0)
        wanted = base.double().numpy() + (weighted * agrees).sum(axis=0) / np.where(votes, votes, 1)
    else:
        wanted = reference(name, [m.double().numpy() for m in models], base.double().numpy(), WEIGHTS, density=0.4)
    assert np.abs(merged.double().numpy() - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_slerp_by_its_formula() -> None:
    (one, other), _ = tensors((6, 5), torch.float64, count=2)
    angle = torch.arccos((one * other).sum() / one.norm() / other.norm())
    for t in (0.0, 0.3, 0.5, 1.0):
        wanted = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other) / torch.sin(angle)
        assert torch.allclose(merge("slerp", [one, other], None, weights=[1 - t, t]), wanted, rtol=1e-9, atol=1e-12)


def test_slerp_of_equal_opposite_and_zero_tensors() -> None:
    one = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(merge("slerp", [one, one], None), one)
    assert torch.allclose(merge("slerp", [one, -one], None, weights=[3, 1]), one / 2)
    assert torch.allclose(merge("slerp", [one, torch.zeros_like(one)], None), one / 2)


def sparsified(name: str, vector: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    settings = Settings(RULES["dare_ties"], (1.0,), (density,), epsilon=0.2)
    result = vector.clone()
    place = Place(vector.shape[-1], torch.Generator().manual_seed(seed))
    SPARSIFIERS[name].apply_(result.view(-1), (), density, settings, place)
    return result


@pytest.mark.parametrize("name", ["dare", "della"])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_what_is_dropped_by_chance_is_made_up_for(name: str, density: float) -> None:
    vector = torch.randn(50, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    runs = torch.stack([sparsified(name, vector, density, seed) for seed in range(600)])
    assert abs(float((runs != 0).double().mean()) - density) < 0.01
    error = (runs.mean(dim=0) - vector).abs()
    assert bool((error <= 5.5 * runs.std(dim=0) / 600**0.5 + 1e-12).all())


def test_dare_divides_by_the_density_and_della_keeps_large_ones() -> None:
    vector = torch.arange(1.0, 1001.0, dtype=torch.float64)
    kept = sparsified("dare", vector, 0.25, 0)
    assert torch.equal(kept[kept != 0], vector[kept != 0] * 4)
    draws = torch.stack([sparsified("della", vector, 0.5, seed) != 0 for seed in range(400)]).double()
    assert abs(float(draws.mean(dim=0)[-100:].mean()) - 0.59) < 0.02  # 0.6 for the largest, 0.4 for the smallest
    assert abs(float(draws.mean(dim=0)[:100].mean()) - 0.41) < 0.02


def test_ties_by_hand() -> None:
    """Two task vectors that conflict in the third element, where the larger sum elects the sign."""
    base = torch.zeros(4)
    one, other = torch.tensor([1.0, 0.1, -4.0, 3.0]), torch.tensor([3.0, 0.2, 1.0, 0.0])
    # 0.1 is trimmed of the first, 0 of the second.
    assert merge("ties", [one, other], base, density=0.75).tolist() == pytest.approx([2.0, 0.2, -4.0, 3.0])


def test_breadcrumbs_by_hand() -> None:
    """Of ten elements the largest is an outlier, and half are kept below it."""
    vector = torch.tensor([10.0, -9, 8, -7, 6, -5, 4, -3, 2, -1])
    merged = merge("breadcrumbs", [vector], torch.zeros(10), density=0.5, gamma=0.1)
    assert merged.tolist() == [0, -9, 8, -7, 6, -5, 0, 0, 0, 0]


def test_model_stock_by_hand() -> None:
    """Task vectors at 60 degrees: t = 2 x 0.5 / 1.5; at right angles the base stays."""
    base = torch.zeros(2, dtype=torch.float64)
    one, other = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.5, 0.75**0.5]).double()
    assert torch.allclose(merge("model_stock", [one, other], base), (one + other) / 2 * (2 / 3))
    assert torch.allclose(merge("model_stock", [one, torch.tensor([0.0, 1.0]).double()], base), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_statistics_of_blocks(dtype: torch.dtype) -> None:
    values = torch.randn(2, 1000, generator=torch.Generator().manual_seed(3), dtype=dtype)
    values[1, 100:400] = -0.25  # equal ones, and zeros, and the smallest numbers there are
    values[1, 400:450] = 0
    values[0, 7] = torch.finfo(dtype).tiny / 4
    ranks = [(1, 2, 500, 999, 1000), (1, 650, 950, 951)]
    found = order_statistics(lambda: values.split(300, dim=1), ranks, dtype)
    assert found == by_sorting(values, ranks)
    for row, ranks_of_one, found_of_one in zip(values, ranks, found, strict=True):
        by_size = row.abs().sort(descending=True).values
        assert found_of_one == [float(by_size[rank - 1]) for rank in ranks_of_one]


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (5, 7), (3, BLOCK_ELEMENTS * 2 + 1), (BLOCK_ELEMENTS, 3)])
def test_a_grid_covers_its_tensor_in_whole_rows(shape: tuple[int, ...]) -> None:
    grid = Grid(shape)
    blocks = grid.blocks()
    places = [place for block in blocks for place in (block.start, block.stop)]
    assert places == sorted(places) and sum(block.stop - block.start for block in blocks) == math.prod(shape)
    for block in blocks:
        assert 0 < block.stop - block.start <= BLOCK_ELEMENTS
        in_one_row = block.start // grid.width == (block.stop - 1) // grid.width
        assert in_one_row or block.start % grid.width == block.stop % grid.width == 0


@pytest.mark.parametrize("name", RULES)
def test_what_holds_for_every_rule(name: str) -> None:
    count = RULES[name].only_models or 3
    models, base = tensors((3, 4), torch.float32, count)
    more: dict[str, Any] = {"weights": WEIGHTS[:count], "density": 0.5}
    assert torch.equal(merge(name, models, base, **more), merge(name, models, base, **more))
    # Submodels that are their base merge to the base.
    assert torch.allclose(merge(name, [base] * count, base, **more), base, rtol=1e-6)
    for shape in ((1,), (0,), ()):  # fewer elements than 1 / density
        few, from_base = tensors(shape, torch.float32, count)
        merged = merge(name, few, from_base, **more)
        assert merged.shape == torch.Size(shape) and bool(merged.isfinite().all())
    same = torch.arange(4)
    assert torch.equal(merge(name, [same] * count, same, **more), same)
    tied = [{"one": model, "other": model} for model in models]
    merged_tied = merge_states(tied, name, base={"one": base, "other": base}, **more)
    assert merged_tied["one"].data_ptr() == merged_tied["other"].data_ptr()
    models[-1][1, 1] = float("nan")
    with pytest.raises(MergeError, match=f"submodel {count - 1}: x holds NaN"):
        merge(name, models, base, **more)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("average", {"weights": [1.0, -1.0]}, "add up to 0"),
        ("average", {"weights": [1.0]}, "2 submodels with 1 weights"),
        ("slerp", {"weights": [2.0, -1.0]}, "must not be negative"),
        ("ties", {"density": 0.0}, r"density 0, 0 must be in \(0, 1\]"),
        ("ties", {"density": float("nan")}, "density nan, nan must be"),
        ("breadcrumbs", {"density": 0.95, "gamma": 0.1}, "add up to more than 1"),
        ("ties", {"base": None}, "pass base="),
        ("ties", {"weights": [1.0, float("inf")]}, "must be finite"),
        ("tie", {}, "is not one of average, slerp"),
        ("average", {"scale": 2.0}, "scale"),
    ],
)
def test_settings_that_cannot_be(name: str, change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"base": {"x": torch.zeros(2)}, **change}
    with pytest.raises(ValueError, match=said):
        merge_states([{"x": torch.zeros(2)}, {"x": torch.ones(2)}], name, **given)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"x": torch.zeros(3)}, r"x is \(2,\) in submodel 0 and \(3,\) in 1"),
        ({"y": torch.zeros(2)}, "submodel 1 has no x"),
        ({"x": torch.zeros(2), "y": torch.zeros(2)}, "submodel 0 has no y"),
    ],
)
def test_submodels_that_do_not_fit(other: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(MergeError, match=said):
        merge_states([{"x": torch.zeros(2)}, other])


def test_whole_numbers_that_differ() -> None:
    with pytest.raises(MergeError, match=r"torch\.int64 and not the same"):
        merge_states([{"x": torch.tensor([1])}, {"x": torch.tensor([2])}])
