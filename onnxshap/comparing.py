"""Figures of models side by side: what `onnxshap eval` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import run_all, usual_batch
from onnxshap.core import Dataset
from onnxshap.data import DataLike, InputSpec
from onnxshap.endings import complete
from onnxshap.errors import DataError
from onnxshap.graph import read
from onnxshap.graph.writing import file_size
from onnxshap.measure import Figures, label_notes, latencies, scores
from onnxshap.opening import ModelLike, open_model
from onnxshap.opening.layouts import samples_of, scorable
from onnxshap.reference import choose_payoff
from onnxshap.shapes import input_specs
from onnxshap.tracing import Traced, trace


@checked
def compare(
    model: ModelLike,
    other: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    payoff: str | Callable[..., object] | None = None,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> list[Figures]:
    """Return the figures of a model and, side by side on the same data, of another with the same inputs and outputs.

    Raises:
        ModelError, DataError: a model cannot be read or run, or the data or outputs do not fit.
    """
    traced, dataset = open_model(
        model, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    every = [traced] if other is None else _alike(traced, dataset, other, backend)
    traced = every[0]
    outputs = [run_all(t, t.source, dataset) for t in every]
    fitted = choose_payoff(payoff, outputs[0], dataset, traced)
    for found in outputs[1:]:
        if [a.shape for a in found] != [a.shape for a in outputs[0]]:
            raise DataError("the two models have outputs of other shapes; compare models with the same outputs")
    # whether the scores of classes are probabilities may differ, what compares with the first model is its own
    own = [choose_payoff("ce", found, dataset, traced) if fitted.name == "ce" else fitted for found in outputs]
    models = [complete(t, t.source) for t in every]
    times = latencies(traced.backend, models, usual_batch(traced, dataset))
    doubts = tuple(label_notes(own[0], outputs[0], dataset.labels))
    return [
        Figures(
            t.cost.macs(),
            t.cost.params(),
            file_size(model),
            ms,
            scores(out, outputs[0], dataset.labels, traced.outputs, judge),
            (*t.notes, *doubts),
        )
        for t, model, out, ms, judge in zip(every, models, outputs, times, own, strict=True)
    ]


def _alike(traced: Traced, data: Dataset, other: ModelLike, backend: OrtBackend | None) -> list[Traced]:
    """Return two models traced at the sizes of the same data, the choices that they end in left out of both or neither.

    Raises:
        ModelError: the second cannot be read or run.
        DataError: its inputs are not those of the first.
    """
    second = other if isinstance(other, Traced) else read(other)
    theirs = input_specs(second.source if isinstance(second, Traced) else second.model)
    _check_inputs(traced, data, theirs)
    axes = traced.shaped.batch_axes
    samples = samples_of(data, {n: replace(spec, batch=axes.get(n, spec.batch)) for n, spec in theirs.items()})
    sizes = {name: value.shape for name, value in samples[0].items()}
    whole = None if any(axis is not None for axis in axes.values()) else axes
    if not isinstance(second, Traced):
        second = scorable(
            second, input_shapes=sizes, backend=backend, samples=samples, own=traced.tail is None, batch_axes=whole
        )
    if (second.tail is None) == (traced.tail is None):
        return [traced, second]
    again = partial(trace, input_shapes=sizes, backend=backend, samples=samples, batch_axes=whole)
    return [again(complete(t, t.source)) for t in (traced, second)]


def _check_inputs(traced: Traced, data: Dataset, theirs: Mapping[str, InputSpec]) -> None:
    """Refuse a second model whose inputs are not those of the first.

    Raises:
        DataError: they have other names, or other numbers of dimensions.
    """
    if set(theirs) != set(data.inputs):
        have = ", ".join(map(repr, theirs))
        raise DataError(f"the second model's inputs are {have}, not those of the first; compare models of one kind")
    ours = input_specs(traced.source)
    if odd := next((n for n, spec in theirs.items() if len(spec.shape) != len(ours[n].shape)), None):
        raise DataError(
            f"the second model's input {odd!r} has {len(theirs[odd].shape)} dimensions, the first's "
            f"{len(ours[odd].shape)}; compare models of one kind"
        )
