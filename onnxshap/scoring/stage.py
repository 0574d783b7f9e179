"""The score stage: which jobs there are, when a group has enough, and what its results come to.

A group ends by the first of these rules; all but `max_seconds` depend on the seed alone, not on the machine:

samples      every calibration image was used
max-evals    the group's share of the evaluations is spent
max-seconds  the time is spent: a group gets its share, by what a row of it takes, and what others leave; one image at
             least
decided      the expected share of misplaced units at the cut is small
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import ndtr

from onnxshap.core import FloatArray, Values
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import PerImage, Schedule
from onnxshap.game import Setting
from onnxshap.groups import Group
from onnxshap.methods import GAMELESS, METHODS, ByImage
from onnxshap.methods.base import Tell
from onnxshap.scoring.jobs import Job, Result, plan_group
from onnxshap.scoring.journal import Journal
from onnxshap.scoring.runners import Here, Runner
from onnxshap.scoring.work import fit_work, row_work

DECIDED = 0.1
"""Expected misplaced share at which a group has enough images."""
FEWEST = 32
"""Images before the standard errors are believed."""


@dataclass(frozen=True)
class Rules:
    """When scoring stops.

    Attributes:
        max_evals: rows in all, shared by the groups in proportion to their units.
        max_seconds: wall clock, shared in proportion to what a row of every unit takes; what a group leaves goes to
            the next, and what all leave to those with the fewest images.
        decided: expected misplaced share below which a group ends; 0 = never.
        keep: group -> units that the plan will keep, about; half of the units where it is not said.
        late: the method of the groups that one without a game was not begun with when the time was over; None = it
            takes its time.
    """

    max_evals: int | None = None
    max_seconds: float | None = None
    decided: float = DECIDED
    keep: Mapping[str, int] = field(default_factory=dict)
    late: str | None = None

    def __post_init__(self) -> None:
        if self.max_evals is not None and self.max_evals < 1:
            raise BudgetError(f"--max-evals is {self.max_evals}; give 1 or more")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise BudgetError(f"--max-seconds is {self.max_seconds:g}; give more than 0")
        if not 0 <= self.decided < 1:
            raise BudgetError(f"--decided is {self.decided:g}; give a share from 0 (never stop early) to below 1")


def misplaced(phi: FloatArray, stderr: FloatArray, keep: int) -> float:
    """Return the expected share of units on the wrong side of the cut: sum_i Phi(-|phi_i - tau| / se_i) / 2k.

    tau lies between the last unit kept and the first one removed; k is the smaller side.

    >>> misplaced(np.array([3.0, 1.0, 0.0]), np.array([0.1, 0.1, 0.1]), 1)
    0.0
    >>> round(misplaced(np.array([1.0, 0.0]), np.array([0.5, 0.5]), 1), 4)
    0.1587
    """
    k = min(keep, len(phi) - keep)
    if k <= 0:
        return 0.0
    ranked = np.sort(phi)[::-1]
    distance = np.abs(phi - (ranked[keep - 1] + ranked[keep]) / 2)
    wrong = np.where(stderr > 0, ndtr(-distance / np.maximum(stderr, 1e-300)), 0.0)
    return round(float(wrong.sum()) / (2 * k), 12)


@dataclass
class _Group:
    """A group under way."""

    group: Group
    schedule: Schedule | None
    jobs: list[Job]
    estimator: PerImage | None
    images: int
    short: bool
    """Whether the evaluations did not reach all images."""
    row_images: int
    """Images that a row of the game runs: one, or all where the payoff is of all together."""
    row_work: float
    """What a row takes, or a unit without a game, in multiply-accumulates."""
    results: dict[int, Result] = field(default_factory=dict)
    submitted: int = 0
    counted: int = 0
    """Blocks from the first on that are there."""
    stopped: str = ""
    late: bool = False
    """Whether another method values it, for want of time."""

    def take(self, number: int, result: Result, rules: Rules) -> None:
        """Add a block; end the group where the blocks so far, in their order, are enough."""
        self.results[number] = result
        while not self.stopped and self.counted in self.results:
            self.counted += 1
            if self.counted == len(self.jobs):
                self.stopped = "max-seconds" if self.late else "max-evals" if self.short else "samples"
            elif self._decided(rules):
                self.stopped = "decided"

    def expire(self) -> None:
        """End the group after what is under way: its time is over."""
        if not self.stopped and self.counted == self.submitted:
            self.stopped = "max-seconds"

    def hurry(self, method: str) -> None:
        """Let a group that was not begun be valued by another method: its time is over."""
        if not self.submitted:
            self.jobs, self.late = [replace(job, method=method) for job in self.jobs], True

    def _decided(self, rules: Rules) -> bool:
        if not rules.decided or self.estimator is None or not self.estimator.decidable:
            return False
        found = self.values()
        keep = rules.keep.get(self.group.name, len(self.group) // 2)
        return (
            self.row_images == 1 and found.images >= FEWEST and misplaced(found.phi, found.stderr, keep) < rules.decided
        )

    def values(self) -> Values:
        """Return the values that the blocks from the first on make."""
        found = [self.results[k] for k in range(self.counted)]
        if self.schedule is None or self.estimator is None:
            phi, stderr = found[0].figures
            return Values(phi, stderr, found[0].evals, self.images, self.stopped)
        per_image = np.concatenate([r.figures for r in found])
        values = self.estimator.reduce(per_image, self.schedule.part(0, len(per_image)))
        images, evals = len(per_image) * self.row_images, values.evals * self.row_images
        return replace(values, evals=evals, images=images, stopped=self.stopped)

    @property
    def steps(self) -> int:
        """How much work it is, about: thousands of multiply-accumulates of a walk with every image."""
        return self._work(1 if self.schedule is None else len(self.schedule))

    @property
    def done(self) -> int:
        """How much of it is done."""
        if self.stopped:
            return self.steps
        images = sum(len(r.figures) for r in self.results.values())
        return 0 if self.schedule is None else self._work(images)

    def _work(self, images: int) -> int:
        return round(len(self.group) * self.row_work / 1e3) * images


def score_groups(
    setting: Setting,
    groups: Sequence[Group],
    method: str,
    seed: int,
    rules: Rules,
    progress: Callable[[int, int], None],
    journal: Journal | None = None,
    runner: Callable[[Tell], Runner] | None = None,
) -> dict[str, Values]:
    """Return the values of some groups.

    Args:
        setting: of the games.
        groups: what to score, in this order.
        method: its name.
        seed: of all randomness.
        rules: when to stop.
        progress: told steps done and in all.
        journal: what an earlier run left, and where results are written.
        runner: makes what runs the jobs; default: this process.

    Raises:
        BudgetError, DataError, ModelError, OnnxshapError: a rule cannot be met, a payoff or the model fails, the
            journal cannot be written, or workers are lost.
    """
    places = {g.name: k for k, g in enumerate(setting.traced.groups)}
    total = sum(len(g) for g in groups)
    chosen = METHODS[method]
    estimator = chosen.estimator if isinstance(chosen, ByImage) else None
    if method in GAMELESS:
        work = fit_work(setting.traced, groups, len(setting.data))
    else:
        work = row_work(setting.traced, groups, summed=True)
    states: dict[str, _Group] = {}
    too_few = dict[str, int]()
    for group in groups:
        limit = None if rules.max_evals is None else rules.max_evals * len(group) // max(1, total)
        try:
            schedule, jobs = plan_group(setting, group, places[group.name], method, seed, limit)
        except BudgetError as error:
            if error.least is None:
                raise
            too_few[group.name] = -(-error.least * total // len(group))
            continue
        whole, row_images = len(setting.data), 1
        if isinstance(chosen, ByImage):
            images, row_images = whole, whole // chosen.images(setting)
        else:
            images = chosen.images(setting, len(group), limit)
        short = images < whole if schedule is None else schedule.short
        states[group.name] = _Group(group, schedule, jobs, estimator, images, short, row_images, work[group.name])
    if too_few:
        raise BudgetError(
            f"--max-evals is {rules.max_evals}, shared by the groups in proportion to their units: too few for group "
            f"{next(iter(too_few))!r}{f' and {len(too_few) - 1} more' if len(too_few) > 1 else ''}; give "
            f"{max(too_few.values())} or more"
        )
    _Loop(setting, states, method, rules, progress, journal, runner).run()
    return {name: state.values() for name, state in states.items()}


@dataclass
class _Loop:
    """Keeps the runner busy until every group has ended."""

    setting: Setting
    states: Mapping[str, _Group]
    method: str
    rules: Rules
    progress: Callable[[int, int], None]
    journal: Journal | None
    make_runner: Callable[[Tell], Runner] | None
    under_way: int = 0

    def run(self) -> None:
        """Play."""
        self._start = time.monotonic() - (self.journal.seconds if self.journal else 0.0)
        self._deadlines = self._shares()
        self._current: _Group | None = None
        self._tell()
        make = self.make_runner or (lambda tell: Here(self.setting, self.method, tell))
        runner: Runner | None = None
        try:
            while True:
                while runner is None or self.under_way < runner.slots:
                    job = self._next_job()
                    if job is None:
                        break
                    if runner is None and self.journal is not None:
                        self._tell()  # what it knows took no time
                    runner = runner or make(self._partly)
                    runner.submit(job)
                    self.under_way += 1
                if runner is None or not self.under_way or all(s.stopped for s in self.states.values()):
                    return
                job, result = runner.next()
                self.under_way -= 1
                if self.journal is not None and job.method is None:
                    seconds = time.monotonic() - self._start
                    self.journal.add((job.group, job.block), result.figures, result.evals, seconds)
                self.states[job.group].take(job.block, result, self.rules)
                self._tell()
        finally:
            if runner is not None:
                runner.close()
            if self.journal is not None:
                self.journal.close()

    def _shares(self) -> dict[str, float]:
        """Return when each group's time is over, in seconds from the start."""
        most = self.rules.max_seconds
        if most is None:
            return {}
        work = np.array([len(s.group) * s.row_work for s in self.states.values()])
        ends = most * (np.cumsum(work) / max(1.0, work.sum()))
        return dict(zip(self.states, ends.tolist(), strict=True))

    def _next_job(self) -> Job | None:
        """Return the next job that is needed, None where there is none to submit now.

        Groups take turns by their shares of the time; what is left at the end goes to those with the fewest images.
        """
        elapsed = time.monotonic() - self._start
        for name, state in self.states.items():
            late = elapsed >= self._deadlines.get(name, np.inf)
            if state.schedule is None and self.rules.late is not None and elapsed >= (self.rules.max_seconds or np.inf):
                state.hurry(self.rules.late)
            if not (late and state.submitted) and (job := self._job_of(state)) is not None:
                return job
        for state in sorted(self.states.values(), key=lambda s: s.submitted / len(s.jobs)):
            if elapsed >= (self.rules.max_seconds or np.inf):
                state.expire()
            elif (job := self._job_of(state)) is not None:
                return job
        return None

    def _job_of(self, state: _Group) -> Job | None:
        """Return the next job of a group; those that the journal knows are taken from there."""
        while not state.stopped and state.submitted < len(state.jobs):
            job = state.jobs[state.submitted]
            state.submitted += 1
            known = self.journal.found.get((job.group, job.block)) if self.journal else None
            if known is None:
                self._current = state
                return job
            state.take(job.block, Result(*known), self.rules)
        return None

    def _tell(self, extra: float = 0.0) -> None:
        done = sum(s.done for s in self.states.values()) + int(extra)
        self.progress(done, sum(s.steps for s in self.states.values()))

    def _partly(self, share: float) -> None:
        if self._current is not None:
            self._tell(share * self._current.steps)
