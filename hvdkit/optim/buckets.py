"""Flat buckets of gradients: what one all-reduce carries.

Source: S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
arXiv:2006.15704, section 3.2.3. A bucket holds parameters of one dtype and device in the order in which their
gradients became ready, so that it is complete early and its reduction overlaps the rest of backward.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

DEFAULT_BUCKET_BYTES = 16 * 2**20
LARGE_BYTES = 256 * 1024
"""A gradient of at least so many bytes is reduced in place, where that can be; copying it would cost more than a call.
"""


@dataclass
class Bucket:
    """Parameters `indices` (into the optimizer's parameter list) and one flat buffer for their gradients."""

    indices: list[int]
    shapes: list[torch.Size]
    dtype: torch.dtype
    device: torch.device

    @functools.cached_property
    def _buffer(self) -> torch.Tensor:
        return torch.zeros(sum(shape.numel() for shape in self.shapes), dtype=self.dtype, device=self.device)

    @functools.cached_property
    def flat(self) -> torch.Tensor:
        """(n,) of the parameters' dtype (its real counterpart for complex ones), contiguous; made at first use."""
        return torch.view_as_real(self._buffer).view(-1) if self.dtype.is_complex else self._buffer

    @functools.cached_property
    def views(self) -> list[torch.Tensor]:
        """One view of `flat` per parameter, in the parameter's shape and dtype."""
        counts = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(self._buffer.split(counts), self.shapes, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of all gradients."""
        return sum(shape.numel() for shape in self.shapes) * self.dtype.itemsize

    def fill(self, gradients: Sequence[torch.Tensor | None], factor: float) -> None:
        """Copy `gradients` (one per parameter; None counts as zeros) times `factor` into the flat buffer."""
        present = [(view, grad) for view, grad in zip(self.views, gradients, strict=True) if grad is not None]
        if len(present) < len(self.views):
            self.flat.zero_()
        if present:
            torch._foreach_copy_([view for view, _ in present], [_dense(grad) for _, grad in present])
        if factor != 1:
            self.flat.mul_(factor)


def plan_buckets(
    parameters: Sequence[torch.Tensor],
    order: Sequence[int],
    *,
    bucket_bytes: int,
    groups: Sequence[Sequence[int]] | int | None = None,
    large_bytes: int | None = None,
) -> list[Bucket]:
    """Cut the parameters `order` (indices, in the order their gradients become ready) into buckets.

    `groups` is Horovod's option: a number of groups of about equal count, or lists of indices that belong together
    (what they leave out gets a bucket each). Otherwise a bucket is closed when it reaches `bucket_bytes`, and
    parameters of at least `large_bytes` share none with smaller ones.
    """
    if isinstance(groups, int):
        parts = _split_evenly(order, groups)
    elif groups is not None:
        position = {index: place for place, index in enumerate(order)}
        named = {index for group in groups for index in group}
        parts = [sorted((i for i in group if i in position), key=position.__getitem__) for group in groups]
        parts += [[index] for index in order if index not in named]
        parts = sorted((part for part in parts if part), key=lambda part: max(position[i] for i in part))
    else:
        parts = _split_by_bytes(parameters, order, bucket_bytes, large_bytes)
    return [
        Bucket([*same], [parameters[i].shape for i in same], parameters[same[0]].dtype, parameters[same[0]].device)
        for part in parts
        for same in _split_by_kind(parameters, part)
    ]


def _split_by_bytes(
    parameters: Sequence[torch.Tensor], order: Sequence[int], limit: int, large: int | None
) -> list[list[int]]:
    # One open bucket per kind, so that parameters of two dtypes in turn do not end in buckets of one each.
    done: list[list[int]] = []
    opened: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
    filled: dict[tuple[torch.dtype, torch.device, bool], int] = {}
    for index in order:
        parameter = parameters[index]
        nbytes = parameter.numel() * parameter.element_size()
        kind = (parameter.dtype, parameter.device, large is not None and nbytes >= large)
        if kind in opened and filled[kind] + nbytes > limit:
            done.append(opened.pop(kind))
        if kind not in opened:
            opened[kind], filled[kind] = [], 0
        opened[kind].append(index)
        filled[kind] += nbytes
    return done + list(opened.values())


def _split_by_kind(parameters: Sequence[torch.Tensor], part: Sequence[int]) -> list[list[int]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index in part:
        kinds.setdefault((parameters[index].dtype, parameters[index].device), []).append(index)
    return list(kinds.values())


def _split_evenly(order: Sequence[int], count: int) -> list[list[int]]:
    count = min(count, len(order)) or 1
    base, extra = divmod(len(order), count)
    parts, start = [], 0
    for number in range(count):
        stop = start + base + (number < extra)
        parts.append([*order[start:stop]])
        start = stop
    return [part for part in parts if part]


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
