"""Which optimizers' exchanges are ready on all ranks: several may meet in another order on each rank."""

from collections.abc import Callable
from typing import NoReturn

_BITS = 62
EVERYTHING = (1 << _BITS) - 1
"""The bits of a rank that is ready for every exchange."""


class ReadyExchanges:
    """The optimizers that exchange gradients over a group, and those of their exchanges that are ready on this rank.

    An optimizer has a number, the same on all ranks. An exchange is collective, and done when all ranks are ready for
    it.
    """

    def __init__(self, common_bits: Callable[[int], int], explain: Callable[[str], NoReturn]) -> None:
        """`common_bits(mine)` gives the bits that all ranks set, `explain(mine)` raises what each waits for. Both are
        collective."""
        self._common_bits, self._explain = common_bits, explain
        self._optimizers: set[int] = set()
        self._pending: dict[int, Callable[[], None]] = {}

    def add_optimizer(self, number: int) -> None:
        """Optimizer `number` exchanges over this group from now on."""
        self._optimizers.add(number)

    def remove_optimizer(self, number: int) -> None:
        """Optimizer `number` exchanges no more."""
        self._optimizers.discard(number)

    def clear_optimizers(self) -> None:
        """No optimizer is known any more."""
        self._optimizers.clear()

    @property
    def has_one_optimizer(self) -> bool:
        """Whether there is one alone, with whose exchanges no other's can come in another order."""
        return len(self._optimizers) == 1

    def put(self, number: int, exchange: Callable[[], None]) -> None:
        """The exchange of optimizer `number` is ready on this rank."""
        self._pending[number] = exchange

    def drop(self, number: int) -> None:
        """Forget the exchange of optimizer `number`, if it has one."""
        self._pending.pop(number, None)

    def do(self, number: int) -> None:
        """Do exchanges, each when all ranks are ready for it, until that of `number` is done. Collective.

        Raises CollectiveMismatchError if the ranks wait for exchanges of which none is ready everywhere.
        """
        while number in self._pending:
            ready = self._common_bits(sum(1 << bit for bit in {number % _BITS for number in self._pending}))
            common = [number for number in sorted(self._pending) if ready >> (number % _BITS) & 1]
            if not common:
                names = ", ".join(f"optimizer {number}" for number in sorted(self._pending))
                self._explain(f"the gradients of {names}")
            for number_now in common:
                self._pending.pop(number_now)()
