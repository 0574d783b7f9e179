"""Payoffs: what a model's outputs are worth, as float64[rows], higher is better; `choose` picks one and fits it.

    integer labels              ce     log p(label), in nats
    float labels                mse    minus the relative squared error to the targets
    no labels, class scores     kl     minus KL(original || output), in nats
    no labels, anything else    mse    minus the relative squared error to the original outputs

What a payoff must know of the original model (which output, logits or probabilities, the scale) is in its fields and
decided once by `choose`. So a row's payoff depends on that row alone, never on the batch it was evaluated in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxshap.core import Array, FloatArray, IntArray, Payoff
from onnxshap.errors import DataError

NAMES = ("ce", "kl", "mse", "accuracy")
"""Every name that `choose` knows."""

_FLOOR = 1e-12
"""Probabilities below it count as it: a softmax that underflows to 0 costs 27.6 nats, not infinitely many."""
_CLOSE = 1e-3
"""How far rows of probabilities may be from summing to 1, and embeddings from unit length; half precision needs it."""
_MANY = 256
"""Classes that are summed faster where they lie side by side."""
_OVERFLOW = "run that row alone and look for an overflow (half precision) or an input out of range"


@dataclass(frozen=True)
class CrossEntropy:
    """Log probability of the label, in nats: the mean over positions where the output is dense.

    Attributes:
        output: which of the model's outputs holds the class scores.
        probabilities: they sum to 1 over the classes already (a Softmax is in the graph); False: logits.
        axis: the class axis; None: the last of rank 3, else 1.

    >>> ce = CrossEntropy(probabilities=True)
    >>> ce([np.array([[0.5, 0.5], [0.25, 0.75]])], [], np.array([0, 0])).round(3).tolist()
    [-0.693, -1.386]
    """

    output: int = 0
    probabilities: bool = False
    axis: int | None = None
    name: ClassVar[str] = "ce"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows]; `labels` are class indices, one a row (a row and position if dense); no `reference`.

        Raises:
            DataError: no labels, or labels that are no classes of the output; an output with NaN or Inf.
        """
        where = f"output {self.output}"
        shifted, norm = _shifted(_scores(outputs[self.output], self.axis, where), probabilities=self.probabilities)
        classes = _class_labels(labels, shifted.shape, where, payoff=self.name)
        return _row_mean(np.take_along_axis(shifted, classes[None], axis=0)[0] - norm)


@dataclass(frozen=True)
class KL:
    """Minus KL(original || output), in nats: the mean over positions where the output is dense. Needs no labels.

    Attributes:
        output: which of the model's outputs holds the class scores.
        probabilities: they sum to 1 over the classes already (a Softmax is in the graph); False: logits.
        axis: the class axis; None: the last of rank 3, else 1.

    >>> scores = np.array([[0.0, 1.0], [2.0, 0.0]])
    >>> KL()([scores[::-1]], [scores], None).round(3).tolist()
    [-1.007, -0.829]
    """

    output: int = 0
    probabilities: bool = False
    axis: int | None = None
    name: ClassVar[str] = "kl"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows], at most 0, and 0 where the outputs agree; `labels` are not read.

        Raises:
            DataError: outputs with NaN or Inf, or of another shape than the reference.
        """
        where = f"output {self.output}"
        _same_shape(outputs[self.output], reference[self.output], where)
        log_p = _log_p(_scores(reference[self.output], self.axis, where), probabilities=self.probabilities)
        log_q = _log_p(_scores(outputs[self.output], self.axis, where), probabilities=self.probabilities)
        # Never positive but by rounding.
        return _row_mean(np.minimum((np.exp(log_p) * (log_q - log_p)).sum(axis=0), 0.0))


@dataclass(frozen=True)
class MSE:
    """Minus the squared error to the original outputs, or to float targets: relative, the mean over `outputs`.

    Attributes:
        outputs: which of the model's outputs count, each with the same weight.
        scales: what each one's mean squared error is divided by: the original output's mean square, so that outputs
            of different units can be averaged.
        targets: compare the only one of `outputs` with the labels instead of the original.

    >>> MSE(scales=(4.0,))([np.array([[1.0, 2.0]])], [np.array([[3.0, 2.0]])], None).tolist()
    [-0.5]
    """

    outputs: tuple[int, ...] = (0,)
    scales: tuple[float, ...] = (1.0,)
    targets: bool = False
    name: ClassVar[str] = "mse"

    def __post_init__(self) -> None:
        """Hold the fields to each other."""
        assert len(self.outputs) == len(self.scales) > 0
        assert len(self.outputs) == 1 or not self.targets

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows], at most 0; `labels` are read if `targets`, else `reference`.

        Raises:
            DataError: outputs with NaN or Inf, or of another shape than what they are compared with.
        """
        errors = []
        for index, scale in zip(self.outputs, self.scales, strict=True):
            where = f"output {index}"
            got = _finite(outputs[index], where)
            if self.targets:
                wanted = _float_targets(labels, got.shape, where)
            else:
                _same_shape(got, reference[index], where)
                wanted = _finite(reference[index], where)
            with np.errstate(over="ignore"):  # Inf is told as such
                errors.append(_row_mean((got - wanted) ** 2) / scale)
        return -sum(errors[1:], start=errors[0]) / len(errors)


