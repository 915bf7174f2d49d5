"""Gradients as 8-bit whole numbers in blocks, each block with its own scale, and error feedback.

A block of `block_values` values x is sent as q = round(x / s) with s = max|x| / 127, so no value is off by more than
s / 2. All ranks gather each other's q and s and add q * s in rank order, so they get the same bits.

Sources: D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
arXiv:1610.02132 (buckets with a scale each); T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning",
arXiv:1511.04561. Rounding is to the nearest, since the residual already makes the sum over steps right.

On several nodes with several ranks each, p below is that of the nodes: a node adds up in full precision through shared
memory, each carrying rank quantises a slice of the node's sum and keeps what it did not send (`collectives.levels`).

Against a float32 all-reduce each of p ranks sends p/8 of the bytes: a quarter at 2 ranks, a half at 4, no gain from
8 on. Rejected: one scale for all ranks and a sum in 8 bits, a quarter at any p, leaves 127/p steps; a second
quantisation of the summed parts needs an all-to-all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from hvdkit.collectives import Collectives, DirectCollectives, Levels
from hvdkit.optim.compression.interface import ParameterState
from hvdkit.optim.compression.residual import Residual, check_flat, real_dtype, real_shapes
from hvdkit.optim.compression.wire import all_gather

_LIMIT = 127
_CACHED_VALUES = 65536
"""Values worked on at once on a CPU: the passes over them stay in cache."""


@dataclass(frozen=True)
class Int8:
    """8-bit values in blocks of `block_values`, one float32 (float64 for float64 gradients) scale per block."""

    block_values: int = 512

    name: ClassVar[str] = "int8"

    def __post_init__(self) -> None:
        if self.block_values < 1:
            raise ValueError(f"int8: block_values={self.block_values} must be 1 or more")

    def for_bucket(
        self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device | str
    ) -> "Int8Compression":
        """See `BucketCompressor`."""
        return Int8Compression(self, shapes, dtype, torch.device(device))


class Int8Compression:
    """One bucket's residual.

    Sends, for n values in b blocks, (p-1) * (n + 4b) bytes, n rounded up to a multiple of 4; 8 for float64.
    """

    def __init__(self, options: Int8, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = real_dtype(dtype)
        self._residual = Residual(real_shapes(shapes, dtype), dtype, device)
        self._block = options.block_values
        self._count = self._residual.flat.numel()

    @torch.no_grad()
    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`. One all-gather; between nodes only, where they have several ranks."""
        check_flat(flat, self._count, self._dtype)
        if not self._count:
            return 0.0
        if flat.device.type == "cpu" and isinstance(collectives, DirectCollectives) and collectives.has_levels:
            return collectives.by_levels(flat, name, lambda levels: self._sum_by_levels(flat, levels))
        blocks = _Blocks(self._residual.flat, self._block)
        mine = blocks.quantised(flat)
        gathered, sent = all_gather(mine, name, collectives)
        if blocks.are_finite(gathered):
            # Ranks that have called join() send nothing, and their places are missing.
            place = collectives.index
            if len(gathered) < collectives.size:
                place = next(i for i, payload in enumerate(gathered) if torch.equal(payload, mine))
            blocks.sum_(flat, gathered, place)
        else:
            flat.fill_(float("nan"))
        return sent

    def _sum_by_levels(self, flat: torch.Tensor, levels: Levels) -> float:
        own, counts = levels.slices(self._count, self._block)
        wide, residual = flat.to(self._residual.flat.dtype), self._residual.flat
        # Usually zeros: what was kept elsewhere, as in a residual that was averaged over ranks.
        others = [slice(0, own.start), slice(own.stop, self._count)]
        for other in others:
            wide[other].add_(residual[other])
        mine = levels.reduce_scatter(wide, counts)
        sent, is_finite, gathered = 0, True, []
        if levels.carries and mine.numel():
            blocks = _Blocks(residual[own], self._block)
            payload = blocks.quantised(mine)
            gathered = levels.exchange(payload)
            sent, is_finite = (levels.nodes - 1) * payload.numel(), blocks.are_finite(gathered)
        if not levels.all_agree(is_finite):
            flat.fill_(float("nan"))
            return sent
        if gathered:
            blocks.sum_(mine, gathered, levels.node_number)
        for other in others:
            residual[other].zero_()
        levels.all_gather(mine.to(flat.dtype), flat, counts)
        return sent

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`."""
        return self._residual.state_dict()

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        self._residual.load_state_dict(state)


class _Blocks:
    """Values in blocks of `block`, with the `residual`, (n,), that is sent along and then holds what is left."""

    def __init__(self, residual: torch.Tensor, block: int) -> None:
        self._residual, self._block, self._count = residual, block, residual.numel()
        self._blocks = -(-self._count // block)
        at_once = max(1, _CACHED_VALUES // block) if residual.device.type == "cpu" else max(1, self._blocks)
        self._cuts = range(0, self._blocks, at_once)

    def quantised(self, flat: torch.Tensor) -> torch.Tensor:
        """What this rank sends: the scales and the quantised values of `flat` plus the residual, as bytes."""
        width = self._residual.element_size()
        # A whole number of scales, so that the next rank's scales stay aligned when payloads are concatenated.
        words = self._blocks + -(-self._count // width)
        payload = torch.zeros(words * width, dtype=torch.uint8, device=flat.device)
        all_scales, all_quantised = self._parts(payload)
        for (values, blocks), work, magnitude in self._pieces():
            whole = work.view(-1)[: values.stop - values.start]
            whole.copy_(flat[values]).add_(self._residual[values])
            work.view(-1)[whole.numel() :].zero_()
            scales = torch.abs(work, out=magnitude).amax(dim=1).div_(_LIMIT)
            all_scales[blocks] = scales
            # Division by a scale of 0 (zeros, or less than any float32 holds): those values stay in the residual.
            work.div_(scales.masked_fill_(scales == 0, 1)[:, None]).round_().nan_to_num_(0)
            all_quantised[values] = whole.clamp_(-_LIMIT, _LIMIT)
        return payload

    def are_finite(self, gathered: Sequence[torch.Tensor]) -> bool:
        """Whether all payloads are, times 128, since the largest dequantised value must be finite too."""
        return all(bool(torch.isfinite(self._parts(one)[0] * (_LIMIT + 1)).all()) for one in gathered)

    def sum_(self, flat: torch.Tensor, gathered: Sequence[torch.Tensor], index: int) -> None:
        """Replace `flat` by the sum of all payloads, of which this rank's is number `index`; keeps what is left."""
        received = [self._parts(payload) for payload in gathered]
        for (values, blocks), total, term in self._pieces():
            for rank, (scales, quantised) in enumerate(received):
                into = term if rank else total
                into.view(-1)[: values.stop - values.start].copy_(quantised[values])
                into.mul_(scales[blocks, None])
                if rank == index:
                    whole = self._residual[values].add_(flat[values])
                    whole.sub_(into.view(-1)[: whole.numel()])
                if rank:
                    total.add_(term)
            flat[values].copy_(total.view(-1)[: values.stop - values.start])

    def _parts(self, payload: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales (b,) and the quantised values (n,) int8 of one rank's payload, sharing its memory."""
        scale_bytes = self._blocks * self._residual.element_size()
        scales = payload[:scale_bytes].view(self._residual.dtype)
        return scales, payload[scale_bytes : scale_bytes + self._count].view(torch.int8)

    def _pieces(self) -> Iterator[tuple[tuple[slice, slice], torch.Tensor, torch.Tensor]]:
        """Cache-sized pieces: the slices of their values and of their blocks, and two work tensors (blocks, block)."""
        shape = (min(self._cuts.step, self._blocks), self._block)
        first, second = (self._residual.new_empty(shape) for _ in range(2))
        for start in self._cuts:
            stop = min(start + self._cuts.step, self._blocks)
            values = slice(start * self._block, min(stop * self._block, self._count))
            yield (values, slice(start, stop)), first[: stop - start], second[: stop - start]
