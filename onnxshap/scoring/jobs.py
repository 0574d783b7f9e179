"""The work of scoring as jobs that can run anywhere, in any order, and be repeated: the values stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxshap import streams
from onnxshap.core import Dataset, FloatArray
from onnxshap.errors import BudgetError, DataError, ModelError
from onnxshap.estimators.images import Schedule, Scope
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.methods import GAMELESS, METHODS, ByImage
from onnxshap.methods.base import Tell, untold
from onnxshap.methods.overall import OverallGame
from onnxshap.payoffs import OverAll


@dataclass(frozen=True)
class Job:
    """A block of images of one group, or a whole group.

    Attributes:
        group: name.
        block: number of the block within the group.
        schedule: the images and what is random about them; None: the whole group.
        seed: of a whole group's randomness.
        max_evals: of a whole group.
        method: another one than the player's, of a whole group; None = that.
    """

    group: str
    block: int
    schedule: Schedule | None
    seed: tuple[int, ...] = ()
    max_evals: int | None = None
    method: str | None = None


@dataclass(frozen=True)
class Result:
    """What a job found.

    Attributes:
        figures: float64[images, n_units] of a block, else float64[2, n_units], values and their standard errors.
        evals: rows evaluated.
    """

    figures: FloatArray
    evals: int


class Player:
    """Runs jobs of one setting; the game of the last group stays open."""

    def __init__(self, setting: Setting, method: str) -> None:
        self._setting = replace(setting)  # its own: what a route holds goes with the player
        self._method, self._plays = METHODS[method], method not in GAMELESS
        self._groups: Mapping[str, Group] = {g.name: g for g in setting.traced.groups}
        self._open: tuple[str, GroupGame | OverallGame] | None = None

    def play(self, job: Job, tell: Tell = untold) -> Result:
        """Return what a job finds.

        Raises:
            DataError: as the payoff does.
            ModelError: the model, which runs whole, refuses to run without some units of the group.
        """
        try:
            return self._play(job, tell)
        except ModelError as error:
            if not self._plays:
                raise
            raise ModelError(
                f"group {job.group!r} cannot be scored by leaving units out: {error}; "
                f"--exclude {job.group!r} keeps it whole, --method recon leaves none out"
            ) from error

    def _play(self, job: Job, tell: Tell) -> Result:
        group, method = self._groups[job.group], self._method if job.method is None else METHODS[job.method]
        if isinstance(method, ByImage):
            assert job.schedule is not None
            if self._open is None or self._open[0] != job.group:
                self._open = None  # closed before the next one opens: sessions and activations hold memory
                self._open = job.group, method.game(self._setting, group)
            figures = method.estimator.per_image(self._open[1], job.schedule)
            return Result(figures, int(job.schedule.rows.sum()))
        values = method(self._setting, group, np.random.default_rng(job.seed), job.max_evals, tell)
        return Result(np.stack([values.phi, values.stderr]), values.evals)


def fingerprint(data: Dataset) -> str:
    """Return the sha256 of a data set, names and shapes included."""
    found = hashlib.sha256()
    for name, values in (*sorted(data.inputs.items()), ("", data.labels)):
        if values is not None:
            found.update(repr((name, values.dtype.str, values.shape)).encode())
            found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def blocks(schedule: Schedule, most: int = 16) -> Sequence[Schedule]:
    """Return a schedule in blocks: of 1, 1, 2, 4 images and so on, up to an eighth of all and at most 16.

    What a group takes is known after its first image, and little more than that is played where its time is over.
    """
    largest = int(np.clip(len(schedule) // 8, 1, most))
    found, start = list[Schedule](), 0
    while start < len(schedule):
        stop = start + min(largest, max(1, start))
        found.append(schedule.part(start, stop))
        start = stop
    return found


def plan_group(
    setting: Setting, group: Group, place: int, method: str, seed: int, max_evals: int | None
) -> tuple[Schedule | None, list[Job]]:
    """Return the schedule of a group (None: it cannot be split) and its jobs, in order.

    Args:
        setting: of the games.
        group: what to score.
        place: its number among the model's groups, so that its randomness does not depend on what else is scored.
        method: its name.
        seed: the run's.
        max_evals: the group's share.

    Raises:
        BudgetError: the share is too small.
    """
    chosen, key = METHODS[method], (seed, streams.GROUP, place)
    if not isinstance(chosen, ByImage):
        if chosen.plays and isinstance(setting.payoff, OverAll):
            raise DataError(
                f"payoff {setting.payoff.name!r} is one number for all images, method {method!r} needs one each; use "
                "shapley-regression"
            )
        try:
            chosen.images(setting, len(group), max_evals)
        except BudgetError as error:
            raise BudgetError(f"group {group.name!r}: {error}", error.least) from error
        return None, [Job(group.name, 0, None, key, max_evals)]
    images = chosen.images(setting)
    limit = None if max_evals is None else max_evals * images // len(setting.data)
    try:
        scope = Scope(images, len(group), limit, chosen.alike(setting))
        schedule = chosen.estimator.plan(scope, np.random.default_rng(key))
    except BudgetError as error:
        least = None if error.least is None else -(-error.least * len(setting.data) // images)
        raise BudgetError(f"group {group.name!r}: {error}", least) from error
    return schedule, [Job(group.name, number, part) for number, part in enumerate(blocks(schedule))]
