"""Payoffs that a user's function computes: a number a row, or one for all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxshap.core import Array, FloatArray
from onnxshap.errors import DataError, told
from onnxshap.payoffs.checked import any_of, text_of
from onnxshap.payoffs.names import NAMES


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
                f"payoff {self.name!r}: the function gave shape {text_of(scores.shape)} for {rows} rows: "
                f"return one number a row, shape {text_of((rows,))}"
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
        own = None if labels is None else labels.copy()  # a function may work in place
        found = function(outputs, own)
        if found is None:
            raise TypeError("it returned nothing")  # noqa: TRY301 - told like what it raises itself
        return np.asarray(found, dtype=np.float64)
    except (Exception, SystemExit) as error:
        known = any_of(NAMES)
        raise DataError(f"payoff {name!r}: the function failed ({told(error)}): mend it, or use {known}") from error
