"""Sparse gradients (of embeddings): every rank's rows are gathered, scaled and added up by coalescing."""

import torch

from hvdkit.collectives import Collectives


def reduce_sparse(
    collectives: Collectives, gradient: torch.Tensor | None, like: torch.Tensor, name: str, scale: float
) -> torch.Tensor:
    """The sum over ranks of sparse `gradient`, times `scale`: a coalesced sparse COO tensor of `like`'s shape.

    None stands for a rank without rows. Collective; each rank sends its rows p-1 times. Source: Horovod's sparse
    all-reduce, an all-gather of indices and values.
    """
    if gradient is None:
        gradient = torch.sparse_coo_tensor(
            torch.zeros((1, 0), dtype=torch.int64, device=like.device),
            torch.zeros((0, *like.shape[1:]), dtype=like.dtype, device=like.device),
            like.shape,
            check_invariants=False,
        )
    gradient = (gradient if gradient.is_sparse else gradient.to_sparse(1)).coalesce()
    indices = collectives.all_gather(gradient.indices().t().contiguous(), f"{name}.indices")
    values = collectives.all_gather(gradient.values().contiguous(), f"{name}.values")
    return torch.sparse_coo_tensor(indices.t(), values * scale, like.shape, check_invariants=False).coalesce()


def exchanged_sparse(
    collectives: Collectives, parameter: torch.Tensor, factor: float, name: str, *, is_used: bool, scale: float
) -> torch.Tensor | None:
    """The ranks' sum of `parameter.grad` times `factor`, all times `scale`. Collective if `is_used`.

    `is_used` says whether any rank has a gradient (None otherwise); with factor 0 this rank's counts for nothing.
    """
    if not is_used:
        return None
    mine = parameter.grad.mul(factor) if parameter.grad is not None and factor else None
    return reduce_sparse(collectives, mine, parameter, name, scale)
