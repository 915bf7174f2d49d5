"""Slerp (Shoemake 1985), and for any number of tensors the weighted Karcher mean of their directions.

The mean direction u minimises sum_i w_i angle(u, x_i)^2; it lies in the span of the x_i, so that all is computed from
their Gram matrix. With u = sum_i c_i x_i / |x_i| the result is sum_i c_i x_i: for two tensors exactly slerp's
sin((1-t)a)/sin(a) x_1 + sin(ta)/sin(a) x_2. Where there is no direction (a tensor of zeros) or no single mean
(opposite ones), the weighted mean is taken.

Found by the fixed-point iteration of Buss and Fillmore 2001 (ACM TOG 20, algorithm A1).
"""

import numpy as np

from hvdkit.merge.combine.average import average
from hvdkit.merge.combine.interface import Gram, Vector

_MOST_ROUNDS = 200
_ENOUGH = 1e-12


def spherical(weights: Vector, gram: Gram) -> Vector:
    """c_i of the text above."""
    shares = average(weights, gram)
    norms = np.sqrt(np.diag(gram))
    if not np.all(norms > 0):
        return shares
    cosines = np.clip(gram / np.outer(norms, norms), -1, 1)
    mean = shares.copy()
    for _ in range(_MOST_ROUNDS):
        length = float(np.sqrt(max(0.0, mean @ cosines @ mean)))
        if length < 1e-6:
            return shares
        mean /= length
        # The logarithm of each direction at the mean, weighted: the tangent to go along.
        along = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(along)
        if np.any(angles > np.pi - 1e-6):
            return shares
        factors = shares * np.divide(angles, np.sin(angles), out=np.ones_like(angles), where=np.sin(angles) > 1e-12)
        tangent = factors - float(factors @ along) * mean
        step = float(np.sqrt(max(0.0, tangent @ cosines @ tangent)))
        mean = np.cos(step) * mean + np.sinc(step / np.pi) * tangent
        if step < _ENOUGH:
            break
    return mean
