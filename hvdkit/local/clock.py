"""Where a rank is in its round, and which fragment comes next."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Fragment f of F is due when (f + 1) / F of this rank's steps of the round are done."""

    fragments: int
    length: int
    """Steps of a round, as agreed."""
    own_length: int
    """Of this rank, where ranks differ."""
    steps: int = 0
    """Done in all."""
    done: int = 0
    """Done in this round."""
    fragment: int = 0
    """The next one to be synchronised."""

    def tick(self) -> None:
        """A step is done."""
        self.steps += 1
        self.done += 1

    @property
    def is_due(self) -> bool:
        """Whether the next fragment has to be synchronised."""
        return self.done * self.fragments >= (self.fragment + 1) * self.own_length

    def advance(self) -> bool:
        """On to the fragment after the next one; returns whether that began a new round."""
        self.fragment = (self.fragment + 1) % self.fragments
        if self.fragment == 0:
            self.done = 0
        return self.fragment == 0

    def restart(self) -> None:
        """Begin a round."""
        self.fragment = self.done = 0
