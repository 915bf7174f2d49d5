"""The two kinds of combiners."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Vector = npt.NDArray[np.float64]
Gram = npt.NDArray[np.float64]
"""(M, M): the inner products of what is combined, over a whole tensor."""


@dataclass(frozen=True)
class Linear:
    """sum_i c_i x_i."""

    coefficients: Callable[[Vector, Gram], Vector]
    """(M,) from the weights, (M,), and the Gram matrix (zeros unless it is needed)."""
    needs_gram: bool = False


@dataclass(frozen=True)
class Elementwise:
    """Each element by itself."""

    combine: Callable[[torch.Tensor, Vector], torch.Tensor]
    """(n,) from (M, n), which it may overwrite, and the weights, (M,)."""
