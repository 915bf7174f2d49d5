"""Model Stock (Jang et al. 2024, arXiv 2403.19522): the mean, drawn to the base by the angle between task vectors.

For k fine-tuned models whose task vectors stand at an angle a, the point of their plane that is nearest to the centre
of all such models is base + t x mean, t = k cos(a) / (1 + (k - 1) cos(a)). cos(a) is the mean over pairs, at least 0.
"""

import numpy as np

from hvdkit.merge.combine.average import average
from hvdkit.merge.combine.interface import Gram, Vector


def stock(weights: Vector, gram: Gram) -> Vector:
    """t w_i / sum_j w_j; where a task vector is 0 the pairs with it count as orthogonal."""
    count = len(weights)
    norms = np.sqrt(np.diag(gram))
    products = np.outer(norms, norms)
    cosines = np.divide(gram, products, out=np.zeros_like(gram), where=products > 0)
    cosine = float(np.clip(cosines[np.triu_indices(count, 1)].mean(), 0.0, 1.0))
    return average(weights, gram) * count * cosine / (1 + (count - 1) * cosine)
