"""The weighted mean and the weighted sum."""

import numpy as np

from hvdkit.merge.combine.interface import Gram, Vector


def average(weights: Vector, gram: Gram) -> Vector:
    """w_i / sum_j w_j. Raises ValueError for weights that add up to 0."""
    sum_ = float(np.sum(weights))
    if sum_ == 0:
        raise ValueError("the weights add up to 0")
    return weights / sum_


def total(weights: Vector, gram: Gram) -> Vector:
    """The weights as they are."""
    return weights
