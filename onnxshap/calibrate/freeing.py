"""Whether a model takes any number of images at a time, measured: two together give what they give one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import helper

from onnxshap.calibrate.feeding import by_image
from onnxshap.calibrate.running import rows_of
from onnxshap.core import Array, Dataset
from onnxshap.errors import ModelError
from onnxshap.shapes.batching import freed_model, steady_model
from onnxshap.tracing import Traced

_TOLD = 16
"""Images that tell whether a batch mixes them."""
_ROUNDED = 5e-3
"""Of the largest output, what may be rounding: a code of 8 bits, as kernels differ from batch to batch on a device."""


def free_batch(traced: Traced) -> Traced:
    """Return the same model for evaluation, any number of images at a time where the model allows it.

    Where their axis is free, a Squeeze of all axes of size 1 would take it from a single image; the axes are named.
    Exporters write sizes with the batch spelled out, and constants for one image; `batching` makes them follow it.
    Whether that worked, and whether images are apart on another axis than 0 (steps come first), is measured: two
    images at once must give what they give one by one, else the model is left alone, evaluated at its own batch size.
    """
    shaped = traced.shaped
    if any(shaped.batch_axis(name) is None for name in shaped.inputs):
        return traced
    free = all(spec.shape[shaped.batch_axis(name) or 0] is None for name, spec in shaped.specs.items())
    model = (steady_model(shaped) or shaped.graph.model) if free else freed_model(shaped)
    if model is None or (shaped.free_batch and model is shaped.graph.model):
        return traced
    added = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name not in shaped.shapes}
    graph, shapes = replace(shaped.graph, model=model), {**shaped.shapes, **added}
    freed = replace(traced, shaped=replace(shaped, graph=graph, shapes=shapes, free_batch=True))
    return freed if shaped.free_batch or _same_rows(traced, freed) else traced


def _same_rows(traced: Traced, freed: Traced) -> bool:
    """Return whether two batches of random images at once give what they give one by one, whatever the other is.

    What an image gives must not change by a bit with what lies beside it: a mask that is taken from the first image for
    all of them may make less of a difference than rounding does.
    """
    rng = np.random.default_rng(0)
    inputs = traced.shaped.graph.model.graph.input
    kinds = {i.name: np.dtype(helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)) for i in inputs}

    def drawn() -> dict[str, Array]:
        return {
            name: (rng.normal(size=shape) if kinds[name].kind == "f" else rng.integers(0, 2, shape)).astype(kinds[name])
            for name, shape in traced.shaped.inputs.items()
        }

    def both(one: Mapping[str, Array], two: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.concatenate([one[name], two[name]], traced.shaped.batch_axis(name) or 0) for name in one}

    first, second, other = drawn(), drawn(), drawn()
    try:
        one = traced.backend.session(traced.shaped.graph.model)
        apart = [by_image(traced, one.run(feeds)) for feeds in (first, second)]
        session = freed.backend.session(freed.shaped.graph.model)
        together, before, behind = (
            by_image(freed, session.run(both(*pair))) for pair in ((first, second), (first, other), (other, second))
        )
    except ModelError:
        return False
    return all(
        a.ndim
        and t.shape == (2 * len(a), *a.shape[1:]) == x.shape == y.shape
        and np.allclose(t, np.concatenate([a, b]), rtol=1e-4, atol=1e-5, equal_nan=True)
        and t[: len(a)].tobytes() == x[: len(a)].tobytes()
        and t[len(a) :].tobytes() == y[len(a) :].tobytes()
        for a, b, t, x, y in zip(*apart, together, before, behind, strict=True)
    )


def rows_apart(traced: Traced, data: Dataset) -> bool:
    """Return whether images give together what each gives alone, as far as the first `_TOLD` tell.

    At every place of a batch: a running sum along it tells the first image nothing of the rest, an extreme nothing the
    image that has it. A file says of its batch only that it is free; what is made free here is held to more
    (`free_batch`).
    """
    first = data.take(slice(_TOLD))
    session = traced.backend.session(traced.shaped.graph.model)
    together = list(rows_of(traced, session, first))
    alone = [next(rows_of(traced, session, first.take(np.array([image])))) for image in range(len(first))]
    for a, b in zip(zip(*together, strict=True), zip(*alone, strict=True), strict=True):
        if len({value.shape[1:] for value in (*a, *b)}) > 1:
            return False
        found, wanted = np.concatenate(a), np.concatenate(b)
        if found.dtype.kind in "fiub":
            rounded = _ROUNDED * float(np.abs(found).max(initial=0))
            if not np.allclose(found, wanted, rtol=0, atol=rounded):
                return False
    return True


def mixes_rows(traced: Traced, data: Dataset) -> bool:
    """Return whether a row of axis 0 gives something else with other rows beside, or nothing of its own.

    Args:
        traced: a model that takes a whole input for a sample.
        data: of which the first two samples tell, by what each gives with half of its rows those of the other.
    """
    first = {name: value[0] for name, value in data.inputs.items()}
    second = {name: value[1] if len(data) > 1 else np.roll(value[0], 1, axis=0) for name, value in data.inputs.items()}
    lengths = {len(value) for value in first.values() if value.ndim}
    if len(lengths) > 1:
        return True
    rows = lengths.pop()
    half = rows // 2
    joined = {n: np.concatenate([v[:half], second[n][half:]]) if v.ndim else v for n, v in first.items()}
    session = traced.backend.session(traced.shaped.graph.model)
    try:
        every = [session.run(feeds) for feeds in (first, second, joined)]
    except ModelError:  # they do not go with one another
        return True
    return not all(
        a.shape == b.shape == c.shape
        and a.shape[:1] == (rows,)
        and all(
            np.allclose(x, y, rtol=0, atol=1e-3 * np.abs(x).max(initial=0))
            for x, y in ((a[:half], c[:half]), (b[half:], c[half:]))
        )
        for a, b, c in zip(*every, strict=True)
        if a.dtype.kind in "fiu"
    )
