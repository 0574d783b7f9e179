"""A batch that is free by its name alone: the exporter wrote the size that it traced with into a shape.

Such a file runs at that size and at no other, whatever it declares, or at others gives channels of one image to
another. It is taken for what it is, a file of a fixed batch, of which the images' way is known (`batching`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from onnxshap.backend import Backend, Session
from onnxshap.core import Array, BoolArray
from onnxshap.data import InputSpec
from onnxshap.errors import DataError, ModelError
from onnxshap.graph import Graph, array, is_op
from onnxshap.shapes.folding import Run, Shape
from onnxshap.shapes.probe import noise
from onnxshap.shapes.samples import resized, together

_TRIES = 8
"""Sizes of a batch that are tried, of those that the file's shapes may hold."""
_RANKS = 8
"""Sizes in a shape that are looked at."""
_LONGEST = 1024
"""A batch, or another size, of which no larger one is tried."""
_DRAWS = 3
"""Runs that have to agree on what size runs and what not."""
_FAILED = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
"""How onnxruntime names the node that does not run."""


def written_batches(graph: Graph) -> list[int]:
    """Return sizes above 2 of a batch that the file's shapes may be written out for, likely ones first.

    Images lead a shape, alone or together with heads or windows: what divides most of those first entries.
    """
    leading = [target[0] for target in _targets(graph) if target]
    found: dict[int, int] = {}
    for size in leading:
        for part in (d for d in range(3, min(size, _LONGEST) + 1) if size % d == 0):
            found[part] = found.get(part, 0) + 1
    return sorted(found, key=lambda part: (-found[part], part))[:_TRIES]


def written_sizes(graph: Graph) -> list[int]:
    """Return sizes above 1 that the file's shapes name, frequent ones first: a length may be one of them."""
    named = itertools.chain(*(target[:-1] for target in _targets(graph)), _parts(graph))
    found = Counter(size for size in named if 1 < size <= _LONGEST)
    return sorted(found, key=lambda size: (-found[size], size))[:_TRIES]


def _parts(graph: Graph) -> Iterator[int]:
    """Yield the stored sizes that are joined with computed ones to a shape."""
    stored, made = graph.initializers, {o: node for node in graph.nodes for o in node.output}
    for node in graph.nodes:
        for name in node.input if is_op(node, "Concat") else ():
            source = made[name].input[0] if name in made and is_op(made[name], "Unsqueeze") else name
            if source in stored and stored[source].data_type == TensorProto.INT64 and len(stored[source].dims) < 2:
                yield from array(stored[source]).reshape(-1)[:_RANKS].tolist()


def _targets(graph: Graph) -> list[list[int]]:
    """Return the shapes that are stored for what is reshaped or stretched."""
    stored = graph.initializers
    names = [n.input[1] for n in graph.nodes if is_op(n, "Expand", "Reshape") and n.input[1] in stored]
    return [[int(size) for size in array(stored[name])] for name in names]


def fixed_batch(
    graph: Graph,
    specs: Mapping[str, InputSpec],
    backend: Backend,
    run: Run,
    samples: Sequence[Mapping[str, Array]],
) -> tuple[int, str] | None:
    """Return the only batch that a graph takes, that of a run, and why it does; None where others may run.

    The run was at a batch that the file declares free, and none at one image more came about. Whether that is the
    batch's fault is tried again, on data where there are any, else on noise: an image of a batch that runs, once more
    than it runs. So it is no matter what the model wants of its values (an end mark in every row).

    Args:
        graph: a normalised graph, as it was given.
        specs: of its inputs.
        backend: runs it.
        run: one that came about.
        samples: of one image each.
    """
    sizes = [run.inputs[n][s.batch] for n, s in specs.items() if s.batch is not None and s.shape[s.batch] is None]
    if not sizes:
        return None
    session = backend.session(graph.model, optimize=False)
    reason = ""
    for one, more in _draws(specs, run.inputs, samples, sizes[0]):
        try:
            session.run(one)
        except (ModelError, DataError):
            return None
        try:
            session.run(more)
        except (ModelError, DataError) as error:
            reason = str(error)
        else:
            return None
    found = _FAILED.search(reason)
    where = f"{found[1]} {found[2]!r}" if found and found[2] else "it"
    images = f"{sizes[0]} image{'s'[: sizes[0] != 1]}"
    return sizes[0], f"the batch is free by name, but {where} takes {images} and no more: it is fixed to that"


