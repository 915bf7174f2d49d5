"""The collectives that compressed gradients travel by, with the bytes that each rank sends."""

import torch

from hvdkit.collectives import Collectives


def all_reduce(tensor: torch.Tensor, name: str, collectives: Collectives) -> tuple[torch.Tensor, float]:
    """The sum of all ranks' `tensor` (in place) and the bytes sent, 2(p-1)/p times its own. Collective."""
    summed = collectives.all_reduce_async_(tensor, name).wait()
    ranks = collectives.size
    return summed, 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size()


def all_gather(tensor: torch.Tensor, name: str, collectives: Collectives) -> tuple[list[torch.Tensor], float]:
    """Every rank's `tensor`, of one shape, in rank order, and the bytes sent, p-1 times its own. Collective."""
    gathered = collectives.all_gather(tensor, name)
    sent = (collectives.size - 1) * tensor.numel() * tensor.element_size()
    return list(gathered.split(tensor.shape[0])), float(sent)
