"""Models with Convs in groups, tried until one saves what it should and loses no more than it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnxshap import streams, valuing
from onnxshap.core import Array, Dataset
from onnxshap.errors import BudgetError
from onnxshap.evaluation import Evaluation
from onnxshap.pivoting.arranging import arrange
from onnxshap.pivoting.choosing import Ladder, choose
from onnxshap.pivoting.convs import Wanted
from onnxshap.pivoting.permuting import Classes, nobody_moved
from onnxshap.pivoting.selecting import Splittable
from onnxshap.pivoting.splitting import WEIGHED, split_convs, weigh
from onnxshap.plan.judging import Drop
from onnxshap.plan.trials import FEWEST_FITTED
from onnxshap.progress import Progress
from onnxshap.repair import Refit
from onnxshap.tracing import Traced
from onnxshap.verify import Verified

_ATTEMPTS = 5
"""Models that are made to find the one that loses no more than it may."""


@dataclass(frozen=True)
class Attempt:
    """One model with Convs in groups.

    Attributes:
        chosen: their outputs -> groups.
        placed: the placement of the channels.
        model: the model.
        exact: the original with its channels in other places against the original.
        verified: the model before the refit against its twin.
        refits: what least squares did.
        outputs: what it gives for the images that judge.
        lost: what it loses on them.
    """

    chosen: Mapping[str, int]
    placed: Classes
    model: ModelProto
    exact: Verified
    verified: Verified
    refits: Sequence[Refit]
    outputs: Sequence[Array]
    lost: Drop


@dataclass(frozen=True)
class Attempts:
    """Makes models by how much is saved.

    Attributes:
        evaluation: the original, and the images that judge.
        free: it for evaluation.
        data: images to repair and to verify with.
        repair: one of `job.REPAIRS`.
        seed: of all randomness.
        progress: told what is going on.
        ladders: the Convs that may be split, and what they are worth.
        movable: sets of channels that may change places.
        placed: the placement with all Convs in most groups.
    """

    evaluation: Evaluation
    free: Traced
    data: Dataset
    repair: str
    seed: int
    progress: Progress
    ladders: Sequence[Ladder]
    movable: Sequence[Classes]
    placed: Classes

    @classmethod
    def of(
        cls, evaluation: Evaluation, free: Traced, data: Dataset, repair: str, seed: int, progress: Progress,
        splittable: Splittable, movable: Sequence[Classes],
    ) -> Attempts:  # fmt: skip
        """Weigh the Convs against each other; `splittable` tells which there are."""
        traced, groups = evaluation.traced, splittable.groups
        wanted = [Wanted(c, groups[c.y][-1]) for c in splittable.convs]
        rng = streams.stream(seed, streams.ARRANGEMENT)
        placed = arrange(wanted, movable, nobody_moved(traced.labels), rng)
        runs = valuing.RUNS // max(1, len(wanted) * traced.cost.macs())
        weighed_on = data.take(slice(0, max(FEWEST_FITTED, min(WEIGHED, runs))))
        weights = weigh(traced, free, wanted, placed, weighed_on, repair, progress)
        ladders = [Ladder(c, groups[c.y], weight) for c, weight in zip(splittable.convs, weights, strict=True)]
        return cls(evaluation, free, data, repair, seed, progress, ladders, movable, placed)

    def saving(self, least: int) -> Attempt:
        """Return the model in which Convs are split until so many multiply-accumulates are saved."""
        draws = streams.stream(self.seed, streams.SPLITTING)
        chosen, placed = choose(
            self.ladders, least, self.movable, self.placed, draws, lambda done, of: self.progress("search", done, of)
        )
        made, exact, verified, refits = split_convs(
            self.evaluation.traced, self.free, chosen, placed, self.data, self.repair, self.seed, self.progress
        )
        outputs = self.evaluation.outputs(made)
        return Attempt(chosen, placed, made, exact, verified, refits, outputs, self.evaluation.judge.lost(outputs))

    def within(self, least: int, most: int, drop: float) -> Attempt:
        """Return the model found that saves most and loses at most `drop`; bisection over what is saved.

        Args:
            least: multiply-accumulates that have to be saved, 0 = any.
            most: those that can be.
            drop: the most that may be lost, one standard error included.

        Raises:
            BudgetError: none is within.
        """
        found = self.saving(most)
        if found.lost.bound <= drop:
            return found
        best, low, high = None, least, most
        for number in range(_ATTEMPTS):
            middle = low if least and number == 0 else (low + high) // 2
            found = self.saving(middle)
            if found.chosen and found.lost.bound <= drop:
                best, low = found, middle
            elif middle == low:
                break
            else:
                high = middle
        if best is None:
            raise BudgetError(
                f"--max-drop {drop:g}: with {len(found.chosen)} Convs split {found.lost} is lost; allow more"
            )
        return best
