"""What happens to codes that nothing chooses any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Revival(Protocol):
    """An object for the ``revival`` slot."""

    def vectors(self, codes: int) -> int:
        """How many encoder outputs to sample in each step."""
        ...

    def dead(self, idle: Any) -> Any:
        """Which codes are dead, (K,) bool. ``idle`` (K,) counts tokens since each code was last chosen."""
        ...


@dataclass(frozen=True)
class NoRevival:
    """A code that is no longer chosen stays where it is."""

    def vectors(self, codes: int) -> int:
        return 0

    def dead(self, idle: Any) -> Any:
        return idle < 0


@dataclass(frozen=True)
class Reseed:
    """A dead code moves onto an encoder output, drawn at random from the step's distinct ones, with n = 0.

    A code is dead when it was not chosen among the last ``after * K`` tokens. Were all codes equally likely, one
    would go unchosen that long with probability ``exp(-after)``; being a count of tokens, it means the same at every
    batch size. At most ``at_most`` codes move in one step.
    """

    after: float = 20.0
    at_most: int = 256

    def __post_init__(self) -> None:
        if not self.after > 0:
            raise ValueError(f"after is {self.after}; it must be positive, in tokens per code: for example 20.0.")
        if self.at_most < 1:
            raise ValueError(f"at_most is {self.at_most}; it must be at least 1 (NoRevival() turns revival off).")

    def vectors(self, codes: int) -> int:
        return min(self.at_most, codes)

    def dead(self, idle: Any) -> Any:
        return idle >= self.after * idle.shape[0]
