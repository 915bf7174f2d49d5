"""What local updates cost this rank, and what synchronous training would have."""

from dataclasses import dataclass

from hvdkit.local.exchange import Outcome


@dataclass
class Statistics:
    """Counts since the optimizer was wrapped, of this rank."""

    ranks: int
    values: int
    """Trained values of the model."""
    value_bytes: int
    """Of one gradient value."""
    steps: int = 0
    rounds: int = 0
    bytes_sent: float = 0.0
    """Of pseudo-gradients."""
    waited_s: float = 0.0
    """In which no inner step could run: for exchanges (what was not overlapped) and slow ranks, and for outer steps."""
    exchange_s: float = 0.0
    """Time of exchanges once all ranks were there."""
    exchanged_values: int = 0

    def add(self, outcome: Outcome, ends_round: bool) -> None:
        """Count an exchange, if any rank had something to bring."""
        self.bytes_sent += outcome.bytes_sent
        if any(outcome.shares):
            self.rounds += ends_round
            self.exchange_s += outcome.seconds
            self.exchanged_values += outcome.mean.numel()

    @property
    def synchronous_bytes(self) -> float:
        """What this rank would have sent with an all-reduce of all gradients in each step: 2(p-1)/p of their bytes."""
        return 2 * (self.ranks - 1) / self.ranks * self.values * self.value_bytes * self.steps

    @property
    def synchronous_s(self) -> float:
        """What these all-reduces would have taken, if each took as long as the exchanges that were made."""
        return self.exchange_s / self.exchanged_values * self.values * self.steps if self.exchanged_values else 0.0

    def lines(self) -> list[str]:
        """For the user."""
        sent, instead = self.bytes_sent, self.synchronous_bytes
        share = f", 1/{instead / sent:.3g} of synchronous training's {instead / 1e6:,.3g} MB" if sent else ""
        return [
            f"local updates: {self.steps} steps in {self.rounds} rounds; {sent / 1e6:,.3g} MB sent per rank{share}",
            f"exchanges took {self.exchange_s:.3g} s ({self.waited_s:.3g} s waited, for slow ranks too); an exchange "
            f"in every step, as synchronous training has, would take {self.synchronous_s:.3g} s",
        ]
