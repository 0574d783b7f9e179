"""How a run tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Say = Callable[[str], None]
"""Told what the user should know while a run goes on."""


class Progress(Protocol):
    """Told what is going on; `done` of `total` steps of a stage."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show it, or not."""


def wordless(text: str) -> None:
    """Say nothing."""


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""
