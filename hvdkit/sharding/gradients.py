"""Gradients of a sharded model: each flat's are summed to the ranks that hold its parts, in one fixed order.

Stage 1 does that when the backward pass is over, stage 2 as soon as a flat's gradients are complete, and stage 3 when
the next layer's backward pass begins; the gradients of whole parameters are freed at once. The weights of the ranks
come first, then the flats, then flags: which parameters have a gradient anywhere, and which got more of one after
their flat was sent.

Where a core is free the sums run on the thread for collectives, beside the backward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from hvdkit.collectives import Collectives, Work, wait_for_all
from hvdkit.errors import HvdkitError
from hvdkit.optim.bucket_sums import Residuals
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Agreement, Overlap
from hvdkit.optim.weighting import Weighting, combine
from hvdkit.sharding.shards import Shard, Shards


class ShardedExchange:
    """Sums the gradients of one backward into the pieces of `shards`; used again for every backward."""

    def __init__(
        self,
        shards: Shards,
        collectives: Collectives,
        agreed: Agreement,
        parameters: Sequence[torch.Tensor],
        options: ReducerOptions,
        weighting: Weighting,
        statistics: Statistics,
    ) -> None:
        if collectives is not shards.collectives:
            raise HvdkitError(
                "this optimizer was sharded over ranks of a Horovod that has ended; call hvd.shard() again"
            )
        self._shards, self._collectives, self._agreed = shards, collectives, agreed
        self._parameters, self._options = parameters, options
        self._weighting, self._statistics = weighting, statistics
        place = {index: number for number, index in enumerate(agreed.order)}
        # A flat is complete with the last of its gradients.
        self._put_in_order(
            sorted(shards.trained, key=lambda shard: max(place.get(index, 0) for index in shard.flat.indices))
        )
        self._overlaps = agreed.overlap is not Overlap.NEVER
        self.inverse = 1.0
        self.written: list[Any] = []
        self._begin()

    def _put_in_order(self, shards: list[Shard]) -> None:
        """From the next backward on; alike on all ranks."""
        self._order = shards
        self._number = {id(shard): number for number, shard in enumerate(shards)}

    def _begin(self) -> None:
        self._has_old = False
        self._works: list[Work] = []
        self._is_sent = [False] * len(self._order)
        self._missing = [len(shard.flat.indices) for shard in self._order]
        self._next = 0
        self._present = [False] * len(self._parameters)
        self._share = 1.0
        self._next_unit: float | None = None
        self._has_sent_weights = self._has_sent_all = self._is_silent = False
        self._parts: list[torch.Tensor | None] = [None] * len(self._order)
        self._is_used: list[bool] | None = None

    def abandon(self) -> None:
        """Forget an exchange that was begun, when what was started is done."""
        try:
            wait_for_all(self._works)
        finally:
            self._begin()

    def residuals(self) -> Residuals:
        """Nothing is kept between steps."""
        return {}

    def close(self) -> None:
        """Forget it for good."""
        self.abandon()

    def gradient_is_ready(self, index: int, fires: int) -> None:
        """The gradient of parameter `index` was accumulated for the `fires`-th time in this backward."""
        shard = self._shards.shard_of.get(index)
        if shard is None or not shard.flat.trains:
            raise HvdkitError(
                f"{self._shards.names[index]} was frozen when hvd.shard() was called, so no optimizer steps it: "
                "unfreeze before"
            )
        if self._shards.stage != 2 or fires != 1:
            return
        number = self._number[id(shard)]
        self._missing[number] -= 1
        while self._next < len(self._order) and not self._missing[self._next]:
            self._send(self._next)
            self._next += 1

    def send(self, shards: Iterable[Shard]) -> None:
        """The gradients of `shards` are complete (stage 3). Collective, in one order on all ranks."""
        for shard in shards:
            number = self._number.get(id(shard))
            if number is not None and not self._is_sent[number]:
                self._send(number)

    @torch.no_grad()
    def send_rest(self) -> None:
        """All gradients are here. Collective."""
        if self._has_sent_all:
            return
        self._has_sent_all = True
        if self._shards.stage == 1:
            self._shards.gradient_bytes = self._shards.bytes_held()["gradients"]
        self._send_weights_first()
        for number, is_sent in enumerate(self._is_sent):
            if not is_sent:
                self._send(number)
        self._run(self._exchange_flags)

    @torch.no_grad()
    def finish(self) -> bool:
        """Wait for all and put the sums into the pieces; returns that the plan still fits. Collective."""
        try:
            wait_for_all(self._works)
            is_used = self._is_used
            assert is_used is not None
            if self._next_unit is not None and self._has_old:
                raise HvdkitError(
                    "backward() ran again on gradients that are already aggregated, which has no meaning with weigh(): "
                    "call step() or zero_grad() first, or accumulate with no_sync()"
                )
            for shard, part in zip(self._order, self._parts, strict=True):
                assert part is not None
                shard.put_gradient(part, is_used.__getitem__)
            for parameter in self._parameters:
                parameter.grad = None
            if self._shards.stage > 1:
                self._shards.gradient_bytes = self._shards.bytes_held()["gradients"]
            self._weighting.unit = self._next_unit or self._weighting.unit
            # What nobody used would keep the others waiting, at stage 2.
            self._put_in_order(sorted(self._order, key=lambda shard: not any(is_used[i] for i in shard.flat.indices)))
            return True
        finally:
            self._begin()

    def _run(self, work: Callable[[], Any]) -> None:
        if self._overlaps:
            self._works.append(self._collectives.start(work))
        else:
            work()

    def _send_weights_first(self) -> None:
        if not self._has_sent_weights:
            self._has_sent_weights = True
            self._is_silent = self._weighting.is_silent
            self._run(self._exchange_weights)

    @torch.no_grad()
    def _exchange_weights(self) -> None:
        fields = torch.tensor(self._weighting.encode(), dtype=torch.float64)
        self._collectives.all_reduce_async_(fields, f"{self._agreed.key}.weights").wait()
        total = combine(fields, self._agreed.fixed_total)
        self.inverse = 1 / total.divisor if self._options.op == "average" else 1.0
        self._share = 0.0 if self._is_silent else self._weighting.factor * self.inverse
        self._next_unit = total.unit

    @torch.no_grad()
    def _send(self, number: int) -> None:
        self._send_weights_first()
        shard = self._order[number]
        self._is_sent[number] = True
        gradients = []
        for index in shard.flat.indices:
            gradient = None if self._is_silent else self._parameters[index].grad
            self._present[index] |= gradient is not None
            gradients.append(gradient)
            self._parameters[index].grad = None

        def work() -> None:
            self._parts[number] = self._sum(shard, gradients, f"{self._agreed.key}.{number}")
            gradients.clear()

        self._run(work)

    def _sum(self, shard: Shard, gradients: list[torch.Tensor | None], name: str) -> torch.Tensor:
        """This rank's part of the sum."""
        flat = shard.flat
        whole = self._whole(shard, gradients)
        gradients.clear()
        begin, end = flat.bounds(shard.rank)
        part = whole[begin:end]
        self._collectives.reduce_scatter_into(whole, part, flat.counts, name, weight=self._share)
        ranks = self._collectives.size
        self._statistics.bytes_sent += (ranks - 1) / ranks * whole.nbytes
        return part.clone()  # so that the rest is freed

    def _whole(self, shard: Shard, gradients: list[torch.Tensor | None]) -> torch.Tensor:
        flat = shard.flat
        dense = [
            torch.zeros(length, dtype=flat.dtype, device=flat.device) if gradient is None
            else (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
            for gradient, length in zip(gradients, flat.lengths, strict=True)
        ]  # fmt: skip
        return dense[0] if len(dense) == 1 else torch.cat(dense)

    @torch.no_grad()
    def _exchange_flags(self) -> None:
        late = [any(self._parameters[i].grad is not None for i in shard.flat.indices) for shard in self._order]
        for shard, is_late in zip(self._order, late, strict=True):
            for index in shard.flat.indices if is_late else ():
                self._present[index] |= self._parameters[index].grad is not None and not self._is_silent
        has_old = any(held.tensor.grad is not None for held in self._shards.held())
        flags = torch.tensor([*self._present, *late, has_old], dtype=torch.int32)
        self._collectives.all_reduce_async_(flags, f"{self._agreed.key}.flags").wait()
        used, late_on, has_old_on = flags.split([len(self._parameters), len(self._order), 1])
        self._has_old = bool(has_old_on.item())
        for number in torch.nonzero(late_on).flatten().tolist():
            shard = self._order[number]
            more = [None if self._is_silent else self._parameters[index].grad for index in shard.flat.indices]
            again = self._sum(shard, more, f"{self._agreed.key}.{number}.again")
            part = self._parts[number]
            assert part is not None
            part.add_(again)
        self._is_used = used.bool().tolist()
