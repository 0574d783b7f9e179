"""How values of every group of a model are found: with what, on how many images, and what is told of them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxshap import __version__, payoffs
from onnxshap.arguments import listed, worded
from onnxshap.backend import provider_of
from onnxshap.bases import Turned, form_of
from onnxshap.calibrate import runs_past, site_means
from onnxshap.clock import span
from onnxshap.core import Array, Dataset, Payoff, Values
from onnxshap.endings import complete
from onnxshap.errors import OnnxshapError
from onnxshap.game import Setting
from onnxshap.graph.writing import digest
from onnxshap.groups import Group
from onnxshap.measure import label_notes
from onnxshap.methods import GAMELESS, METHODS
from onnxshap.methods.base import Tell
from onnxshap.methods.ranking import CANCELLING, FEWEST, few
from onnxshap.progress import Progress, Say, wordless
from onnxshap.reference import choose_payoff, reference_of
from onnxshap.scores import Scores
from onnxshap.scoring import Rules, score_groups
from onnxshap.scoring.jobs import fingerprint
from onnxshap.scoring.journal import Journal
from onnxshap.scoring.runners import Cluster, Processes, Runner
from onnxshap.scoring.work import row_work
from onnxshap.tracing import Traced

BASELINES = ("mean", "zero")
SAMPLES = 128
"""Calibration images to score with, where nothing else is said."""
STATISTICS_SAMPLES = 1024
"""Calibration images for methods that play no game, which run every image once."""
RUNS = 4 * 10**13
"""Multiply-accumulates of runs of the whole model that weighing layers may take, a quarter of an hour on two cores."""
RATE = 2 * 10**10
"""Multiply-accumulates of a game that a core does in a second, about: a third of that with small Convs and gates."""
WORK = 15 * 10**12
"""Multiply-accumulates that scoring may take by default, some twelve minutes on one core."""
ASIDE = 4 * 10**12
"""The same before a refit, which leaves little of what tells methods apart: some three minutes."""
METHOD = "shapley"
"""What values units, where nothing is asked for and an image of it takes no more than `MOST`."""
INSTEAD = "recon"
"""What values them in its place: it plays no game, and keeps most after a refit (`benchmarks/methods.md`)."""
LATE = "l2"
"""What values those groups that it was not begun with when the time was over: it takes none."""
ORDERING = 0.2
"""Of the seconds that scoring may take, those for the order of a refit, where one follows."""
_MINUTE = 60.0
_AGAIN = 4
"""Runs of the whole model, past all layers once, from which on a larger memory is worth a word."""
_LITTLE = "for little that a refit leaves of them"
MOST = 4 * WORK
"""Multiply-accumulates of one image from which on nobody waits for a game who has not asked for it."""
_ONE_BY_ONE = (
    "every coalition was a run of its own, for the images of a batch are not known to be apart in this file; one with "
    "a free batch, or a method without a game (--method recon), takes less"
)
_BESIDE = (
    "what a sample gives depends on those that it is run with, so axis 0 of the inputs is no batch of samples in this "
    "file, and all that is found holds for such mixtures at best; give every sample an axis 0 of its own ([n, steps, "
    "features] for an input [steps, features]), or export it with a batch in front"
)

_UNTURNED = (
    "--basis principal: all units are the file's, for no group has units that linear ops alone touch, or the images "
    "are too few to tell combinations of them apart"
)


def work_of(traced: Traced, groups: Sequence[Group]) -> float:
    """Return the multiply-accumulates of an image's rows, two a unit, each of which runs what lies behind its group."""
    rows = row_work(traced, groups)
    return 2 * sum(len(g) * rows[g.name] for g in groups)


def shared_out(seconds: float | None, method: str, *, refitted: bool) -> tuple[float | None, float | None]:
    """Return the seconds for scoring, and for the order of a refit where one follows; None = no limit."""
    if seconds is None or not refitted or method not in CANCELLING:
        return seconds, None
    return (1 - ORDERING) * seconds, ORDERING * seconds