@dataclass(frozen=True)
class Accuracy:
    """Share of positions whose top class is the label, or the original's top class if there are no labels.

    For reports. The worst payoff to score with: most coalitions move no row's top class, so nearly every marginal
    contribution is 0 and the rest are 1; the caller warns.

    Attributes:
        output: which of the model's outputs holds the class scores.
        axis: the class axis; None: the last of rank 3, else 1.

    >>> Accuracy()([np.array([[0.0, 1.0], [2.0, 0.0]])], [], np.array([1, 1])).tolist()
    [1.0, 0.0]
    """

    output: int = 0
    axis: int | None = None
    name: ClassVar[str] = "accuracy"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows] in [0, 1]; `reference` is read only without `labels`.

        Raises:
            DataError: labels that are no classes of the output; outputs with NaN or Inf, or of another shape than
                the reference.
        """
        where = f"output {self.output}"
        scores = _scores(outputs[self.output], self.axis, where)
        if labels is None:
            _same_shape(outputs[self.output], reference[self.output], where)
            wanted = _scores(reference[self.output], self.axis, where).argmax(axis=0)
        else:
            wanted = _class_labels(labels, scores.shape, where, payoff=self.name)
        return _row_mean((scores.argmax(axis=0) == wanted).astype(np.float64))


@dataclass(frozen=True)
class Custom:
    """A user's own payoff.

    Attributes:
        function: (outputs, labels) -> float64[rows], higher is better; a row's value may depend on that row alone.
        name: what the report prints.

    >>> Custom(lambda outputs, labels: -abs(outputs[0][:, 0]))([np.array([[1.0], [-2.0]])], [], None).tolist()
    [-1.0, -2.0]
    """

    function: Callable[[Sequence[Array], Array | None], Any]
    name: str = "custom"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows], what the function gave; `reference` is not read.

        Raises:
            DataError: the function raised (chained), or gave anything but one finite number a row.
        """
        scores = _called(self.function, self.name, outputs, labels)
        rows = next((len(array) for array in outputs if array.ndim), 0) if labels is None else len(labels)
        if scores.shape != (rows,):
            raise DataError(
                f"payoff {self.name!r}: the function gave shape {_shape(scores.shape)} for {rows} rows: "
                f"return one number a row, shape {_shape((rows,))}"
            )
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise DataError(
                f"payoff {self.name!r}: the function gave {scores[row]} in row {row}: return finite numbers"
            )
        return scores


