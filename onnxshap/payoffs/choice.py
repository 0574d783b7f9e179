"""Which payoff fits a model's outputs and the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.core import Array, FloatArray, Payoff
from onnxshap.errors import DataError
from onnxshap.payoffs.builtin import KL, MSE, Accuracy, CrossEntropy, Joint
from onnxshap.payoffs.checked import (
    CLOSE,
    NO_CLASS,
    any_of,
    are_probabilities,
    as_classes,
    as_two,
    both_classes,
    class_axis,
    class_labels,
    class_scores,
    finite,
    fits,
    float_targets,
    log_probabilities,
    text_of,
)
from onnxshap.payoffs.names import NAMES

COLUMNS = 128
"""Fewer columns than that may be quantities of their own; more are features, which have a common unit."""
UNLIKE, UNLIKE_DENSE = 100.0, 1000.0
"""Columns whose variances differ by more are in different units; so are channels of dense outputs, of which features,
too, differ."""
_LEAST, _LEAST_DENSE = 1e-20, 1e-12
"""Of the largest column's variance: a smaller one counts as that one. Amounts of money stand beside rates, but a class
that no place of a dense output shows is nothing that counts."""
_STILL = 1e-10
"""Of the square of its own mean: a column with a smaller variance is constant, but for rounding."""
_CONSTANT = 1e-9
"""What an output loses, at most, whose mean is as good as it is."""
STILL = 0.8
"""How much the mean of logits varies from row to row, at most, of what independent columns would let it."""


def choose(name: str | None, reference: Sequence[Array], labels: Array | None, output_names: Sequence[str]) -> Payoff:
    """Return the payoff called `name`, fitted to the original model's outputs; None: by the table atop this module.

    An output can be used if it is of floats, not empty and has one entry a row along axis 0. Class scores are taken
    from the first such output of rank 2, else from the first dense one, that has two classes or more (and room for
    the labels). They are probabilities if no reference entry is negative and every row sums to 1 within 1e-3, else
    logits. Where there is none, labels of an output's own shape that are all 0 or 1 (floats as well, for frameworks
    want them so) are classes: every entry of the output tells two of them apart, by a probability if all of them are
    in [0, 1], else by a logit.

    By default an output counts as class scores only if it has rank 2 and is probabilities, or looks like logits:
    entries of either sign, rows that are not all of unit length (embeddings), and a mean over the columns that varies
    less from row to row than it does where columns are independent. The gradients of a softmax leave that mean alone
    (their sum over the classes is 0): of trained classifiers it varies .01 to .66 times as much, of regressions with
    several targets once to twice. Sigmoids, features, embeddings and numbers get mse; where outputs of both kinds are
    there, joint counts them all.

    Args:
        name: one of `NAMES`, or None. mse reads float labels as targets and ignores integer ones (they are classes);
            joint ignores all.
        reference: the original model's outputs on the whole data set, each array[n, ...].
        labels: integer class indices [n] (dense: one a position), float targets of an output's shape (by default, if
            they are all 0 or 1, classes), or None.
        output_names: the names of the outputs, for messages.

    Raises:
        DataError: an unknown name, no output that can be used, labels that do not fit the payoff or the outputs, NaN
            or Inf in an output.

    >>> choose(None, [np.array([[0.9, 0.1]])], None, ["p"])
    KL(output=0, probabilities=True, axis=None)
    >>> choose(None, [np.array([[3.0, -1.0]])], np.array([1]), ["logits"])
    CrossEntropy(output=0, probabilities=False, axis=None, binary=False)
    """
    if name is not None and name not in NAMES:
        raise DataError(f"payoff {name!r}: unknown: use {any_of(NAMES)}")
    usable = _usable(reference, labels, output_names)
    labels = None if labels is None else np.asarray(labels)
    match name or _default(reference, labels, usable, output_names):
        case "mse":
            return _fit_mse(reference, labels, usable, output_names)
        case "kl":
            index, probabilities, _ = _fit_classes("kl", reference, None, usable, output_names)
            return KL(index, probabilities)
        case "ce":
            if labels is None:
                raise DataError("payoff 'ce': there are no labels: give them, or use 'kl', which needs none")
            index, probabilities, binary = _fit_classes("ce", reference, labels, usable, output_names)
            return CrossEntropy(index, probabilities, binary=binary)
        case "joint":
            return _fit_joint(reference, usable, output_names)
        case _:
            index, probabilities, binary = _fit_classes("accuracy", reference, labels, usable, output_names)
            return Accuracy(index, probabilities=probabilities, binary=binary)


def _default(
    reference: Sequence[Array], labels: Array | None, usable: Sequence[int], output_names: Sequence[str]
) -> str:
    """Return the name of the payoff for these outputs and labels."""
    if labels is not None and labels.dtype.kind == "f":
        targets = any(fits(labels.shape, reference[i].shape) for i in usable)
        return "mse" if (as_two(labels) if targets else as_classes(labels)) is None else "ce"
    if labels is not None:
        return "ce"
    classes = [_of_classes(reference[i], f"output {output_names[i]!r}") for i in usable]
    if not any(classes):
        return "mse"
    return "kl" if len(usable) == 1 else "joint"


def _of_classes(output: Array, where: str) -> bool:
    """Return whether an output counts as class scores where nobody says so."""
    if output.ndim != 2 or output.shape[1] < 2:
        return False
    values = finite(output, where)
    if are_probabilities(values.T):
        return True
    embedding = bool((np.abs(np.linalg.norm(values, axis=1) - 1.0) < CLOSE).all())
    own = float(np.mean(values.var(axis=0)))
    still = values.shape[1] * float(values.mean(axis=1).var()) <= STILL * own
    return bool((values < 0.0).any()) and not embedding and still


def _usable(reference: Sequence[Array], labels: Array | None, output_names: Sequence[str]) -> list[int]:
    """Return the indices of the float outputs with one entry a row; at least one."""
    floats = [i for i, array in enumerate(reference) if array.dtype.kind == "f" and array.ndim and array.size]
    if not floats:
        have = ", ".join(f"{n!r} {a.dtype}{text_of(a.shape)}" for n, a in zip(output_names, reference, strict=True))
        raise DataError(
            f"no output can be scored (has {have or 'none'}): a payoff needs a float output with one entry a row "
            "along axis 0; add one to the model's outputs"
        )
    rows = reference[floats[0]].shape[0]
    if labels is not None:
        given = len(labels) if np.ndim(labels) else 0
        if all(reference[i].shape[0] != given for i in floats):
            raise DataError(
                f"labels: {given} entries for {rows} rows of output {output_names[floats[0]]!r}: give one label a row"
            )
        rows = given
    return [i for i in floats if reference[i].shape[0] == rows]


def _fit_classes(
    payoff: str, reference: Sequence[Array], labels: Array | None, usable: Sequence[int], output_names: Sequence[str]
) -> tuple[int, bool, bool]:
    """Return the output that holds the class scores, whether they are probabilities, and of two classes an entry."""
    dense_last = sorted((i for i in usable if reference[i].ndim >= 2), key=lambda i: reference[i].ndim > 2)
    moved = {i: np.moveaxis(reference[i], class_axis(reference[i].ndim, None), -1) for i in dense_last}
    moved = {i: scores for i, scores in moved.items() if scores.shape[-1] >= 2}
    classes = as_classes(labels)
    if labels is not None and classes is not None:
        # An output of the labels' shape with too few classes is kept for the message, behind those with enough.
        moved = {i: scores for i, scores in moved.items() if fits(labels.shape, scores.shape[:-1])}
        top = int(classes[~np.isin(classes, NO_CLASS)].max(initial=0))
        moved = dict(sorted(moved.items(), key=lambda item: top >= item[1].shape[-1]))
        if as_two(labels) is not None and not any(  # features of the same rows are wider, and no scores
            moved[i].shape[-1] == 2 or _of_classes(reference[i], f"output {output_names[i]!r}") for i in moved
        ):
            for index in (i for i in usable if fits(labels.shape, reference[i].shape)):
                scores = both_classes(reference[index], f"output {output_names[index]!r}", probabilities=True)
                return index, bool((scores >= 0.0).all()), True
        if classes.ndim > 1 and set(np.unique(classes).tolist()) == {-1, 1}:
            raise DataError(f"payoff {payoff!r}: labels are -1 and 1: give 0 and 1 (-1 is a position of no class)")
    if not moved:
        have = ", ".join(f"{output_names[i]!r} {text_of(reference[i].shape)}" for i in usable)
        given = "" if labels is None else f" for labels {text_of(labels.shape)}"
        raise DataError(
            f"payoff {payoff!r}: no output holds class scores [n, 2 or more]{given} (float outputs: {have}): "
            "use 'mse', which reads float labels as targets"
        )
    index, where = next((i, f"output {output_names[i]!r}") for i in moved)
    scores = class_scores(reference[index], None, where)
    if labels is not None:
        class_labels(labels, scores.shape, where, payoff=payoff)
    return index, are_probabilities(scores), False


def _fit_mse(
    reference: Sequence[Array], labels: Array | None, usable: Sequence[int], output_names: Sequence[str]
) -> MSE:
    """Return MSE over every usable output, or against the labels if they are floats, scaled by what it compares with.

    So of an original that hardly moves where its targets do, the score is what it is to anybody: 1 - R squared.
    """
    targets = labels is not None and labels.dtype.kind == "f"
    indices, wanted = list(usable), list(reference)
    if labels is not None and targets:
        indices = [i for i in usable if fits(labels.shape, reference[i].shape)][:1]
        if not indices:
            have = ", ".join(f"{output_names[i]!r} {text_of(reference[i].shape)}" for i in usable)
            raise DataError(
                f"payoff 'mse': the targets are {text_of(labels.shape)} and no float output is ({have}): give "
                "targets of an output's shape, or no labels to compare with the original outputs"
            )
        k = indices[0]
        wanted[k] = float_targets(labels, reference[k].shape, f"output {output_names[k]!r}")
        finite(reference[k], f"output {output_names[k]!r}")
    found = [_scale(finite(wanted[i], f"output {output_names[i]!r}")) for i in indices]
    axes = tuple(axis for _, axis in found)
    return MSE(tuple(indices), tuple(scale for scale, _ in found), targets, axes if set(axes) != {1} else ())


def _scale(output: FloatArray) -> tuple[float | tuple[float, ...], int]:
    """Return what squared errors of an output are divided by, and the axis of the columns with one each.

    One number is what the output loses where it is its mean over the rows, wherever it has its zero: its mean square,
    where all rows are alike.
    """
    if (units := units_of(output)) is not None:
        return tuple(units.variances.tolist()), units.axis
    square, around = float(np.mean(output**2)), float(np.mean((output - output.mean(axis=0)) ** 2))
    return (around if around > _STILL * square else square) or 1.0, 1


@dataclass(frozen=True)
class Units:
    """Quantities in units of their own: `variances` of the entries along an axis of an output."""

    axis: int
    variances: FloatArray


def units_of(output: FloatArray) -> Units | None:
    """Return the units of an output's columns [n, columns] or channels, None where they have one in common.

    Channels lie on axis 1 (boxes and classes of a detector: pixels beside probabilities), of rank 3 on 1 or 2, where
    more is told apart.
    """
    best: Units | None = None
    limit, least = (UNLIKE, _LEAST) if output.ndim == 2 else (UNLIKE_DENSE, _LEAST_DENSE)
    for axis in range(1, 3 if output.ndim == 3 else min(2, output.ndim)):
        if not 1 < output.shape[axis] < COLUMNS:
            continue
        others = tuple(k for k in range(output.ndim) if k != axis)
        own, level = output.var(axis=others), output.mean(axis=others) ** 2
        told = own > np.maximum(_STILL * level, least * own.max())
        if told.any() and own[told].max() > limit * own[told].min():
            limit = own[told].max() / own[told].min()
            best = Units(axis, np.where(told, own, own.max()))
    return best


def _fit_joint(reference: Sequence[Array], usable: Sequence[int], output_names: Sequence[str]) -> Joint:
    """Return the payoff of every usable output, with what it loses where the output is its mean over the rows."""
    parts, scales = list[KL | MSE](), list[float]()
    for i in usable:
        where = f"output {output_names[i]!r}"
        values = finite(reference[i], where)
        if _of_classes(values, where):
            part: KL | MSE = KL(i, sums_to_1 := are_probabilities(values.T))
            log_p = log_probabilities(class_scores(values, None, where), probabilities=sums_to_1)
            p = np.exp(log_p)
            mean = np.maximum(p.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)  # of classes that no row has
            lost = float(np.mean((p * (log_p - np.log(mean))).sum(axis=0)))
        else:
            part = _fit_mse(reference, None, [i], output_names)
            around = np.broadcast_to(values.mean(axis=0), values.shape)
            lost = -float(np.mean(part([*reference[:i], around], reference, None)))
        parts.append(part)
        scales.append(lost if lost > _CONSTANT else 1.0)
    return Joint(tuple(parts), tuple(scales))
