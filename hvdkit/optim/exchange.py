"""One plan of buckets, and the exchange of one backward's gradients by it.

Buckets are filled and reduced strictly in the agreed order, each as soon as it and all before it are complete; what
is left goes at the end of backward, together with a header: one small float64 all-reduce that carries the weights,
which parameters have a gradient anywhere, and which buckets were sent too early and must be sent again. Sparse
gradients are sent then too. Horovod's engine does it all, in any order: several optimizers may meet in another order
on each rank, and nothing is waited for until all have sent.
"""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives import HorovodEngine, ReduceOp, Work
from hvdkit.optim.bucket_sums import BucketSums, Residuals
from hvdkit.optim.buckets import Bucket, plan_buckets
from hvdkit.optim.compression import BucketCompressor, can_share_buckets
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Agreement
from hvdkit.optim.sparse import SparseOnTheWay
from hvdkit.optim.weighting import FIELDS, Weighting, combine


class Exchange:
    """Exchanges the gradients of `parameters` as the ranks `agreed`; used again for every backward."""

    def __init__(
        self,
        collectives: HorovodEngine,
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
        # A compressor of the user's own may depend on a parameter's shape: give it one parameter at a time.
        is_elementwise = can_share_buckets(options.compression)
        self._buckets = plan_buckets(
            parameters,
            [index for index in agreed.order if not agreed.sparse[index]],
            bucket_bytes=options.bucket_bytes if is_elementwise else 0,
            groups=options.groups if is_elementwise else None,
        )
        self._sums = None
        if isinstance(options.compression, BucketCompressor):
            self._sums = BucketSums(options.compression, self._buckets, residuals)
        self._bucket_of = {i: number for number, bucket in enumerate(self._buckets) for i in bucket.indices}
        self._unit = agreed.unit
        self.inverse = 1.0
        """What the summed gradients were multiplied by in the last exchange."""
        self.written: list[weakref.ref[torch.Tensor]] = []
        """The aggregated gradients of the last exchange."""
        self._begin()

    def _begin(self) -> None:
        self._works: list[tuple[Work, Any]] = []
        self._sparse: dict[int, SparseOnTheWay] = {}
        self._header: Work | None = None
        self._resend: set[int] = set()
        self._missing = [len(bucket.indices) for bucket in self._buckets]
        self._is_silent = False

    def abandon(self) -> None:
        """Forget an exchange that was begun, when what was sent has arrived: its names are used again.

        That happens where backward raised an error on all ranks. Where ranks are gone there is nothing to wait for.
        """
        waits = [*(work.wait for work, _ in self._works), *(sparse.wait for sparse in self._sparse.values())]
        for wait in [*waits, *([] if self._header is None else [self._header.wait])]:
            with contextlib.suppress(RuntimeError):
                wait()
        self._begin()

    def residuals(self) -> Residuals:
        """What compression keeps between steps."""
        return {} if self._sums is None else self._sums.residuals()

    def close(self) -> None:
        """Forget it for good."""
        self.abandon()

    def gradient_is_ready(self, index: int, fires: int) -> None:
        """The gradient of parameter `index` was accumulated for the `fires`-th time in this backward."""
        number = self._bucket_of.get(index)
        if number is None:
            return
        if number < len(self._works):
            self._resend.add(number)
        elif fires == self._agreed.expected_fires[index]:
            self._missing[number] -= 1
            while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
                self._send_next()

    def send_rest(self) -> None:
        """Send what has not been sent; does not wait."""
        if self._header is not None:
            return
        self._is_silent = self._weighting.is_silent
        present = [p.grad is not None and not self._is_silent for p in self._parameters]
        sparse = [p.grad is not None and p.grad.is_sparse for p in self._parameters]
        resend = [number in self._resend for number in range(len(self._buckets))]
        header = torch.tensor([*self._weighting.encode(), *present, *sparse, *resend], dtype=torch.float64)
        self._header = self._collectives.all_reduce_async_(header, f"{self._agreed.key}.header")
        while len(self._works) < len(self._buckets):
            self._send_next()
        factor = 0.0 if self._is_silent else self._weighting.factor
        for index in self._sparse_indices:
            name = f"{self._agreed.key}.sparse.{index}"
            self._sparse[index] = SparseOnTheWay(self._collectives, self._parameters[index], factor, name)

    def finish(self) -> bool:
        """Wait for all and write the aggregated gradients into `.grad`. Collective, after `send_rest()`.

        Returns whether the plan still fits: a gradient that turned out sparse wants a place behind the buckets.
        """
        try:
            return self._finish()
        finally:
            self._begin()

    def _finish(self) -> bool:
        assert self._header is not None
        count = len(self._parameters)
        fields, used, sparse_on, resend_on = self._header.wait().split([FIELDS, count, count, len(self._buckets)])
        results = [(work.wait(), context) for work, context in self._works]
        for number in torch.nonzero(resend_on).flatten().tolist():
            work, context = self._send(number, f"{self._agreed.key}.{number}.again")
            results[number] = (work.wait(), context)
        total = combine(fields, self._agreed.fixed_total)
        self.inverse = 1 / total.divisor if self._options.op == "average" else 1.0
        scale = self.inverse * self._unit * self._options.predivide
        is_used, is_sparse = [[number > 0 for number in part.tolist()] for part in (used, sparse_on)]
        self.written = []
        for bucket, (result, context) in zip(self._buckets, results, strict=True):
            if self._sums is None:
                result = self._options.compression.decompress(result, context)
            self._write_back(bucket, result, scale, is_used, is_sparse)
        for index, on_the_way in self._sparse.items():
            self._parameters[index].grad = on_the_way.summed(is_used=is_used[index], scale=self.inverse)
        self._weighting.unit = total.unit or self._weighting.unit
        self._unit = total.unit or 1.0
        planned = self._agreed.sparse
        return self._options.sparse_as_dense or all(p or not s for p, s in zip(planned, is_sparse, strict=True))

    def _send_next(self) -> None:
        number = len(self._works)
        self._works.append(self._send(number, f"{self._agreed.key}.{number}"))

    @torch.no_grad()
    def _send(self, number: int, name: str) -> tuple[Work, Any]:
        bucket = self._buckets[number]
        if self._weighting.is_silent:
            bucket.flat.zero_()
        else:
            bucket.fill([self._parameters[i].grad for i in bucket.indices], self._weighting.factor / self._unit)
        if self._sums is not None:
            return _Summed(lambda: self._sum(number, name)), None
        whole = bucket.views[0] if len(bucket.views) == 1 and not bucket.dtype.is_complex else bucket.flat
        tensor, context = self._options.compression.compress(whole)
        work = self._collectives.all_reduce_async_(
            tensor, name, op=self._wire_op, prescale=1 / self._options.predivide
        )  # fmt: skip
        ranks = self._collectives.size
        self._statistics.bytes_sent += 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size()
        return work, context

    def _sum(self, number: int, name: str) -> torch.Tensor:
        assert self._sums is not None
        flat = self._buckets[number].flat.div_(self._options.predivide)
        self._statistics.bytes_sent += self._sums.sum_(number, flat, name, self._collectives)
        return flat

    @property
    def _wire_op(self) -> ReduceOp:
        return "sum" if self._options.op == "average" else self._options.op

    def _write_back(
        self, bucket: Bucket, result: torch.Tensor, scale: float, is_used: list[bool], is_sparse: list[bool]
    ) -> None:
        if result.data_ptr() != bucket.flat.data_ptr():
            bucket.flat.copy_(result.view(-1))
        for index, view in zip(bucket.indices, bucket.views, strict=True):
            parameter = self._parameters[index]
            if not is_used[index]:
                parameter.grad = None
                continue
            if is_sparse[index]:
                parameter.grad = (view * scale).to_sparse(1)
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            torch.mul(view, scale, out=parameter.grad)
            self.written.append(weakref.ref(parameter.grad))


class _Summed:
    """The compressed sum of a bucket, which takes several exchanges: made when it is waited for, in one order."""

    def __init__(self, work: Callable[[], torch.Tensor]) -> None:
        self._work = work

    def wait(self) -> torch.Tensor:
        return self._work()
