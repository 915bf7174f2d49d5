"""Which hosts a job goes on with after a failure: those that answer, if they have room for enough ranks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hvdkit.launch.account import Account
from hvdkit.launch.command import Wanted
from hvdkit.launch.everywhere import Answer, Everywhere
from hvdkit.launch.signals import Signals
from hvdkit.launch.times import seconds

_ASK_AGAIN_S = 5.0


@dataclass(frozen=True)
class Survivors:
    """The hosts of the job `wanted`, at least `fewest` of whose ranks must find room within `limit_s`."""

    wanted: Wanted
    fewest: int
    limit_s: float
    where: Everywhere
    account: Account
    signals: Signals

    def choose(self, answers: Sequence[Answer]) -> Wanted | None:
        """The job with as many ranks as the hosts that answered have slots for.

        While those are too few, all hosts are asked again. None if that did not help, or a signal asks for an end.
        Where no hosts were named, the launcher knows best.
        """
        deadline, said = time.monotonic() + self.limit_s, ""
        while self.wanted.hosts and not self.signals.told:
            hosts = tuple(answer.host for answer in answers if not answer.error)
            ranks = min(self.wanted.ranks, sum(host.slots for host in hosts))
            missing = "; ".join(f"{answer.host.name} is left out: {answer.error}" for answer in answers if answer.error)
            if missing and missing != said:
                self.account.say(missing)
                said = missing
                if ranks < self.fewest:
                    self.account.say(
                        f"waiting up to {seconds(self.limit_s)} for room for {self.fewest} ranks (--min-np)"
                    )
            if ranks >= self.fewest:
                return replace(self.wanted, ranks=ranks, hosts=hosts)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self.signals.pause(min(_ASK_AGAIN_S, left_s))
            if not self.signals.told:
                answers = self.where.clean()
        return None if self.signals.told else self.wanted
