"""Sparse gradients (of embeddings): every rank's rows are gathered, scaled and added up by coalescing.

Each rank sends its rows p-1 times. Source: Horovod's sparse all-reduce, an all-gather of indices and values.
"""

import torch

from hvdkit.collectives import Collectives, HorovodEngine


def _rows(parameter: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (n, 1) and values (n, ...) of `parameter.grad` times `factor`; no rows where there is none."""
    like, gradient = parameter, parameter.grad.mul(factor) if parameter.grad is not None and factor else None
    if gradient is None:
        gradient = torch.sparse_coo_tensor(
            torch.zeros((1, 0), dtype=torch.int64, device=like.device),
            torch.zeros((0, *like.shape[1:]), dtype=like.dtype, device=like.device),
            like.shape,
            check_invariants=False,
        )
    gradient = (gradient if gradient.is_sparse else gradient.to_sparse(1)).coalesce()
    return gradient.indices().t().contiguous(), gradient.values().contiguous()


def _summed(indices: torch.Tensor, values: torch.Tensor, like: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.sparse_coo_tensor(indices.t(), values * scale, like.shape, check_invariants=False).coalesce()


def exchanged_sparse(
    collectives: Collectives, parameter: torch.Tensor, factor: float, name: str, *, is_used: bool, scale: float
) -> torch.Tensor | None:
    """The ranks' sum of `parameter.grad` times `factor`, all times `scale`. Collective if `is_used`.

    `is_used` says whether any rank has a gradient (None otherwise); with factor 0 this rank's counts for nothing.
    """
    if not is_used:
        return None
    indices, values = _rows(parameter, factor)
    return _summed(
        collectives.all_gather(indices, f"{name}.indices"),
        collectives.all_gather(values, f"{name}.values"),
        parameter,
        scale,
    )


class SparseOnTheWay:
    """The same over Horovod's engine, begun before it is known whether any rank has a gradient, and without waiting.

    So other exchanges may be under way, in another order on each rank. Collective.
    """

    def __init__(self, engine: HorovodEngine, parameter: torch.Tensor, factor: float, name: str) -> None:
        self._parameter = parameter
        indices, values = _rows(parameter, factor)
        self._works = (
            engine.all_gather_async(indices, f"{name}.indices"),
            engine.all_gather_async(values, f"{name}.values"),
        )

    def wait(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Until the rows of all ranks are here."""
        indices, values = (work.wait() for work in self._works)
        return indices, values

    def summed(self, *, is_used: bool, scale: float) -> torch.Tensor | None:
        """As `exchanged_sparse` returns it."""
        indices, values = self.wait()
        return _summed(indices, values, self._parameter, scale) if is_used else None
