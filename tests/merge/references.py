"""Every merge rule a second time: slow, on whole tensors, in numpy's float64, as its paper words it."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any


def largest(vector: Array, first: int, count: int) -> Array:
    """Elements number `first` to `first + count` by magnitude, and those as large as one of them; zeros elsewhere."""
    chosen = sorted(np.abs(vector).ravel(), reverse=True)[first : first + count]
    return np.where((np.abs(vector) <= chosen[0]) & (np.abs(vector) >= chosen[-1]), vector, 0.0)


def consensus(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted mean of the values that have the sign of the weighted sum, element by element."""
    result = np.zeros_like(vectors[0])
    for place in np.ndindex(result.shape):
        pairs = [(vector[place], weight) for vector, weight in zip(vectors, weights, strict=True)]
        sign = np.sign(sum(value * weight for value, weight in pairs))
        agreeing = [(value, weight) for value, weight in pairs if np.sign(value) == sign != 0 and weight]
        if agreeing:
            result[place] = sum(v * w for v, w in agreeing) / sum(w for _, w in agreeing)
    return result


def weighted_sum(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """sum_i w_i x_i."""
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total = total + weight * vector
    return total


def karcher(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """The mean direction by gradient descent in the space of the tensors themselves, then slerp's scaling."""
    flat = np.stack([tensor.ravel() for tensor in tensors])
    directions = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    shares = np.array(weights) / sum(weights)
    mean = shares @ directions
    mean /= np.linalg.norm(mean)
    for _ in range(2000):
        cosines = np.clip(directions @ mean, -1, 1)
        angles = np.arccos(cosines)
        across = directions - np.outer(cosines, mean)
        lengths = np.linalg.norm(across, axis=1)
        logs = across * np.divide(angles, lengths, out=np.ones_like(angles), where=lengths > 1e-14)[:, None]
        step = 0.5 * shares @ logs
        length = np.linalg.norm(step)
        if length < 1e-15:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    coefficients = np.linalg.lstsq(directions.T, mean, rcond=None)[0]
    return (coefficients @ flat).reshape(tensors[0].shape)


def reference(
    name: str,
    tensors: Sequence[Array],
    base: Array,
    weights: Sequence[float],
    *,
    density: float = 1.0,
    scale: float = 1.0,
    gamma: float = 0.01,
) -> Array:
    """What the rule `name` without chance makes of `tensors`."""
    vectors = [tensor - base for tensor in tensors]
    kept = min(base.size, max(1, round(density * base.size)))
    if name == "average":
        return weighted_sum(tensors, weights) / sum(weights)
    if name in ("slerp", "karcher"):
        return karcher(tensors, weights)
    if name == "task_arithmetic":
        return base + scale * weighted_sum(vectors, weights)
    if name == "ties":
        return base + scale * consensus([largest(vector, 0, kept) for vector in vectors], weights)
    if name.startswith("breadcrumbs"):
        outliers = min(round(gamma * base.size), base.size - kept)
        crumbs = [largest(vector, outliers, kept) for vector in vectors]
        return base + scale * (consensus if name.endswith("ties") else weighted_sum)(crumbs, weights)
    assert name == "model_stock"
    cosines = [
        float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
        for one, other in itertools.combinations(vectors, 2)
    ]
    cosine, count = min(1.0, max(0.0, float(np.mean(cosines)))), len(vectors)
    t = count * cosine / (1 + (count - 1) * cosine)
    return base + scale * t * weighted_sum(vectors, weights) / sum(weights)
