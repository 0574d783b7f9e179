"""The original's outputs, and the payoff that fits them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from onnx import ModelProto

from onnxshap import payoffs
from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset, Payoff
from onnxshap.endings import gives_classes
from onnxshap.errors import DataError, ModelError
from onnxshap.tracing import Traced

_ODD = "they may be no values for this model; give --data"


def reference_of(traced: Traced, model: ModelProto, data: Dataset) -> list[Array]:
    """Return the outputs of the original model, which have to be finite.

    Raises:
        DataError: the model does not run on the data (an index beyond a table), or gives NaN or Inf.
    """
    with errors_of_data(data):
        reference = run_all(traced, model, data)
    for item, value in zip(model.graph.output, reference, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DataError(
                f"{data.source}: output {item.name!r} of the original model has NaN or Inf on it; "
                f"{_ODD if data.source == 'random' else 'check the data'}"
            )
    return reference


@contextlib.contextmanager
def errors_of_data(data: Dataset) -> Iterator[None]:
    """Turn what a model says of values that it does not take into an error of the data."""
    try:
        yield
    except ModelError as error:
        advice = _ODD if data.source == "random" else "check its values"
        raise DataError(f"{data.source}: {error}; {advice}") from error


def choose_payoff(
    payoff: str | Callable[..., object] | None, reference: Sequence[Array], data: Dataset, traced: Traced
) -> Payoff:
    """Return the payoff fitted to the data, a user's function as one; a refusal says which data.

    By default an output is class scores where the model itself takes the largest of them.
    """
    if isinstance(payoff, payoffs.Custom | payoffs.OverAll):
        return payoff
    if callable(payoff):
        return payoffs.custom(payoff, reference, data.labels)
    if payoff is None and data.labels is None and gives_classes(traced):
        payoff = "kl"
    try:
        return payoffs.choose(payoff, reference, data.labels, traced.outputs)
    except DataError as error:
        raise DataError(f"{data.source}: {error}") from error


def judged(traced: Traced, data: Dataset, payoff: str | Callable[..., object] | None) -> tuple[list[Array], Payoff]:
    """Return the original's outputs and the payoff fitted to them: called before the long part, for it may refuse.

    Raises:
        DataError: as `reference_of`, or the payoff does not fit the data.
    """
    reference = reference_of(traced, traced.source, data)
    return reference, choose_payoff(payoff, reference, data, traced)
