"""The time of a step: computing, stepping the optimizer, and what communication adds to them.

    step(stage) = a x pass + c n_step + exposed communication

with `a` micro-batches, `c` seconds per parameter for clipping and AdamW, and n_step parameters that a rank steps (all,
or 1/N of them where the optimizer's state is cut). A pass takes its floating-point operations over the measured rate.
Communication is an all-reduce of the gradients (stage 0), a reduce-scatter of them and an all-gather of the parameters
(stages 1 and 2; without the latter where the weights are shared), or a reduce-scatter and two all-gathers for each
micro-batch (stage 3). Where a core is free, or hosts are joined by a wire, it runs beside the backward pass, two
thirds of a pass, but for what comes last: the gradients of the parameters outside the layers. Then only the rest is
exposed. Stage 1 communicates when the pass is over.
"""

from dataclasses import dataclass

from hvdkit.plan.footprint import Footprint
from hvdkit.plan.network import Network, Ranks

_BACKWARD_SHARE = 2 / 3


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
        gradients, parameters = self._communication(stage, ranks, shared_weights, strategy)
        return Time(
            compute=self.accumulate * pass_s,
            optimizer=stepped * machine.optimizer_s,
            communication=gradients + parameters,
            exposed=self._exposed(stage, ranks, gradients, parameters),
        )

    def _exposed(self, stage: int, ranks: Ranks, gradients: float, parameters: float) -> float:
        """What is left of these seconds of communication when computing hides what it can."""
        machine = self.network.machine
        if stage == 1 or not (machine.has_free_core or ranks.hosts > 1):
            return gradients + parameters
        pass_s = self.footprint.flops / machine.flops_per_s
        backward_s = _BACKWARD_SHARE * pass_s
        # The gradients of what lies outside the layers come last, and nothing is left to hide them.
        last = gradients * min(1.0, self.footprint.root / max(1, self.footprint.gradients))
        if stage < 3:
            return max(last, gradients - backward_s) + parameters
        gathered = max(0.0, parameters - self.accumulate * pass_s)
        return max(last, gradients - max(0.0, backward_s - parameters / 2)) + gathered

    def bytes_sent(self, stage: int, ranks: Ranks, *, shared_weights: bool = False) -> float:
        """Bytes that a rank sends in a step, as the algorithms that send least do."""
        part = (ranks.size - 1) / ranks.size * self.footprint.gradients
        gathers = {0: 1, 1: 0 if shared_weights else 1, 2: 0 if shared_weights else 1, 3: 2 * self.accumulate}[stage]
        return part * (1 + gathers)

    def bytes_out(self, stage: int, ranks: Ranks, strategy: str = "hierarchical") -> float:
        """Bytes that a host sends to others in a step."""
        calls = {"all_reduce": 1} if stage == 0 else {"reduce_scatter": 1, "all_gather": 1}
        if stage == 3:
            calls["all_gather"] = 2 * self.accumulate
        nbytes = self.footprint.gradients
        return sum(count * self.network.bytes_out(kind, strategy, nbytes, ranks) for kind, count in calls.items())

    def _communication(self, stage: int, ranks: Ranks, shared_weights: bool, strategy: str) -> tuple[float, float]:
        """Seconds for gradients, and for parameters."""
        if ranks.size == 1:
            return 0.0, 0.0
        gradients = self._over_messages(_of(stage), ranks, strategy)
        if stage == 0 or shared_weights:
            return gradients, 0.0
        gather = self._over_messages("all_gather", ranks, strategy)
        return gradients, gather * (2 * self.accumulate if stage == 3 else 1)

    def _over_messages(self, collective: str, ranks: Ranks, strategy: str) -> float:
        network, lengths = self.network, self.footprint.message_bytes
        if strategy != "auto" and strategy not in network.algorithms(ranks, collective):
            raise KeyError(strategy)
        names = [network.chosen(collective, n, ranks) if strategy == "auto" else strategy for n in lengths]
        pairs = zip(names, lengths, strict=True)
        return sum(network.seconds(collective, name, nbytes, ranks) for name, nbytes in pairs)


def _of(stage: int) -> str:
    return "reduce_scatter" if stage else "all_reduce"
