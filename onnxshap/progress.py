"""How a run tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what is going on; `done` of `total` steps of a stage."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show it, or not."""


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""
