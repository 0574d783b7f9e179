"""The payoffs that come with the tool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from onnxshap.core import Array, FloatArray
from onnxshap.payoffs.checked import (
    both_classes,
    check_shape,
    class_axis,
    class_labels,
    class_scores,
    class_sum,
    finite,
    float_targets,
    labelled_mean,
    log_probabilities,
    once,
    row_mean,
    shifted_scores,
)


class _OfClasses(Protocol):
    """What knows where class scores are."""

    @property
    def output(self) -> int: ...
    @property
    def probabilities(self) -> bool: ...
    @property
    def axis(self) -> int | None: ...
    @property
    def binary(self) -> bool: ...


def scores_of(of: _OfClasses, outputs: Sequence[Array]) -> FloatArray:
    """Return class scores float64[classes, rows, *positions], finite."""
    where = f"output {of.output}"
    if of.binary:
        return both_classes(outputs[of.output], where, probabilities=of.probabilities)
    return class_scores(outputs[of.output], of.axis, where)


@dataclass(frozen=True)
class CrossEntropy:
    """Log probability of the label, in nats: the mean over positions where the output is dense.

    Attributes:
        output: which of the model's outputs holds the class scores.
        probabilities: they sum to 1 over the classes already (a Softmax is in the graph); False: logits.
        axis: the class axis; None: the last of rank 3, else 1.
        binary: every entry tells two classes apart: the probability of the second one, or how much larger its logit
            is than the first one's; there is no class axis.

    >>> ce = CrossEntropy(probabilities=True)
    >>> ce([np.array([[0.5, 0.5], [0.25, 0.75]])], [], np.array([0, 0])).round(3).tolist()
    [-0.693, -1.386]
    """

    output: int = 0
    probabilities: bool = False
    axis: int | None = None
    binary: bool = False
    name: ClassVar[str] = "ce"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows]; `labels` are class indices, one a row (a row and position if dense); no `reference`.

        Raises:
            DataError: no labels, or labels that are no classes of the output; an output with NaN or Inf.
        """
        shifted, norm = shifted_scores(scores_of(self, outputs), probabilities=self.probabilities)
        classes = class_labels(labels, shifted.shape, f"output {self.output}", payoff=self.name)
        at = np.clip(classes, 0, len(shifted) - 1)
        return labelled_mean(np.take_along_axis(shifted, at[None], axis=0)[0] - norm, classes, len(shifted))

    def classes(self, outputs: Sequence[Array]) -> int:
        """Return how many classes there are."""
        return len(scores_of(self, [value[:1] for value in outputs]))


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
        check_shape(outputs[self.output], reference[self.output], where)
        log_p = log_probabilities(
            class_scores(once(reference[self.output]), self.axis, where), probabilities=self.probabilities
        )
        log_q = log_probabilities(
            class_scores(outputs[self.output], self.axis, where), probabilities=self.probabilities
        )
        log_q -= log_p
        log_q *= np.exp(log_p)
        return row_mean(np.minimum(class_sum(log_q), 0.0))  # never positive but by rounding


