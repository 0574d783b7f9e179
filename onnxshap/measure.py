"""What a user compares: size, latency and scores of models, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxshap import payoffs
from onnxshap.arguments import worded
from onnxshap.backend import Backend
from onnxshap.core import Array, Payoff
from onnxshap.errors import DataError, ShapeError

_SECONDS = 1.0
"""How long a model is run, about."""
_TURNS = (7, 51)
"""Least and most turns."""
_TURN_SECONDS = 0.01
"""How long a model is run at a stretch, at least, so that short runs find their weights in the caches, as in use."""

_TOLD = 20
"""Images from which labels tell whether they are the model's."""

_STILL = (
    "the outputs did not change at all on these inputs: neither the scores nor the check say anything of the change; "
    "give --data that the model is meant for"
)


@dataclass(frozen=True)
class Figures:
    """One model's figures.

    Attributes:
        macs: multiply-accumulates an image.
        params: parameters, floats and codes of at most 16 bits (`Cost.params`).
        bytes: size of the file, as one: external data count as if they were in it.
        latency_ms: median milliseconds a run of one batch, in turn with the other model's; None = not measured.
        score: name -> mean over the evaluation images, higher is better; NaN where outputs have other shapes than the
            original's.
        notes: what the user should know of how the model was taken, where it is compared with another.
    """

    macs: int
    params: int
    bytes: int
    latency_ms: float | None
    score: dict[str, float]
    notes: tuple[str, ...] = ()


def latencies(backend: Backend, models: Sequence[ModelProto], feeds: Mapping[str, Array]) -> list[float]:
    """Return the median milliseconds of a run of each model; they take turns, so that drift hits all alike."""
    sessions = [backend.session(model) for model in models]
    started = time.perf_counter()
    for session in sessions:
        session.run(feeds)
    once = (time.perf_counter() - started) / len(sessions)
    runs = max(1, round(_TURN_SECONDS / once))
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    for turn in range(_TURNS[1]):
        if turn >= _TURNS[0] and time.perf_counter() - started > _SECONDS * len(models):
            break
        for session, found in zip(sessions, times, strict=True):
            for number in range(runs + (runs > 1)):
                start = time.perf_counter()
                session.run(feeds)
                if number or runs == 1:  # the first of a stretch pays for what the other model left in the caches
                    found.append(1000 * (time.perf_counter() - start))
    return [float(np.median(found)) for found in times]


def unchanged(outputs: Sequence[Array], reference: Sequence[Array]) -> bool:
    """Return whether outputs are the original's to the bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(outputs, reference, strict=True))


def notes_on(score: Mapping[str, float], still: str | None = None) -> Iterator[str]:
    """Yield what the user should know of the scores of a changed model.

    Args:
        score: name -> what the model got, NaN where it could not be told.
        still: the source of the inputs on which all outputs are the original's to the bit; None = some are not.
    """
    if untold := [name for name, value in score.items() if math.isnan(value)]:
        yield (
            f"{', '.join(untold)} of the new model cannot be told: its outputs have other shapes than the original's "
            "on the same data, which a payoff of your own may compare"
        )
    if still is not None:
        yield f"{still}: {worded(_STILL)}"


def label_notes(payoff: Payoff, reference: Sequence[Array], labels: Array | None) -> Iterator[str]:
    """Yield what the user should know of labels that the original gives less than equal chances would.

    Args:
        payoff: what judges, fitted to the outputs.
        reference: the original's outputs.
        labels: the targets.
    """
    if not isinstance(payoff, payoffs.CrossEntropy) or len(reference[payoff.output]) < _TOLD:
        return
    right = payoffs.Accuracy(payoff.output, payoff.axis, payoff.probabilities, payoff.binary)
    hits, nats = right(reference, reference, labels), -_mean(payoff, reference, reference, labels)
    classes = payoff.classes(reference)
    chance = 1 / classes
    if nats > 2 * math.log(classes) and hits.mean() <= chance + 2 * math.sqrt(chance * (1 - chance) / len(hits)):
        yield worded(
            f"the original gets {hits.mean():.1%} of the labels right, no more than chance ({classes} classes): they "
            "may be numbered otherwise than the model's classes (subfolders are numbered by name), or the inputs "
            "scaled otherwise than in training (--normalize); scores and values that go by labels tell nothing then"
        )


def scores(
    outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None, names: Sequence[str], payoff: Payoff
) -> dict[str, float]:
    """Return the mean payoff; of class scores also accuracy (with labels) and agreement with the original.

    Outputs that the labels are not for are held to the original's, under names of their own. Of several outputs with
    class scores that count jointly, agreement is that of the one that agrees least. Of outputs of integers
    or truths it is told what share of their entries is the original's. NaN where the shapes of outputs, which may
    follow what is computed (words until the last one), are not the original's.
    """
    same = {
        name: float(np.mean(own == theirs))
        for name, own, theirs in zip(names, outputs, reference, strict=True)
        if theirs.dtype.kind in "iub" and theirs.size and own.shape == theirs.shape
    }
    return _of_real(outputs, reference, labels, names, payoff) | same


def _of_real(
    outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None, names: Sequence[str], payoff: Payoff
) -> dict[str, float]:
    found = {payoff.name: _mean(payoff, outputs, reference, labels)}
    if isinstance(payoff, payoffs.Joint):
        tops = [one for _, one in payoff.each() if isinstance(one, payoffs.Accuracy)]
        agreements = [_mean(one, outputs, reference, None) for one in tops]
        return found | ({"agreement": float(np.min(agreements))} if agreements else {})
    if payoff.name == "mse":
        return found
    classes = payoffs.as_classes(labels)
    labelled = None if classes is None else _top(reference, classes, names)
    if isinstance(labelled, payoffs.Accuracy):
        found["accuracy"] = _mean(labelled, outputs, reference, classes)
        found |= _others(outputs, reference, names, labelled.output)
    if top := labelled or _top(reference, None, names):
        found["agreement"] = _mean(top, outputs, reference, None)
    return found


def _mean(payoff: Payoff, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> float:
    """Return the mean payoff, NaN where the outputs cannot be compared."""
    try:
        return float(np.mean(payoff(outputs, reference, labels)))
    except ShapeError:
        return float("nan")


def _others(
    outputs: Sequence[Array], reference: Sequence[Array], names: Sequence[str], judged: int
) -> dict[str, float]:
    """Return how near to the original's the outputs are that the labels are not for, if that has a number."""
    try:
        joint = payoffs.choose("joint", reference, None, names)
    except DataError:
        return {}
    assert isinstance(joint, payoffs.Joint)
    every = joint.by_name(names).items()
    return {name: _mean(one, outputs, reference, None) for name, (k, one) in every if k != judged}


def _top(reference: Sequence[Array], labels: Array | None, names: Sequence[str]) -> Payoff | None:
    """Return what tells the share of right classes, None where no output holds classes."""
    try:
        return payoffs.choose("accuracy", reference, labels, names)
    except DataError:
        return None