def torn_batch(
    graph: Graph,
    specs: Mapping[str, InputSpec],
    backend: Backend,
    one: Run,
    others: Sequence[Run],
    samples: Sequence[Mapping[str, Array]],
) -> tuple[int, str] | None:
    """Return the only batch at which a graph keeps its images apart, and why; None where shapes tell of none.

    At any other a Reshape that is written out for some images (windows are put together again, to [1, 8, 8, 7, 7, -1])
    runs too: -1 makes up for their number, and every position gets features of several places of several images.
    So it is where images lead what is reshaped, and the last axis of the result grows with their number instead.

    Shapes tell so of what is laid out otherwise for a while, too, so it is measured whether images give what they give
    among fewer. Where heads are taken apart ([1, places, heads, -1]) shapes tell of as many images as there are heads,
    times those: it is no more than lead the result, and so many as are not mixed.

    Args:
        graph: a normalised graph.
        specs: of its inputs.
        backend: runs it.
        one, others: runs that came about, at several batches and sizes.
        samples: of one image each.
    """
    free = [(n, s.batch) for n, s in specs.items() if s.batch is not None and s.shape[s.batch] is None]
    runs = [one, *others]
    batches = [run.inputs[name][axis] for run in runs for name, axis in free[:1]]
    if len(set(batches)) < 2:
        return None
    found = dict[int, str]()
    for node in graph.nodes:
        if not is_op(node, "Reshape") or any(not {node.input[0], node.output[0]} <= run.shapes.keys() for run in runs):
            continue
        shapes = [(run.shapes[node.input[0]], run.shapes[node.output[0]]) for run in runs]
        if (size := _torn(batches, shapes)) is not None:
            found.setdefault(math.gcd(size, *(after[0] for _, after in shapes)), node.name or node.output[0])
    if not found:
        return None
    session, most = backend.session(graph.model, optimize=False), math.gcd(*found)
    given = session, specs, one.inputs, samples
    if _alike(*given, most):
        return None
    size = next((n for n in range(most, 0, -1) if most % n == 0 and _mixed(*given, n) is False), most)
    images = f"{size} image{'s'[: size != 1]}"
    return size, (
        f"the batch is free by name, but Reshape {found[min(found)]!r} is written out for {images} and mixes the "
        f"features of more: it is taken as fixed to that, and the file gives wrong outputs at any other"
    )


def _alike(
    session: Session, specs: Mapping[str, InputSpec], shapes: Mapping[str, Shape],
    samples: Sequence[Mapping[str, Array]], count: int,
) -> bool | None:  # fmt: skip
    """Return whether twice as many images give, side by side, what each half gives; None where they do not run."""
    for one, other in _pairs(specs, shapes, samples, count):
        both = {n: v if (k := specs[n].batch) is None else np.concatenate([v, other[n]], k) for n, v in one.items()}
        other |= {n: v for n, v in one.items() if specs[n].batch is None}
        try:
            found = [session.run(feeds) for feeds in (one, other, both)]
        except (ModelError, DataError):
            continue
        return all(
            a.shape == b.shape
            and (any(_close(np.concatenate([a, b], k), c) for k in range(a.ndim)) or (_close(a, b) and _close(a, c)))
            for a, b, c in zip(*map(_numbers, found), strict=True)
        )
    return None


