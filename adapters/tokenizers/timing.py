"""Which numbers of frames make up whole steps of the T axis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Frames <-> steps: `time` frames are a step, but that the first step of what is causal is a single frame.

    Args:
        time: t >= 1.
        lead: 1 where the first step is one frame (T = 1 + t * k), else 0 (T = t * k).
        chunk: steps that come together only, after the first one of `lead` 1.
    """

    time: int = 1
    lead: int = 0
    chunk: int = 1

    @property
    def least(self) -> int:
        """The fewest frames."""
        return self.lead or self.time * self.chunk

    def frames(self, steps: int) -> int:
        """How many frames so many steps have."""
        return self.lead + self.time * (steps - self.lead)

    def steps(self, frames: int) -> int:
        """How many steps so many frames >= 1 take, rounded up to what is legal."""
        return self.lead + -(-(frames - self.lead) // (self.time * self.chunk)) * self.chunk

    def whole(self, frames: int) -> int:
        """The most frames, not more than `frames`, that are whole steps; 0 if none are."""
        hop = self.time * self.chunk
        return max(self.lead + (frames - self.lead) // hop * hop, 0)

    def counts(self, steps: int) -> list[int]:
        """The frames of each of so many steps."""
        return [1] * self.lead + [self.time] * (steps - self.lead)

    def check(self, frames: int, name: str = "frames") -> None:
        """Raises ValueError where so many frames are not whole steps; the nearest legal numbers are named."""
        lower = self.whole(frames)
        if lower != frames or frames < 1:
            together = f", {self.chunk} together," if self.chunk > 1 else ""
            after = " after the first" if self.lead else ""
            legal = " or ".join(str(number) for number in (lower, self._above(lower)) if number > 0)
            raise ValueError(
                f"{name} is {frames}; with elements of {self.time} frames{together}{after} it must be {legal}"
            )

    def _above(self, whole: int) -> int:
        return whole + self.time * self.chunk if whole else self.least