def setting_for(
    free: Traced, data: Dataset, payoff: str | Callable[..., object] | None, baseline: str, *, played: bool = True,
    reference: Sequence[Array] | None = None,
) -> Setting:  # fmt: skip
    """Return what a model is scored with: data, the original's outputs on them, a payoff that fits, means.

    Nothing reads the means where no game is `played`. Where the original's outputs are known, they are the `reference`.

    Raises:
        OnnxshapError: the baseline is unknown.
        DataError: as `reference_of` and `choose_payoff`.
    """
    reference = reference_of(free, free.shaped.graph.model, data) if reference is None else reference
    if baseline not in BASELINES:
        raise OnnxshapError(f"baseline {baseline!r} is unknown; choose one of {', '.join(BASELINES)}")
    chosen = choose_payoff(payoff, reference, data, free)
    means = site_means(free, data) if played and baseline == "mean" else {}
    return Setting(free, data, chosen, reference, means)


def check_method(name: str) -> None:
    """Refuse an unknown method.

    Raises:
        OnnxshapError: it is one.
    """
    if name not in METHODS:
        raise OnnxshapError(f"method {name!r} is unknown; choose one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class Scoring:
    """How units are scored.

    Attributes:
        method: one of `METHODS`.
        seed: of all randomness.
        rules: when it stops.
        progress: told after every block of images.
        workers: processes of this machine that do it, 0 = this one alone.
        cluster: address of a dask.distributed scheduler whose workers do it.
        journal: where results are kept as they come.
        notes: what the user should know of how they are scored.
        work: multiply-accumulates that a game may take, where nobody says on how many images it is played,
            None = `WORK`.
        fewest: images that it is played on whatever they take.
        say: told the notes before units are scored, and what a game that takes minutes takes, about.
    """

    method: str
    seed: int
    rules: Rules
    progress: Progress
    workers: int = 0
    cluster: str | None = None
    journal: str | Path | None = None
    notes: tuple[str, ...] = ()
    work: int | None = None
    fewest: int = 1
    say: Say = wordless

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            OnnxshapError: an unknown method, fewer workers than none, or a cluster that is none or one beside them.
        """
        check_method(self.method)
        if self.workers < 0:
            raise OnnxshapError(f"--workers is {self.workers}; give 0 (this process alone) or more")
        if self.cluster == "":
            raise OnnxshapError("the cluster's address is empty; give one like tcp://host:8786, or leave it out")
        if self.workers and self.cluster:
            raise OnnxshapError("give --workers or --cluster, not both")

    @property
    def plays(self) -> bool:
        """Whether the method plays a game."""
        return self.method not in GAMELESS

    def in_reach(self, traced: Traced, groups: Sequence[Group], *asked: object, refitted: bool = False) -> Scoring:
        """Return how units are scored: without a game, where nobody wants one and it would take hours or tell nothing.

        It tells nothing where a refit follows, before which values of a few images are noise (`methods.ranking`), and
        the time is for no more. Neither workers nor threads count: the same seed gives the same values on any of them.

        Args:
            traced: the model.
            groups: those to score.
            asked: what says that a game is wanted, or that none is needed, where it is not None.
            refitted: whether least squares follows the cut.
        """
        seconds = self.rules.max_seconds
        if any(one is not None for one in (*asked, self.rules.max_evals, self.cluster)):
            return self
        work = max(1.0, work_of(traced, groups))
        if refitted and self.method in CANCELLING:
            most = min(ASIDE, np.inf if seconds is None else seconds * RATE)
            if FEWEST * work <= most:
                return replace(self, work=ASIDE, fewest=FEWEST)
            reason = f"more than --max-seconds {seconds:g}" if seconds and most < ASIDE else _LITTLE
            why = (
                f"{FEWEST} images, below which the values of {self.method} are noise, would take it some "
                f"{span(FEWEST * work / RATE)} on one core, {reason}"
            )
        elif seconds is None and work > MOST:
            why = f"a single image would take {self.method} some {span(work / RATE)} on one core"
        else:
            return self
        note = f"units are valued by {INSTEAD}: {why}; --method {self.method} insists on it"
        return replace(self, method=INSTEAD, rules=replace(self.rules, late=LATE), notes=(*self.notes, worded(note)))

    def images(self, traced: Traced, groups: Sequence[Group], samples: int | None) -> int:
        """Return how many images to score with: as many as asked for, else 128 or what `work` allows, at least one.

        Methods without a game take 1024.
        """
        if samples is not None:
            return samples
        if not self.plays:
            return STATISTICS_SAMPLES
        most = WORK if self.work is None else self.work
        return max(self.fewest, min(SAMPLES, int(most / max(1.0, work_of(traced, groups)))))

    def noting_few(self, traced: Traced, groups: Sequence[Group], images: int) -> Scoring:
        """Return it with a note where the time is for so few of the images that a cut before a refit heeds no value."""
        count = self.images(traced, groups, None)
        if self.method not in CANCELLING or not few(count) or images <= count:
            return self
        seconds = span(FEWEST * work_of(traced, groups) / RATE)
        note = (
            f"the time is for {_counted(count)} (--samples); values of less than {FEWEST} are noise, which prune does "
            f"not heed where it refits; --samples {FEWEST} takes some {seconds} on one core, and --method {INSTEAD}, "
            "which prune takes here by itself, plays no game"
        )
        return replace(self, notes=(*self.notes, worded(note)))

    def noting_memory(self, free: Traced, groups: Sequence[Group], data: Dataset) -> Scoring:
        """Return it with a note where little memory makes a refit, and values by one, take much longer.

        Both stop at what every layer reads, on all images: what is not held there is computed again for the next one.

        Args:
            free: the model for evaluation.
            groups: those that are cut.
            data: the images that it is refitted on.
        """
        memory, stops = free.backend.memory, [s.tensor for s in free.sites(groups) if not free.depth(s.tensor)]
        runs, _ = runs_past(free, stops, data, memory)
        if runs < _AGAIN:
            return self
        fewer, held = runs_past(free, stops, data, sys.maxsize)
        enough = -(-2 * held // 2**30)  # a refit goes through two models
        if runs < _AGAIN * fewer or enough * 2**30 <= memory:
            return self
        which = "valuing units, and the refit, run" if self.method == INSTEAD else "the refit runs"
        note = (
            f"what layers read of {_counted(len(data))} takes up to {held / 2**30:.2g}G, more than --memory "
            f"{memory / 2**30:.2g}G holds: {which} the model some {runs:.0f} times over; --memory {enough}G spares "
            "that, and fewer images take less"
        )
        return replace(self, notes=(*self.notes, worded(note)))

    def ordered(self, *, refitted: bool) -> tuple[Scoring, float | None]:
        """Return how units are scored where they are then put in the order of a refit, and the seconds for that."""
        played, rest = shared_out(self.rules.max_seconds, self.method, refitted=refitted)
        return replace(self, rules=replace(self.rules, max_seconds=played)), rest

    def noting(self, moved: Turned | None) -> Scoring:
        """Return it with a note where other bases were asked for, and no group was put into one."""
        return self if moved is None or moved.groups else replace(self, notes=(*self.notes, worded(_UNTURNED)))

    def of(self, setting: Setting, traced: Traced, groups: Sequence[Group], moved: Turned | None = None) -> Scores:
        """Return the values of groups.

        Args:
            setting: what they are scored with.
            traced: the model, as in its file.
            groups: those to score.
            moved: the model in other bases, where it was put into some; the values belong to that form of it alone.
        """
        bases = {} if moved is None else moved.bases
        model = form_of(digest(complete(traced, traced.source)), bases)
        kept = None if self.journal is None else Journal(self.journal, self._header(setting, groups, model))
        stage = "score" if self.plays else "value"
        for text in (*self.notes, *self._expected(traced, groups, len(setting.data))):
            self.say(text)
        values = score_groups(
            setting, groups, self.method, self.seed, self.rules,
            lambda done, total: self.progress(stage, done, total), kept, self._runner(setting),
        )  # fmt: skip
        used = setting.payoff.name if any(v.evals for v in values.values()) else None
        doubts = label_notes(setting.payoff, setting.reference, setting.data.labels)
        notes = (*traced.notes, *self.notes, *self._notes_on_late(values), *doubts)
        notes += () if used is None else _notes_on_rows(setting)
        data, basis = setting.data, "own" if moved is None else "principal"
        return Scores(values, self.method, used, self.seed, len(data), data.source, model, notes, basis, bases)

    def _notes_on_late(self, values: Mapping[str, Values]) -> tuple[str, ...]:
        """Return which groups another method values, for want of time."""
        stopped = values.items() if self.rules.late is not None else ()
        late = [repr(name) for name, found in stopped if found.stopped == "max-seconds"]
        if not late:
            return ()
        note = (
            f"units of group {listed(late, 1)} are valued by {self.rules.late}: no time was left for {self.method}; "
            "give a larger --max-seconds"
        )
        return (worded(note),)

    def _expected(self, traced: Traced, groups: Sequence[Group], images: int) -> tuple[str, ...]:
        """Return what a game takes, about, where nothing limits it and it is minutes."""
        if self.method != METHOD or self.cluster or self.rules.max_evals is not None:
            return ()
        hands = max(1, self.workers)
        seconds = min(images * work_of(traced, groups) / RATE / hands, self.rules.max_seconds or np.inf)
        if seconds < _MINUTE:
            return ()
        note = (
            f"{self.method} plays on {_counted(images)} (--samples), for some {span(seconds)}{_by(hands)}, or less "
            f"where the cut is decided before; --max-seconds ends it sooner, --method {INSTEAD} plays no game"
        )
        return (worded(note),)

    def _header(self, setting: Setting, groups: Sequence[Group], model: str) -> dict[str, str | int | None]:
        """Return all that the results depend on, as a journal keeps it."""
        backend = setting.traced.backend
        return {
            "version": __version__,
            "model": model,
            "seed": self.seed,  # which decides on the images, too
            "data": fingerprint(setting.data),
            "method": self.method,
            "payoff": _told(setting),
            "baseline": "mean" if setting.means or not self.plays else "zero",
            "max-evals": self.rules.max_evals,
            "choice of groups": " ".join(g.name for g in groups),
            "provider": provider_of(backend),
            "memory": backend.memory,
        }

    def _runner(self, setting: Setting) -> Callable[[Tell], Runner] | None:
        """Return what makes the runner; methods without a game run in this process, with all of its threads."""
        if not self.plays:
            return None
        if cluster := self.cluster:
            return lambda tell: Cluster(setting, self.method, cluster)
        return (lambda tell: Processes(setting, self.method, self.workers)) if self.workers else None


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _by(hands: int) -> str:
    return " on one core" if hands == 1 else f" in {hands} workers"


def _notes_on_rows(setting: Setting) -> tuple[str, ...]:
    """Return what a game's values suffer from: that rows do not share a run, or that they should not."""
    traced = setting.traced
    single = () if traced.shaped.free_batch else (worded(_ONE_BY_ONE),)
    alone = traced.shaped.apart or traced.labels.trace.shares_ranges
    known = alone or (single and traced.batch == 1)  # and heeded
    return single if known or setting.apart else (*single, _BESIDE)


def _told(setting: Setting) -> str:
    """Return what tells a payoff from others: its fields, or what a user's function gives for some outputs."""
    payoff, reference, labels = setting.payoff, setting.reference, setting.data.labels
    if payoff.name in payoffs.NAMES:
        return repr(payoff)
    turned = [value[::-1] for value in reference]  # the originals may all be worth the same
    values = [payoff(outputs, reference, labels) for outputs in (reference, turned)]
    return f"{payoff.name} {hashlib.sha256(np.stack(values).tobytes()).hexdigest()}"


def known_payoff(payoff: Payoff) -> str | Payoff:
    """Return what makes the same payoff on other data: its name, if it has one."""
    return payoff.name if payoff.name in payoffs.NAMES else payoff