@dataclass(frozen=True)
class MSE:
    """Minus the squared error to the original outputs, or to float targets: relative, the mean over `outputs`.

    Attributes:
        outputs: which of the model's outputs count, each with the same weight.
        scales: what each one's mean squared error is divided by: that of the original output's mean over the rows, so
            that outputs of different units can be averaged, wherever they have their zero; every column's variance
            where those of an output have different units.
        targets: compare the only one of `outputs` with the labels instead of the original.
        axes: where those columns lie in each one; empty = axis 1.

    >>> MSE(scales=(4.0,))([np.array([[1.0, 2.0]])], [np.array([[3.0, 2.0]])], None).tolist()
    [-0.5]
    """

    outputs: tuple[int, ...] = (0,)
    scales: tuple[float | tuple[float, ...], ...] = (1.0,)
    targets: bool = False
    axes: tuple[int, ...] = ()
    name: ClassVar[str] = "mse"

    def __post_init__(self) -> None:
        """Hold the fields to each other."""
        assert len(self.outputs) == len(self.scales) > 0
        assert len(self.outputs) == 1 or not self.targets
        assert len(self.axes) in (0, len(self.outputs))

    @property
    def columns(self) -> dict[int, int]:
        """Output -> axis of its columns, of those whose columns have a unit each."""
        axes = self.axes or (1,) * len(self.outputs)
        found = zip(self.outputs, self.scales, axes, strict=True)
        return {output: axis for output, scale, axis in found if isinstance(scale, tuple)}

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows], at most 0; `labels` are read if `targets`, else `reference`.

        Raises:
            DataError: outputs with NaN or Inf, or of another shape than what they are compared with.
        """
        errors = []
        for index, scale in zip(self.outputs, self.scales, strict=True):
            where = f"output {index}"
            got = finite(outputs[index], where)
            if self.targets:
                wanted = float_targets(labels, got.shape, where)
            else:
                check_shape(got, reference[index], where)
                wanted = finite(once(reference[index]), where)
            with np.errstate(over="ignore"):  # Inf is told as such
                axis = self.columns.get(index)
                columns = [] if axis is None else [-1 if k == axis else 1 for k in range(got.ndim)]
                errors.append(row_mean((got - wanted) ** 2 / np.reshape(scale, columns)))
        return -sum(errors[1:], start=errors[0]) / len(errors)


@dataclass(frozen=True)
class Accuracy:
    """Share of positions whose top class is the label, or the original's top class if there are no labels.

    For reports. The worst payoff to score with: most coalitions move no row's top class, so nearly every marginal
    contribution is 0 and the rest are 1; the caller warns.

    Attributes:
        output: which of the model's outputs holds the class scores.
        axis: the class axis; None: the last of rank 3, else 1.
        probabilities, binary: as those of `CrossEntropy`.

    >>> Accuracy()([np.array([[0.0, 1.0], [2.0, 0.0]])], [], np.array([1, 1])).tolist()
    [1.0, 0.0]
    """

    output: int = 0
    axis: int | None = None
    probabilities: bool = False
    binary: bool = False
    name: ClassVar[str] = "accuracy"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows] in [0, 1]; `reference` is read only without `labels`.

        Raises:
            DataError: labels that are no classes of the output; outputs with NaN or Inf, or of another shape than
                the reference.
        """
        where = f"output {self.output}"
        scores = scores_of(self, outputs)
        if labels is None:
            check_shape(outputs[self.output], reference[self.output], where)
            wanted = scores_of(self, [once(r) for r in reference]).argmax(axis=0)
            return row_mean((scores.argmax(axis=0) == wanted).astype(np.float64))
        wanted = class_labels(labels, scores.shape, where, payoff=self.name)
        return labelled_mean((scores.argmax(axis=0) == wanted).astype(np.float64), wanted, len(scores))

    def whole(self, reference: Sequence[Array]) -> bool:
        """Return whether an image is right or wrong as a whole, not here and there."""
        shape = reference[self.output].shape
        classes = 1 if self.binary else shape[class_axis(len(shape), self.axis)]
        return math.prod(shape[1:]) == classes


@dataclass(frozen=True)
class Joint:
    """The mean over outputs of what each one's own payoff gives, in units of what that output's mean would lose.

    So a head of classes and one of numbers count alike: what is lost is a share of what the images tell about either,
    for classes the mutual information of image and class in place of a variance.

    Attributes:
        parts: one payoff an output, KL for class scores, else MSE.
        scales: what each one loses where it is constant, the original's mean; positive.

    >>> numbers = np.array([[3.0], [1.0]])
    >>> Joint((MSE((0,)), MSE((1,))), (1.0, 2.0))([numbers, numbers], [numbers + 1, numbers + 2], None).tolist()
    [-1.5, -1.5]
    """

    parts: tuple[KL | MSE, ...]
    scales: tuple[float, ...]
    name: ClassVar[str] = "joint"

    def __post_init__(self) -> None:
        """Hold the fields to each other."""
        assert len(self.parts) == len(self.scales) > 0

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows], at most 0, and 0 where the outputs agree; `labels` are not read.

        Raises:
            DataError: outputs with NaN or Inf, or of another shape than the reference.
        """
        every = zip(self.parts, self.scales, strict=True)
        shares = [part(outputs, reference, None) / scale for part, scale in every]
        return sum(shares[1:], start=shares[0]) / len(shares)

    def each(self) -> list[tuple[int, Accuracy | MSE]]:
        """Return every output with what judges it alone: agreement of the classes, the relative squared error."""
        return [
            (part.output, Accuracy(part.output, part.axis)) if isinstance(part, KL) else (part.outputs[0], part)
            for part in self.parts
        ]

    def by_name(self, names: Sequence[str]) -> dict[str, tuple[int, Accuracy | MSE]]:
        """Return `each` by what reports call it: agreement of 'scores', mse of 'boxes'."""
        called = {"accuracy": "agreement", "mse": "mse"}
        return {f"{called[one.name]} of {names[k]!r}": (k, one) for k, one in self.each()}
