"""The election of signs and the mean of those that agree: TIES (Yadav et al. 2023, arXiv 2306.01708, section 4).

In each element the sign of sum_i w_i t_i wins, and the result is the weighted mean of the t_i of that sign; zeros do
not count. Where the sum is 0 the result is 0.
"""

import torch

from hvdkit.merge.combine.interface import Vector


def consensus(vectors: torch.Tensor, weights: Vector) -> torch.Tensor:
    """The merged task vector, (n,), of `vectors`, (M, n)."""
    factors = torch.from_numpy(weights).to(vectors.dtype)
    elected = factors @ vectors
    agrees = vectors.sign().mul_(elected.sign_()).gt_(0).to(vectors.dtype)
    voted = factors @ agrees
    sum_ = factors @ vectors.mul_(agrees)
    return sum_.div_(voted.masked_fill_(voted == 0, 1.0))
