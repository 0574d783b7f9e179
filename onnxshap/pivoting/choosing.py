"""Which Convs are split, and in how many groups, so that the least is lost for the multiply-accumulates saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.pivoting.arranging import arrange
from onnxshap.pivoting.convs import Dense, Wanted
from onnxshap.pivoting.permuting import Classes


@dataclass(frozen=True)
class Ladder:
    """The numbers of groups that a Conv may have beside one, ascending, and what its outputs are worth.

    Worth counts in which Convs are split; in their orders it does not: there it was measured to do harm.
    """

    conv: Dense
    groups: tuple[int, ...]
    weight: float


def saved(conv: Dense, groups: int) -> int:
    """Return the multiply-accumulates that groups save."""
    return conv.macs - conv.macs // groups


def choose(
    ladders: Sequence[Ladder],
    most: int,
    sets: Sequence[Classes],
    placed: Classes,
    rng: np.random.Generator,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, int], Classes]:
    """Return the groups of the Convs that are split, by their outputs' names, and the placement.

    From the most groups everywhere, the step that saves most loss per multiply-accumulate is taken back, the orders
    chosen anew after each, as long as enough is saved.

    Args:
        ladders: the Convs and their numbers of groups.
        most: multiply-accumulates that have to be saved.
        sets, placed, rng: as in `arrange`.
        tell: told after every step.
    """
    steps = [(1, *ladder.groups) for ladder in ladders]
    level = [len(s) - 1 for s in steps]

    def wanted() -> list[Wanted]:
        triples = zip(ladders, steps, level, strict=True)
        return [Wanted(ladder.conv, s[k]) for ladder, s, k in triples if k]

    def lost(number: int, groups: int, placed: Classes) -> float:
        return ladders[number].weight * (1 - (ladders[number].conv.explained(groups, placed) if groups > 1 else 1.0))

    total = sum(level)
    while True:
        present = sum(saved(ladder.conv, s[k]) for ladder, s, k in zip(ladders, steps, level, strict=True))
        best, value = -1, -np.inf
        for number, (ladder, s, k) in enumerate(zip(ladders, steps, level, strict=True)):
            if not k:
                continue
            costs = saved(ladder.conv, s[k]) - saved(ladder.conv, s[k - 1])
            gain = (lost(number, s[k], placed) - lost(number, s[k - 1], placed)) / max(1, costs)
            if present - costs >= most and gain > value:
                best, value = number, gain
        if best < 0:
            break
        level[best] -= 1
        placed = arrange(wanted(), sets, placed, rng, starts=1)
        tell(total - sum(level), total)
    chosen = {ladder.conv.y: s[k] for ladder, s, k in zip(ladders, steps, level, strict=True) if k}
    return chosen, arrange(wanted(), sets, placed, rng)
