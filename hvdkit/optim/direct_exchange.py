"""The exchange of one backward's gradients over hvdkit's own collectives: in place, block by block, in one fixed order.

The order is: the ranks' weights, all buckets as agreed, then flags (which parameters have a gradient anywhere, and
which buckets were sent too early). Weights come first, so that dividing by their sum is part of the reduction and no
pass over the gradients follows it. Large gradients are reduced where autograd left them; small ones are packed.

Where a core is free the collectives run on a thread of their own, each bucket as soon as it is complete; it takes its
gradients out of `.grad` until the end, so that what backward still adds to them is seen and sent again. Otherwise all
is done at the end of backward, when it would only have taken turns with it.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives import DirectCollectives, Work, wait_for_all
from hvdkit.optim.bucket_sums import BucketSums, Residuals
from hvdkit.optim.buckets import LARGE_BYTES, Bucket, plan_buckets
from hvdkit.optim.compression import BucketCompressor, NoneCompressor, can_share_buckets
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Agreement, Overlap
from hvdkit.optim.sparse import exchanged_sparse
from hvdkit.optim.weighting import Weighting, combine

Gradients = list[torch.Tensor | None]


class DirectExchange:
    """Exchanges the gradients of `parameters` as the ranks `agreed`; used again for every backward."""

    def __init__(
        self,
        collectives: DirectCollectives,
        agreed: Agreement,
        parameters: Sequence[torch.Tensor],
        options: ReducerOptions,
        weighting: Weighting,
        statistics: Statistics,
        residuals: Residuals,
    ) -> None:
        self._collectives, self._agreed, self._options = collectives, agreed, options
        self._parameters, self._weighting, self._statistics = parameters, weighting, statistics
        self._sparse_indices = [index for index in sorted(agreed.order) if agreed.sparse[index]]
        compression = options.compression
        is_plain = compression is NoneCompressor
        is_elementwise = can_share_buckets(compression)
        self._buckets = plan_buckets(
            parameters,
            [index for index in agreed.order if not agreed.sparse[index]],
            bucket_bytes=options.bucket_bytes if is_elementwise else 0,
            groups=options.groups if is_elementwise else None,
            large_bytes=LARGE_BYTES if is_plain else None,
        )
        self._in_place = [
            is_plain and all(shape.numel() * bucket.dtype.itemsize >= LARGE_BYTES for shape in bucket.shapes)
            for bucket in self._buckets
        ]
        self._bucket_of = {i: number for number, bucket in enumerate(self._buckets) for i in bucket.indices}
        self.inverse = 1.0
        """What the summed gradients were multiplied by in the last exchange."""
        self.written: list[weakref.ref[torch.Tensor]] = []
        """The aggregated gradients of the last exchange."""
        self._sums = None
        if isinstance(compression, BucketCompressor):
            self._sums = BucketSums(compression, self._buckets, residuals)
        collectives.exchanges.add_optimizer(agreed.number)
        self._begin()

    def _begin(self) -> None:
        self._works: list[Work] = []
        self._taken: list[Gradients] = []
        """Of the buckets sent so far, the gradients that were taken out of `.grad`."""
        self._missing = [len(bucket.indices) for bucket in self._buckets]
        self._present = [False] * len(self._parameters)
        self._sparse = [False] * len(self._parameters)
        """Which parameters have a gradient on this rank, and which a sparse one."""
        self._share = 1.0
        self._next_unit: float | None = None
        self._has_sent_weights = self._has_sent_all = self._is_plain_average = self._is_silent = False
        self._results: tuple[list[bool], list[bool]] | None = None
        self._sparse_results: dict[int, torch.Tensor | None] = {}

    def abandon(self) -> None:
        """Forget an exchange that was begun, when what was started is done."""
        self._collectives.exchanges.drop(self._agreed.number)
        try:
            wait_for_all(self._works)
        finally:
            self._begin()

    def residuals(self) -> Residuals:
        """What compression keeps between steps."""
        return {} if self._sums is None else self._sums.residuals()

    def close(self) -> None:
        """Forget it for good."""
        self.abandon()
        self._collectives.exchanges.remove_optimizer(self._agreed.number)

    def gradient_is_ready(self, index: int, fires: int) -> None:
        """The gradient of parameter `index` was accumulated for the `fires`-th time in this backward."""
        number = self._bucket_of.get(index)
        if number is None or number < len(self._taken) or not self._overlaps:
            return
        if fires == self._agreed.expected_fires[index]:
            self._missing[number] -= 1
            while len(self._taken) < len(self._buckets) and not self._missing[len(self._taken)]:
                self._send_next(self._start)

    def send_rest(self) -> None:
        """All gradients are here; does not wait for other ranks unless the collectives run on this thread."""
        number = self._agreed.number
        if self._has_sent_all:
            return
        self._has_sent_all = True
        if self._overlaps:
            self._exchange(self._start)
        else:
            self._collectives.exchanges.put(number, lambda: self._exchange(_run_now))

    def finish(self) -> bool:
        """Wait for all and put the aggregated gradients into `.grad`. Collective, after `send_rest()`.

        Returns whether the plan still fits: a gradient that turned out sparse wants a place behind the buckets.
        """
        try:
            self._collectives.exchanges.do(self._agreed.number)
            wait_for_all(self._works)
            assert self._results is not None
            is_used, is_sparse = self._results
            self.written = []
            for bucket, gradients in zip(self._buckets, self._taken, strict=True):
                self._put_back(bucket, gradients, is_used, is_sparse)
            for index, gradient in self._sparse_results.items():
                self._parameters[index].grad = gradient
            self._weighting.unit = self._next_unit or self._weighting.unit
            planned = self._agreed.sparse
            return self._options.sparse_as_dense or all(p or not s for p, s in zip(planned, is_sparse, strict=True))
        finally:
            self._begin()

    @property
    def _overlaps(self) -> bool:
        # Several optimizers may meet in a different order on each rank, which is settled at the end of backward.
        is_alone = self._collectives.exchanges.has_one_optimizer
        return self._agreed.overlap is Overlap.ALWAYS or (self._agreed.overlap is Overlap.WHILE_ALONE and is_alone)

    # -- the fixed order

    def _exchange(self, do: Callable[[Callable[[], Any]], None]) -> None:
        self._send_weights_first(do)
        while len(self._taken) < len(self._buckets):
            self._send_next(do)
        for index in self._sparse_indices:
            self._note(index, self._parameters[index].grad)
        do(self._exchange_flags)
        if self._sparse_indices:
            do(self._exchange_sparse)

    def _start(self, work: Callable[[], Any]) -> None:
        self._works.append(self._collectives.start(work))

    def _send_next(self, do: Callable[[Callable[[], Any]], None]) -> None:
        self._send_weights_first(do)
        number = len(self._taken)
        bucket = self._buckets[number]
        gradients: Gradients = []
        for index in bucket.indices:
            gradient = None if self._is_silent else self._parameters[index].grad
            self._note(index, gradient)
            gradients.append(gradient)
            self._parameters[index].grad = None
        self._taken.append(gradients)
        do(lambda: self._reduce(number, gradients, f"{self._agreed.key}.{number}"))

    def _note(self, index: int, gradient: torch.Tensor | None) -> None:
        self._present[index] = gradient is not None and not self._is_silent
        self._sparse[index] = gradient is not None and gradient.is_sparse

    def _send_weights_first(self, do: Callable[[Callable[[], Any]], None]) -> None:
        if not self._has_sent_weights:
            self._has_sent_weights = True
            self._is_silent = self._weighting.is_silent
            do(self._exchange_weights)

    @torch.no_grad()
    def _exchange_weights(self) -> None:
        fields = torch.tensor(self._weighting.encode(), dtype=torch.float64)
        self._collectives.all_reduce_(fields, name=f"{self._agreed.key}.weights")
        total = combine(fields, self._agreed.fixed_total)
        self.inverse = 1 / total.divisor if self._options.op == "average" else 1.0
        self._share = 0.0 if self._is_silent else self._weighting.factor * self.inverse
        self._is_plain_average = total.unit is None and total.divisor == self._collectives.size and all(
            weight == 1.0 for weight in self._agreed.fixed_weights
        )  # fmt: skip
        self._next_unit = total.unit

    @torch.no_grad()
    def _reduce(self, number: int, gradients: Gradients, name: str) -> None:
        """Reduce `gradients`, whose entries become the results."""
        bucket = self._buckets[number]
        if self._in_place[number]:
            self._all_reduce(self._dense(bucket, gradients), name)
            return
        if self._sums is not None and self._sums.takes_parts(number):
            parts = [dense.view(-1) for dense in self._dense(bucket, gradients, is_contiguous=True)]
            self._statistics.bytes_sent += self._sums.sum_parts_(number, parts, self._share, name, self._collectives)
            return
        if self._sums is not None:
            bucket.fill(gradients, self._share)
            self._statistics.bytes_sent += self._sums.sum_(number, bucket.flat, name, self._collectives)
        else:
            bucket.fill(gradients, 1.0)
            self._reduce_packed(bucket, name)
        for place, (index, view) in enumerate(zip(bucket.indices, bucket.views, strict=True)):
            gradient = gradients[place]
            if gradient is None or gradient.is_sparse:
                gradients[place] = gradient = torch.empty_like(self._parameters[index])
            gradient.copy_(view)

    def _dense(self, bucket: Bucket, gradients: Gradients, *, is_contiguous: bool = False) -> list[torch.Tensor]:
        """Make all `gradients` dense tensors, zeros where there is none; returns them as real ones."""
        found = []
        for place, index in enumerate(bucket.indices):
            gradient = gradients[place]
            if gradient is None:
                gradient = torch.zeros_like(self._parameters[index], memory_format=torch.contiguous_format)
            elif gradient.is_sparse:
                gradient = gradient.to_dense()
            gradients[place] = gradient = gradient.contiguous() if is_contiguous else gradient
            found.append(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
        return found

    def _reduce_packed(self, bucket: Bucket, name: str) -> None:
        whole = bucket.views[0] if len(bucket.views) == 1 and not bucket.dtype.is_complex else bucket.flat
        sent, context = self._options.compression.compress(whole)
        self._all_reduce([sent], name)
        result = self._options.compression.decompress(sent, context)
        if result.data_ptr() != bucket.flat.data_ptr():
            bucket.flat.copy_(result.reshape(-1))

    def _all_reduce(self, tensors: list[torch.Tensor], name: str) -> None:
        op = self._options.op
        ranks = self._collectives.size
        self._statistics.bytes_sent += 2 * (ranks - 1) / ranks * sum(tensor.nbytes for tensor in tensors)
        if op == "average" and self._is_plain_average:
            self._collectives.all_reduce_many_(tensors, op="average", name=name)
        elif op in ("average", "sum"):
            self._collectives.all_reduce_many_(tensors, op="sum", weight=self._share, name=name)
        else:
            if self._weighting.factor != 1.0:
                torch._foreach_mul_(tensors, self._weighting.factor)
            self._collectives.all_reduce_many_(tensors, op=op, name=name)

    @torch.no_grad()
    def _exchange_flags(self) -> None:
        late = [
            any(self._parameters[index].grad is not None for index in bucket.indices) for bucket in self._buckets
        ]  # fmt: skip
        flags = torch.tensor([*self._present, *self._sparse, *late], dtype=torch.int32)
        self._collectives.all_reduce_(flags, name=f"{self._agreed.key}.flags")
        count = len(self._parameters)
        used, sparse_on, late_on = flags.split([count, count, len(self._buckets)])
        for number in torch.nonzero(late_on).flatten().tolist():
            more: Gradients = [self._parameters[index].grad for index in self._buckets[number].indices]
            self._reduce(number, more, f"{self._agreed.key}.{number}.again")
            for place, (gradient, addition) in enumerate(zip(self._taken[number], more, strict=True)):
                assert addition is not None
                self._taken[number][place] = addition if gradient is None else gradient.add_(addition)
        self._results = used.bool().tolist(), sparse_on.bool().tolist()

    @torch.no_grad()
    def _exchange_sparse(self) -> None:
        assert self._results is not None
        factor = 0.0 if self._is_silent else self._weighting.factor
        for index in self._sparse_indices:
            self._sparse_results[index] = exchanged_sparse(
                self._collectives, self._parameters[index], factor, f"{self._agreed.key}.sparse.{index}",
                is_used=self._results[0][index], scale=self.inverse,
            )  # fmt: skip

    def _put_back(self, bucket: Bucket, gradients: Gradients, is_used: list[bool], is_sparse: list[bool]) -> None:
        for index, gradient in zip(bucket.indices, gradients, strict=True):
            parameter = self._parameters[index]
            if not is_used[index]:
                parameter.grad = None
                continue
            assert gradient is not None
            parameter.grad = gradient.to_sparse(1) if is_sparse[index] else gradient
            if not is_sparse[index]:
                self.written.append(weakref.ref(gradient))


def _run_now(work: Callable[[], Any]) -> None:
    work()
