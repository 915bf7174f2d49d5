"""The time of a step: computing, stepping the optimizer, and what communication adds to them.

    step(stage) = a x pass + c n_step + exposed communication

with `a` micro-batches, `c` seconds per parameter for clipping and AdamW, and n_step parameters that a rank steps (all,
or 1/N of them where the optimizer's state is cut). A pass takes its floating-point operations over the measured rate.
Communication is an all-reduce of the gradients (stage 0), a reduce-scatter of them and an all-gather of the parameters
(stages 1 and 2; without the latter where the weights are shared), or a reduce-scatter and, for each micro-batch, two
all-gathers of each layer but one of the last and of what lies outside the layers, which stay for the backward pass
(stage 3). Where a core is free, or hosts are joined by a wire, it runs beside the backward pass, two thirds of a
pass, but for what comes last: the gradients of the parameters outside the layers. Without a free core the wire alone
can, not what ranks do within a host, and a third of that time hides it (measured between two hosts whose ranks all
computed: moving data takes a core too). Then only the rest is exposed. Stage 1 communicates when the pass is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hvdkit.plan.footprint import Footprint
from hvdkit.plan.network import Network, Ranks

_BACKWARD_SHARE = 2 / 3
_HIDING_SHARE = 1 / 3
"""Of the time in which ranks compute on all cores, how much hides communication between hosts."""


@dataclass(frozen=True)
class Time:
    """Seconds of a step, of one rank."""

    compute: float
    optimizer: float
    communication: float
    """If nothing of it were hidden."""
    exposed: float

    @property
    def step(self) -> float:
        """All together."""
        return self.compute + self.optimizer + self.exposed


@dataclass(frozen=True)
class Timing:
    """Predicts steps of one model on one network; `accumulate` micro-batches make a step."""

    footprint: Footprint
    network: Network
    accumulate: int = 1

    def step(self, stage: int, ranks: Ranks, *, shared_weights: bool = False, strategy: str = "auto") -> Time:
        """Of a step at `stage`. Raises KeyError if `strategy` is not one of the network's algorithms there."""
        machine = self.network.machine
        pass_s = self.footprint.flops / machine.flops_per_s
        stepped = self.footprint.trained / (ranks.size if stage else 1)
        part = self._communication(stage, ranks, shared_weights, strategy)
        return Time(
            compute=self.accumulate * pass_s,
            optimizer=stepped * machine.optimizer_s,
            communication=part.gradients + part.parameters,
            exposed=self._exposed(stage, ranks, part),
        )

    def _exposed(self, stage: int, ranks: Ranks, part: "_Communication") -> float:
        """What is left of these seconds of communication when computing hides what it can."""
        machine = self.network.machine
        if stage == 1 or not (machine.has_free_core or ranks.hosts > 1):
            return part.gradients + part.parameters
        pass_s = self.footprint.flops / machine.flops_per_s
        busy, hiding_s = (0.0, pass_s) if machine.has_free_core else (1.0, _HIDING_SHARE * pass_s)
        backward_s = _BACKWARD_SHARE * hiding_s
        # The gradients of what lies outside the layers come last, and nothing is left to hide them.
        outside = min(1.0, self.footprint.root / max(1, self.footprint.gradients))
        least = max(part.gradients * outside, part.busy_gradients * busy)
        if stage < 3:
            return max(least, part.gradients - backward_s) + part.parameters
        # Nor anything to hide their gathering, before the first layer.
        first = max(part.parameters * outside / 2, part.busy_parameters * busy)
        gathered = max(first, part.parameters - self.accumulate * hiding_s)
        return max(least, part.gradients - max(0.0, backward_s - part.parameters / 2)) + gathered

    def bytes_sent(self, stage: int, ranks: Ranks, *, shared_weights: bool = False) -> float:
        """Bytes that a rank sends in a step, as the algorithms that send least do."""
        gathers = 0.0 if shared_weights else self._gathers(stage) if stage else 1.0
        return (ranks.size - 1) / ranks.size * self.footprint.gradients * (1 + gathers)

    def bytes_out(self, stage: int, ranks: Ranks, strategy: str = "hierarchical") -> float:
        """Bytes that a host sends to others in a step."""
        calls = {"all_reduce": 1.0} if stage == 0 else {"reduce_scatter": 1.0, "all_gather": self._gathers(stage)}
        nbytes = self.footprint.gradients
        return sum(count * self.network.bytes_out(kind, strategy, nbytes, ranks) for kind, count in calls.items())

    def _gathers(self, stage: int) -> float:
        """How often the bytes of the gradients are gathered in a step, as parameters; frozen ones too at stage 3."""
        if stage < 3:
            return 1.0
        footprint = self.footprint
        whole = footprint.parameters * footprint.itemsize
        return self.accumulate * (2 * whole - footprint.root - footprint.layer) / max(1, footprint.gradients)

    def _communication(self, stage: int, ranks: Ranks, shared_weights: bool, strategy: str) -> "_Communication":
        if ranks.size == 1:
            return _Communication()
        lengths = self.footprint.flat_bytes if stage else self.footprint.message_bytes
        gradients, busy_gradients = self._over("reduce_scatter" if stage else "all_reduce", lengths, ranks, strategy)
        if stage == 0 or shared_weights:
            return _Communication(gradients, busy_gradients)
        gather, busy_gather = self._over("all_gather", lengths, ranks, strategy)
        times = self._gathers(stage)
        return _Communication(gradients, busy_gradients, gather * times, busy_gather * times)

    def _over(self, collective: str, lengths: Sequence[int], ranks: Ranks, strategy: str) -> tuple[float, float]:
        """Seconds of messages of these lengths, and those in which they keep the ranks busy."""
        network = self.network
        if strategy != "auto" and strategy not in network.algorithms(ranks, collective):
            raise KeyError(strategy)
        seconds = busy = 0.0
        for nbytes in lengths:
            name = network.chosen(collective, nbytes, ranks) if strategy == "auto" else strategy
            took = network.seconds(collective, name, nbytes, ranks)
            seconds += took
            busy += min(took, network.busy_seconds(collective, name, nbytes, ranks))
        return seconds, busy


@dataclass(frozen=True)
class _Communication:
    """Seconds for gradients and for parameters, and how many of them keep the ranks busy."""

    gradients: float = 0.0
    busy_gradients: float = 0.0
    parameters: float = 0.0
    busy_parameters: float = 0.0