def _numbers(outputs: Sequence[Array]) -> list[Array]:
    """Return those of some outputs that are numbers: others are sequences, maps or words."""
    return [value for value in outputs if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"]


def _close(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=one.dtype.kind == "f")


def _mixed(
    session: Session, specs: Mapping[str, InputSpec], shapes: Mapping[str, Shape],
    samples: Sequence[Mapping[str, Array]], count: int,
) -> bool | None:  # fmt: skip
    """Return whether some number that the first of some images changes is one that the others change, too.

    None where the model refuses as many images.
    """
    for one, other in _pairs(specs, shapes, samples, count):
        front, rest = ({n: _joined(a[n], b[n], specs[n].batch) for n in one} for a, b in ((other, one), (one, other)))
        try:
            plain, *changed = (session.run(feeds) for feeds in (one, front, rest))
        except (ModelError, DataError):
            continue
        return any(
            not a.shape == b.shape == c.shape or bool((_differ(a, b) & _differ(a, c)).any())
            for a, b, c in zip(*map(_numbers, (plain, *changed)), strict=True)
        )
    return None


def _pairs(
    specs: Mapping[str, InputSpec], shapes: Mapping[str, Shape], samples: Sequence[Mapping[str, Array]], count: int
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield inputs of as many images, and of as many others: of noise, then of samples."""
    one, other = (
        {n: noise(n, spec.dtype, at_batch(spec, shapes[n], count), seed) for n, spec in specs.items()}
        for seed in (1, 2)
    )
    yield one, other
    if len(samples) > 1:
        order = [*samples] * count
        yield together(order, specs, count)[0], together(order[1:], specs, count)[0]


def _joined(first: Array, rest: Array, batch: int | None) -> Array:
    """Return an input of the first image of one, and of the others of another."""
    if batch is None or rest.shape[batch] < 2:
        return rest
    return np.concatenate([np.take(first, [0], batch), np.delete(rest, 0, batch)], batch)


def _differ(one: Array, other: Array) -> BoolArray:
    """Return which numbers are not the same; NaN is."""
    return np.asarray((one != other) & ~((one != one) & (other != other)))


def _torn(batches: Sequence[int], shapes: Sequence[tuple[Shape, Shape]]) -> int | None:
    """Return how many images a Reshape keeps apart, given its source and result at some batches; None: any number."""
    if any(
        len(before) < 2 or before[0] % n or math.prod(after[:-1]) < 2
        for n, (before, after) in zip(batches, shapes, strict=True)
    ):
        return None
    inner = list(zip(*(before[1:] for before, _ in shapes), strict=False))
    if len(set(inner[-1])) > 1 or any(
        len({size / n for size, n in zip(sizes, batches, strict=True)}) == 1 for sizes in inner
    ):
        return None  # images lie further in, or features are as many as positions
    found = {
        divmod(n * math.prod(after[:-1]) * before[-1], math.prod(before))
        for n, (before, after) in zip(batches, shapes, strict=True)
    }
    size, left = found.pop()
    return None if found or left or not size else size


def with_batch(spec: InputSpec, size: int) -> InputSpec:
    """Return the spec of an input whose batch is fixed, if it has one."""
    return replace(spec, shape=tuple(size if k == spec.batch else n for k, n in enumerate(spec.shape)))


def _draws(
    specs: Mapping[str, InputSpec], shapes: Mapping[str, Shape], samples: Sequence[Mapping[str, Array]], size: int
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield inputs of as many images, and of one image more: of noise, the first one as often."""
    for draw in range(_DRAWS):
        if samples:
            start = draw * size % len(samples)
            turned = [*samples[start:], *samples[:start]]
            one, more = (together([*turned] * count, specs, count)[0] for count in (size, size + 1))
        else:
            one = {n: noise(n, spec.dtype, at_batch(spec, shapes[n], size), draw + 1) for n, spec in specs.items()}
            more = resized(one, specs, {n: at_batch(spec, shapes[n], size + 1) for n, spec in specs.items()})
        yield one, more


def at_batch(spec: InputSpec, shape: Shape, count: int) -> Shape:
    """Return the shape of an input with another number of images, if that is free."""
    free = spec.batch is not None and spec.shape[spec.batch] is None
    return tuple(count if free and axis == spec.batch else size for axis, size in enumerate(shape))
