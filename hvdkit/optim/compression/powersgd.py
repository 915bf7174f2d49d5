"""Low-rank gradients: each matrix M is sent as two thin factors, M ~ P Q^T, found by one step of subspace iteration.

Source: T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", arXiv:1905.13727, algorithms 1 and 2. With M_i a rank's gradient plus its residual, as a matrix of
shape[0] rows: P = sum_i M_i Q is all-reduced and orthogonalised, then Q = sum_i M_i^T P, and sum_i M_i ~ P Q^T. Q is
kept as the next step's start. The residual is M_i - P Q_i^T: what this rank did not send. Both factors are kept
transposed, with `rank` long rows: on a CPU the products with M are then 4 and 15 times as fast.

Unlike in the paper, P is made orthonormal by the eigenvectors of P^T P in float64: the same bits for any
number of threads, where LAPACK's QR was seen to differ; and directions that are not there become zeros, which a fresh
start replaces in the next step (a column stuck at zero would never send its part again). Ranks on processors of
different kinds may still differ in the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from hvdkit.collectives import Collectives
from hvdkit.optim.compression.interface import ParameterState
from hvdkit.optim.compression.residual import Residual, check_flat, real_dtype, real_shapes, restore, working_dtype
from hvdkit.optim.compression.wire import all_reduce

_GRAM_LENGTH = 1024
_NEGLIGIBLE = 1e-12
"""Eigenvalues of P^T P, squares of lengths, below this share of the largest one count as zero."""


@dataclass(frozen=True)
class PowerSGD:
    """Factors of `rank` columns for each parameter of two dimensions or more where they are smaller than it."""

    rank: int = 4

    name: ClassVar[str] = "powersgd"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"powersgd: rank={self.rank} must be 1 or more")

    def for_bucket(
        self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device | str
    ) -> "PowerSGDCompression":
        """See `BucketCompressor`."""
        return PowerSGDCompression(self, shapes, dtype, torch.device(device))


class PowerSGDCompression:
    """One bucket's residuals and starts Q.

    Sends 2(p-1)/p * 4 bytes (8 for float64) for each of rank * (rows + columns) values of a matrix that is factored,
    and for each value of the other parameters, whose sum is exact and which have no state.
    """

    def __init__(
        self, options: PowerSGD, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._rank, self._dtype, self._working = options.rank, real_dtype(dtype), working_dtype(dtype)
        real = real_shapes(shapes, dtype)
        self._is_factored = [
            len(shape) > 1 and options.rank * sum(_matrix(as_real)) < as_real.numel()
            for shape, as_real in zip(shapes, real, strict=True)
        ]
        self._counts = [shape.numel() for shape in real]
        factored = [shape for shape, yes in zip(real, self._is_factored, strict=True) if yes]
        self._shapes = [_matrix(shape) for shape in factored]
        self._residual = Residual(factored, dtype, device)
        self._errors = [view.view(shape) for view, shape in zip(self._residual.views, self._shapes, strict=True)]
        self._starts = [
            torch.zeros(options.rank, columns, dtype=self._working, device=device) for _, columns in self._shapes
        ]

    @torch.no_grad()
    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`."""
        check_flat(flat, sum(self._counts), self._dtype)
        return self.sum_each_(flat.split(self._counts), 1.0, name, collectives) if flat.numel() else 0.0

    @torch.no_grad()
    def sum_each_(self, parts: Sequence[torch.Tensor], factor: float, name: str, collectives: Collectives) -> float:
        """See `SumsEach`. One all-reduce of all P and the parameters that are not factored, one of all Q."""
        wide = [part.to(self._working) for part in parts]
        exact = [part for part, is_factored in zip(wide, self._is_factored, strict=True) if not is_factored]
        factored = [part for part, is_factored in zip(wide, self._is_factored, strict=True) if is_factored]
        matrices = [part.view(shape) for part, shape in zip(factored, self._shapes, strict=True)]
        starts = [_refilled(start) for start in orthonormal(self._starts)]
        left = []
        for matrix, error, start in zip(matrices, self._errors, starts, strict=True):
            torch.add(error, matrix, alpha=factor, out=matrix)
            left.append(torch.mm(start, matrix.t()).view(-1))  # while the matrix is in cache
        scaled = [part * factor for part in exact] if factor != 1.0 else exact
        first, sent = all_reduce(torch.cat([*scaled, *left]), f"{name}.p", collectives)
        is_finite = bool(torch.isfinite(first).all())  # the same on every rank, so all leave
        if is_finite:
            summed = first.split([part.numel() for part in (*exact, *left)])
            for part, result in zip(exact, summed[: len(exact)], strict=True):
                part.copy_(result)
            if matrices:
                left = [part.view(self._rank, -1) for part in summed[len(exact) :]]
                more, is_finite = self._replace(matrices, orthonormal(left), name, collectives)
                sent += more
        for part, result in zip(parts, wide, strict=True):
            if not is_finite:
                part.fill_(float("nan"))
            elif part is not result:
                part.copy_(result)
        return sent

    def _replace(
        self, matrices: list[torch.Tensor], left: list[torch.Tensor], name: str, collectives: Collectives
    ) -> tuple[float, bool]:
        """Put P Q^T in place of each matrix and keep the rest; returns bytes sent and whether all was finite."""
        mine = []
        for matrix, p, error in zip(matrices, left, self._errors, strict=True):
            mine.append(torch.mm(p, matrix))
            torch.addmm(matrix, p.t(), mine[-1], alpha=-1, out=error)
        second, sent = all_reduce(torch.cat([q.view(-1) for q in mine]), f"{name}.q", collectives)
        if not bool(torch.isfinite(second).all()):  # finite gradients whose sum is not: what is too large is lost
            for error in self._errors:
                error.nan_to_num_(0.0, 0.0, 0.0)
            return sent, False
        found = second.split([columns * self._rank for _, columns in self._shapes])
        for matrix, p, q, start in zip(matrices, left, found, self._starts, strict=True):
            start.copy_(q.view_as(start))
            torch.mm(p.t(), start, out=matrix)
        return sent, True

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`. "q": (rank, columns), the next start; parameters that are not factored have none."""
        kept = iter(zip(self._residual.views, self._starts, strict=True))
        return [dict(zip(("error", "q"), next(kept), strict=True)) if yes else {} for yes in self._is_factored]

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        restore(self.state_dict(), state)


def orthonormal(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each (r, n) matrix, finite, an (r, n) one whose rows are orthonormal or zero and span its rows.

    W = diag(1/sqrt(w)) V^T times the matrix, with the eigenvalues w and eigenvectors V of its Gram matrix; twice,
    since the first pass leaves the error of small eigenvalues.
    """
    if not matrices:
        return []
    results = [matrix.double() / matrix.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny) for matrix in matrices]
    for _ in range(2):
        values, vectors = torch.linalg.eigh(torch.stack([_gram(matrix) for matrix in results]))
        is_there = values > _NEGLIGIBLE * values[:, -1:]
        scaled = vectors * torch.where(is_there, values, 1).rsqrt().mul_(is_there)[:, None, :]
        results = [change.t() @ matrix for matrix, change in zip(results, scaled, strict=True)]
    return [result.to(matrix.dtype) for result, matrix in zip(results, matrices, strict=True)]


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """(r, r) of (r, n). In pieces of a fixed length: one long product is cut differently by every number of threads."""
    rows, length = matrix.shape
    if length > _GRAM_LENGTH:
        matrix = torch.nn.functional.pad(matrix, (0, -length % _GRAM_LENGTH))
        pieces = matrix.view(rows, -1, _GRAM_LENGTH).transpose(0, 1)
        return torch.bmm(pieces, pieces.transpose(1, 2)).sum(dim=0)
    return matrix @ matrix.t()


def _refilled(start: torch.Tensor) -> torch.Tensor:
    """`start` (r, columns) with random numbers, the same on every rank, in its zero rows; in place."""
    is_zero = (start.abs().amax(dim=1) == 0)[:, None]
    if bool(is_zero.any()):
        columns = start.shape[1]
        generator = torch.Generator().manual_seed(columns)
        fresh = torch.randn(start.shape, generator=generator, dtype=torch.float64) / columns**0.5
        start.copy_(torch.where(is_zero, fresh.to(start), start))
    return start


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """The rows and columns of a parameter of this shape."""
    rows = shape[0] if len(shape) else 1
    return rows, shape.numel() // rows if rows else 0