@dataclass(frozen=True)
class OverAll:
    """A user's own payoff that is one number for all images together: mean average precision, word error rate, F1.

    Attributes:
        function: (outputs, labels) of the whole data set -> a number, higher is better.
        name: what the report prints.

    >>> OverAll(lambda outputs, labels: -outputs[0].std()).value([np.array([1.0, 3.0])], None)
    -1.0
    """

    function: Callable[[Sequence[Array], Array | None], Any]
    name: str = "custom"

    def value(self, outputs: Sequence[Array], labels: Array | None) -> float:
        """Return what the function gives.

        Raises:
            DataError: the function raised (chained), or gave anything but one finite number.
        """
        found = _called(self.function, self.name, outputs, labels)
        if found.shape != () or not np.isfinite(found):
            raise DataError(f"payoff {self.name!r}: the function gave {found} for all images: return one finite number")
        return float(found)

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return the number for every row, float64[rows]; `reference` is not read."""
        rows = next((len(array) for array in outputs if array.ndim), 0) if labels is None else len(labels)
        return np.full(rows, self.value(outputs, labels))


def custom(
    function: Callable[[Sequence[Array], Array | None], Any], reference: Sequence[Array], labels: Array | None
) -> Custom | OverAll:
    """Return a user's payoff, of single images or of all together: by what it gives for the original outputs.

    Raises:
        DataError: the function fails on them.
    """
    one = Custom(function)
    if _called(function, one.name, reference, labels).shape == ():
        overall = OverAll(function)
        overall.value(reference, labels)
        return overall
    one(reference, reference, labels)
    return one


def _called(function: Callable[..., Any], name: str, outputs: Sequence[Array], labels: Array | None) -> FloatArray:
    try:
        return np.asarray(function(outputs, labels), dtype=np.float64)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        known = _list(NAMES)
        raise DataError(f"payoff {name!r}: the function failed ({what}): mend it, or use {known}") from error


def choose(name: str | None, reference: Sequence[Array], labels: Array | None, output_names: Sequence[str]) -> Payoff:
    """Return the payoff called `name`, fitted to the original model's outputs; None: by the table atop this module.

    An output can be used if it is of floats, not empty and has one entry a row along axis 0. Class scores are taken
    from the first such output of rank 2, else from the first dense one, that has two classes or more (and room for
    the labels). They are probabilities if no reference entry is negative and every row sums to 1 within 1e-3, else
    logits. By default outputs count as class scores only if the first that can be used has rank 2 and is
    probabilities, or has entries of either sign and rows that are not all of unit length: sigmoids, features and
    embeddings get mse. Several centred regression targets in one output look like logits; ask for mse there.

    Args:
        name: one of `NAMES`, or None. mse reads float labels as targets and ignores integer ones (they are classes).
        reference: the original model's outputs on the whole data set, each array[n, ...].
        labels: integer class indices [n] (dense: one a position), float targets of an output's shape, or None.
        output_names: the names of the outputs, for messages.

    Raises:
        DataError: an unknown name, no output that can be used, labels that do not fit the payoff or the outputs, NaN
            or Inf in an output.

    >>> choose(None, [np.array([[0.9, 0.1]])], None, ["p"])
    KL(output=0, probabilities=True, axis=None)
    >>> choose(None, [np.array([[3.0, -1.0]])], np.array([1]), ["logits"])
    CrossEntropy(output=0, probabilities=False, axis=None)
    """
    if name is not None and name not in NAMES:
        raise DataError(f"payoff {name!r}: unknown: use {_list(NAMES)}")
    usable = _usable(reference, labels, output_names)
    labels = None if labels is None else np.asarray(labels)
    match name or _default(reference, labels, usable, output_names):
        case "mse":
            return _fit_mse(reference, labels, usable, output_names)
        case "kl":
            index, probabilities = _fit_classes("kl", reference, None, usable, output_names)
            return KL(index, probabilities)
        case "ce":
            if labels is None:
                raise DataError("payoff 'ce': there are no labels: give them, or use 'kl', which needs none")
            index, probabilities = _fit_classes("ce", reference, labels, usable, output_names)
            return CrossEntropy(index, probabilities)
        case _:
            index, _ = _fit_classes("accuracy", reference, labels, usable, output_names)
            return Accuracy(index)


def _default(
    reference: Sequence[Array], labels: Array | None, usable: Sequence[int], output_names: Sequence[str]
) -> str:
    """Return the name of the payoff for these outputs and labels."""
    if labels is not None:
        return "mse" if labels.dtype.kind == "f" else "ce"
    first = usable[0]
    if reference[first].ndim != 2 or reference[first].shape[1] < 2:
        return "mse"
    values = _finite(reference[first], f"output {output_names[first]!r}")
    embedding = bool((np.abs(np.linalg.norm(values, axis=1) - 1.0) < _CLOSE).all())
    logits = bool((values < 0.0).any()) and not embedding
    return "kl" if _are_probabilities(values.T) or logits else "mse"


def _usable(reference: Sequence[Array], labels: Array | None, output_names: Sequence[str]) -> list[int]:
    """Return the indices of the float outputs with one entry a row; at least one."""
    floats = [i for i, array in enumerate(reference) if array.dtype.kind == "f" and array.ndim and array.size]
    if not floats:
        have = ", ".join(f"{n!r} {a.dtype}{_shape(a.shape)}" for n, a in zip(output_names, reference, strict=True))
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
) -> tuple[int, bool]:
    """Return the output that holds the class scores, and whether they are probabilities."""
    dense_last = sorted((i for i in usable if reference[i].ndim >= 2), key=lambda i: reference[i].ndim > 2)
    moved = {i: np.moveaxis(reference[i], _class_axis(reference[i].ndim, None), -1) for i in dense_last}
    moved = {i: scores for i, scores in moved.items() if scores.shape[-1] >= 2}
    if labels is not None and labels.dtype.kind in "iub":
        # An output of the labels' shape with too few classes is kept for the message, behind those with enough.
        moved = {i: scores for i, scores in moved.items() if _fits(labels.shape, scores.shape[:-1])}
        top = int(labels.max(initial=0))
        moved = dict(sorted(moved.items(), key=lambda item: top >= item[1].shape[-1]))
    if not moved:
        have = ", ".join(f"{output_names[i]!r} {_shape(reference[i].shape)}" for i in usable)
        given = "" if labels is None else f" for labels {_shape(labels.shape)}"
        raise DataError(
            f"payoff {payoff!r}: no output holds class scores [n, 2 or more]{given} (float outputs: {have}): "
            "use 'mse', which reads float labels as targets"
        )
    index, where = next((i, f"output {output_names[i]!r}") for i in moved)
    scores = _scores(reference[index], None, where)
    if labels is not None:
        _class_labels(labels, scores.shape, where, payoff=payoff)
    return index, _are_probabilities(scores)


def _fit_mse(
    reference: Sequence[Array], labels: Array | None, usable: Sequence[int], output_names: Sequence[str]
) -> MSE:
    """Return MSE over every usable output, or against the labels if they are floats, scaled by the reference."""
    targets = labels is not None and labels.dtype.kind == "f"
    indices = list(usable)
    if labels is not None and targets:
        indices = [i for i in usable if _fits(labels.shape, reference[i].shape)][:1]
        if not indices:
            have = ", ".join(f"{output_names[i]!r} {_shape(reference[i].shape)}" for i in usable)
            raise DataError(
                f"payoff 'mse': the targets are {_shape(labels.shape)} and no float output is ({have}): give "
                "targets of an output's shape, or no labels to compare with the original outputs"
            )
        _float_targets(labels, reference[indices[0]].shape, f"output {output_names[indices[0]]!r}")
    powers = [float(np.mean(_finite(reference[i], f"output {output_names[i]!r}") ** 2)) for i in indices]
    return MSE(tuple(indices), tuple(power or 1.0 for power in powers), targets)


def _class_axis(rank: int, axis: int | None) -> int:
    """Return the class axis: `axis`, or by rank [n, C], [n, T, C], [n, C, H, W], [n, C, D, H, W]."""
    if axis is None:
        return 2 if rank == 3 else 1
    return axis + rank if axis < 0 else axis


def _scores(output: Array, axis: int | None, where: str) -> FloatArray:
    """Return class scores float64[classes, rows, *positions], finite; few classes lie apart, for sums are faster so."""
    axis_ = _class_axis(output.ndim, axis)
    if not 1 <= axis_ < output.ndim:
        raise DataError(f"{where}: shape {_shape(output.shape)} has no class axis {axis_}: use payoff 'mse'")
    scores = np.moveaxis(_finite(output, where), axis_, 0)
    return scores if axis_ == output.ndim - 1 and len(scores) >= _MANY else np.ascontiguousarray(scores)


def _are_probabilities(scores: FloatArray) -> bool:
    """Return whether float64[classes, ...] are nonnegative and sum to 1 over the classes."""
    return bool((scores >= 0.0).all() and (np.abs(scores.sum(axis=0) - 1.0) <= _CLOSE).all())


def _shifted(scores: FloatArray, *, probabilities: bool) -> tuple[FloatArray, FloatArray]:
    """Return logits float64[classes, ...] with a maximum of 0, and what normalises them, float64[...]."""
    # A distribution's logarithm is a valid set of logits: normalising it again takes the rounding of its sum away.
    logits = np.log(np.maximum(scores, _FLOOR)) if probabilities else scores
    shifted = logits - logits.max(axis=0)
    return shifted, np.log(np.exp(shifted).sum(axis=0))


def _log_p(scores: FloatArray, *, probabilities: bool) -> FloatArray:
    """Return log probabilities float64[classes, ...] that sum to 1 within rounding."""
    shifted, norm = _shifted(scores, probabilities=probabilities)
    return shifted - norm


def _class_labels(labels: Array | None, scores: tuple[int, ...], where: str, *, payoff: str) -> IntArray:
    """Return labels as int64[rows, *positions], each a class of scores [classes, rows, *positions]."""
    if labels is None:
        raise DataError(f"payoff {payoff!r}: there are no labels: give them, or use 'kl', which needs none")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise DataError(
            f"payoff {payoff!r}: labels are {labels.dtype}: give integer class indices, or use 'mse' for float targets"
        )
    if not _fits(labels.shape, scores[1:]):
        raise DataError(
            f"labels: shape {_shape(labels.shape)} for {where}: give one class index a row and position, "
            f"shape {_shape(scores[1:])}"
        )
    classes = scores[0]
    bad = np.argwhere((labels < 0) | (labels >= classes))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise DataError(
            f"labels: {labels[at]} in row {at[0]} is not in [0, {classes}), the classes of {where}: "
            "number the classes as the model does, from 0"
        )
    return labels.astype(np.int64).reshape(scores[1:])


def _float_targets(labels: Array | None, output: tuple[int, ...], where: str) -> FloatArray:
    """Return labels as finite float64 of the output's shape."""
    if labels is None:
        raise DataError("payoff 'mse': there are no labels to compare with: give float targets of the output's shape")
    labels = np.asarray(labels)
    if not _fits(labels.shape, output):
        raise DataError(
            f"payoff 'mse': targets of shape {_shape(labels.shape)} for {where}: give targets of shape {_shape(output)}"
        )
    return _finite(labels, "labels", "give finite targets, or leave that row out").reshape(output)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether two shapes have the same rows and, but for axes of length 1, the same positions."""

    def long(axes: tuple[int, ...]) -> list[int]:
        return [length for length in axes if length != 1]

    return shape[:1] == wanted[:1] and long(shape[1:]) == long(wanted[1:])


def _same_shape(output: Array, reference: Array, where: str) -> None:
    """Refuse an output that cannot be compared with the original's."""
    if output.shape != reference.shape:
        raise DataError(
            f"{where}: shape {_shape(output.shape)}, but {_shape(reference.shape)} from the original model: outputs "
            "whose shape depends on the data cannot be compared; use 'ce' or a payoff of your own"
        )


def _finite(array: Array, where: str, remedy: str = _OVERFLOW) -> FloatArray:
    """Return the array as float64, which has to be finite."""
    values = np.asarray(array, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0]) if values.ndim else 0
        raise DataError(f"{where}: NaN or Inf in row {row}: {remedy}")
    return values


def _row_mean(values: FloatArray) -> FloatArray:
    """Return the mean float64[rows] over all but axis 0."""
    mean: FloatArray = values.reshape(len(values), math.prod(values.shape[1:])).mean(axis=1)
    return mean


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + f" or {names[-1]!r}"


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(length) for length in shape) + "]"
