"""How data lie for a model: the sizes to trace it at, and the axis of the images of every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxshap.backend import OrtBackend
from onnxshap.core import Array, Dataset
from onnxshap.data import DataLike, InputSpec, as_dataset, feeds_of
from onnxshap.endings import ended
from onnxshap.errors import DataError, ModelError
from onnxshap.graph import Source
from onnxshap.shapes import check_names, input_specs
from onnxshap.tracing import Traced, trace

_SAMPLES = 128
"""Most images that a model is run on to find its sizes."""


def scorable(
    source: Source, *, input_shapes: Mapping[str, Sequence[int | None]], backend: OrtBackend | None = None,
    samples: Sequence[Mapping[str, Array]] = (), own: bool = False, batch_axes: Mapping[str, int | None] | None = None,
) -> Traced:  # fmt: skip
    """Return a traced model, without the choices that it ends in unless its `own` outputs are wanted."""
    again = partial(trace, input_shapes=input_shapes, backend=backend, samples=samples, batch_axes=batch_axes)
    traced = again(source)
    if own or (parts := ended(traced)) is None:
        return traced
    head, tail = parts
    return replace(again(replace(source, model=head)), tail=tail)


def samples_of(data: Dataset, specs: Mapping[str, InputSpec]) -> list[dict[str, Array]]:
    """Return some of the data as a model takes it, one image at a time, or as many as the file fixes."""
    batch = {name: spec.batch for name, spec in specs.items()}
    step = max([1, *(s.shape[a] or 1 for s in specs.values() if (a := s.batch) is not None)])
    index = np.resize(np.arange(len(data)), step * max(1, min(len(data), _SAMPLES) // step)).reshape(-1, step)
    return [feeds_of(data.take(images).inputs, batch) for images in index]


def at_data(
    source: Source, given: Mapping[str, Sequence[int | None]], data: Dataset, specs: Mapping[str, InputSpec],
    backend: OrtBackend | None, *, own: bool,
) -> Traced:  # fmt: skip
    """Return a model traced at the sizes of data, which lie as specs say; where they lie else, ops may tell."""
    samples = samples_of(data, specs)
    _check_shapes(given, specs, samples[0], data.source)
    shapes = {name: value.shape for name, value in samples[0].items()}
    axes, declared = ({n: s.batch for n, s in some.items()} for some in (specs, input_specs(source.model)))
    told = None if axes == declared and any(axis is not None for axis in axes.values()) else axes
    return scorable(source, input_shapes=shapes, backend=backend, samples=samples, own=own, batch_axes=told)


def _check_shapes(
    given: Mapping[str, Sequence[int | None]], specs: Mapping[str, InputSpec], sample: Mapping[str, Array], source: str
) -> None:
    """Refuse shapes that are given beside data and say something else."""
    check_names(given, specs)
    for name, shape in given.items():
        own, batch = sample[name].shape, specs[name].batch
        if len(shape) != len(own) or any(
            axis != batch and size not in (None, own[axis]) for axis, size in enumerate(shape)
        ):
            raise DataError(f"{source}: {name!r} is {list(own)}, the shape given {list(shape)}; leave one of them out")


def placed_by_ops(
    source: Source, shapes: Mapping[str, Sequence[int | None]], backend: OrtBackend | None, *, own: bool
) -> Traced | None:
    """Return the traced model where only its ops tell how data have to lie; None where they lie as it declares.

    That is where all sizes are fixed and axis 0 holds several of something.
    """
    specs = input_specs(source.model)
    check_names(shapes, specs)
    several = any(not spec.batch and spec.shape and (spec.shape[0] or 0) > 1 for spec in specs.values())
    if not several or any(None in spec.shape for spec in specs.values()):
        return None
    try:
        return scorable(source, input_shapes=shapes, backend=backend, own=own)
    except ModelError:  # it may run on the data alone
        return None


def laid_by_data(specs: Mapping[str, InputSpec], data: DataLike, seed: int) -> Mapping[str, InputSpec] | None:
    """Return specs whose images lie where the sizes of data tell, None where these tell nothing new.

    That is the one axis, of size 1 or free, without which an input has the sizes of an entry; axis 0 where no other
    is. So images of steps are found that neither a name nor an op tells of (`[steps, 1, features]`).
    """
    sized = {n: InputSpec(n, s.dtype, (None,) * max(1, len(s.shape))) for n, s in specs.items()}
    try:
        given = as_dataset(data, sized, seed=seed).inputs
    except DataError:
        return None
    found = dict[str, InputSpec]()
    for name, spec in specs.items():
        entry = given[name].shape[1:]
        fitting = [
            axis for axis, size in enumerate(spec.shape)
            if size in (None, 1) and all(
                own in (None, there)
                for own, there in zip((*spec.shape[:axis], *spec.shape[axis + 1 :]), entry, strict=True)
            )
        ]  # fmt: skip
        behind = [axis for axis in fitting if axis]
        if len(behind or fitting) != 1:
            return None
        found[name] = replace(spec, batch=(behind or fitting)[0])
    return found if any(found[name].batch != spec.batch for name, spec in specs.items()) else None
