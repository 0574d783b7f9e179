"""What `prune` and `sweep` do before anything is scored: a model opened, checked, and in the form that is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxshap.clock import Clock
from onnxshap.groups import Group
from onnxshap.opening.given import Given
from onnxshap.opening.subject import Subject, groups_to_cut
from onnxshap.plan.options import Asked
from onnxshap.progress import Progress
from onnxshap.scores import Scores, check_values, principal
from onnxshap.tracing import Traced

CheckBudget = Callable[[Traced, Sequence[Group], Mapping[str, int]], None]
"""Model, its groups, and the most of those that are ranks (`Subject.planned`): refuses a budget that no plan meets."""


def prepared(
    given: Given, asked: Asked, check: CheckBudget, values: Scores | None, dividing: str | None, progress: Progress,
    clock: Clock, *, include: Sequence[str], exclude: Sequence[str],
) -> Subject:  # fmt: skip
    """Return what is cut: units in principal bases where they are asked for, layers as two where they are.

    Args:
        given: what the job is given.
        asked: how it is to be cut, settled.
        check: refuses budgets, as soon as plans are known: with layers as two, behind that.
        values: those of an earlier run, if some are given.
        dividing: what judges by images held out, as for `Given.divide`.
        progress: told how far it is.
        clock: told how long `trace`, `basis` and `split` took.
        include, exclude: as in `score`.

    Raises:
        ModelError, DataError, BudgetError, OnnxshapError: as `Given.open`, `groups_to_cut`, `check_values`, `check`
            and `Subject.of`.
    """
    with clock.stage("trace"):
        progress("trace", 0, 1)
        traced, data = given.open()
        groups = groups_to_cut(traced, include, exclude)
        if values is not None:
            check_values(values, traced, groups)
        if asked.low_rank is None:
            check(traced, groups, {})
        subject = Subject.of(given, traced, data, groups, asked, dividing)
        progress("trace", 1, 1)
    if principal(asked.basis, values, refitted=subject.refitted and given.data is not None):
        with clock.stage("basis"):
            subject = subject.in_bases(None if values is None else values.bases)
    if asked.low_rank is not None:
        with clock.stage("split"):
            subject = subject.split(asked.low_rank, progress)
        check(*subject.planned)
    return subject
