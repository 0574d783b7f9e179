"""What distillation did; apart from it, because that needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """What the tuning did.

    Attributes:
        epochs: epochs run.
        best: the epoch whose weights were kept; 0 = the start.
        before, after: held-out losses of the outputs.
    """

    epochs: int
    best: int
    before: float
    after: float
