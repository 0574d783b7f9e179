"""Linear ops refitted: rows of what they read and of what they answer for, one regression for those with one weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshap import streams
from onnxshap.blas import threads_for
from onnxshap.core import Array, BoolArray
from onnxshap.errors import ModelError
from onnxshap.graph import attributes, is_op
from onnxshap.repair.matching import match
from onnxshap.repair.regression import MAX_COEFFICIENTS, Effort, Refit, Response, Rows, harm, solve
from onnxshap.repair.rows import channels_second, flags_of, inputs_of, outputs_of, rows_at
from onnxshap.repair.targets import Layer
from onnxshap.repair.walks import Walks
from onnxshap.taps import patches, taps

_COPIES = 6
"""Of a layer's coefficients that are there at a time, in float64; of very many inputs, moments are matched where these
do not fit into the memory."""


def fit_linear(walks: Walks, layers: Sequence[Layer], effort: Effort, seed: int) -> Refit | None:
    """Refit layers with one weight, each with a bias of its own, in place.

    Where they are too large to, their moments are matched, and None is returned; where they never run, None.

    Args:
        walks: both models.
        layers: those with one weight.
        effort: how much is spent.
        seed: draws the rows.
    """
    first, coefficients = layers[0], walks.coefficients
    old = coefficients.read(first)
    groups, inputs, outputs = old.shape
    if inputs > MAX_COEFFICIENTS and _COPIES * old.nbytes > walks.free.backend.memory:
        match(walks, layers)
        return None
    biases = coefficients.biases(layers, groups * outputs)
    present = np.concatenate([old, *(bias.reshape(groups, 1, outputs) for bias in biases)], axis=1)
    scale, shift = first.scale_and_shift(groups * outputs)
    response = Response(scale.reshape(groups, 1, -1), shift.reshape(groups, 1, -1), first.flat)
    rows = Rows(response), Rows(response)
    summed = any(layer.addend for layer in layers)
    for number, layer in enumerate(layers):
        own = np.eye(len(layers), dtype=np.float32)[number] if biases else np.empty(0, np.float32)
        for some in _samples(walks, layer, effort.needed(inputs), seed):
            added = some.addend
            if summed and added is None:
                added = np.zeros_like(some.wanted)
            for part, chosen in zip(rows, (~some.held_out, some.held_out), strict=True):
                if chosen.any():
                    part.add(
                        inputs_of(some.design[chosen], groups, own),
                        outputs_of(some.wanted[chosen], groups),
                        None if added is None else outputs_of(added[chosen], groups),
                    )
    if not len(rows[0]):
        return None
    with threads_for(inputs):
        solved, before, after, ridge = solve(*rows, present, inputs, effort)
    if after < before and (held := coefficients.rounded(first, solved[:, :inputs])) is not None:
        after += harm(*rows, solved, np.concatenate([held, solved[:, inputs:]], axis=1))
    fitted = [solved[:, inputs + number].reshape(-1) for number in range(len(biases))]
    if after < before and coefficients.write(layers, solved[:, :inputs], fitted):
        walks.go_on(layers)
    else:
        after, ridge = before, None
    return Refit(walks.model.graph.node[first.index].name or first.y, before, after, ridge)


@dataclass(frozen=True)
class _Sample:
    """What a layer reads and answers for at some positions of some images.

    Attributes:
        design: what it reads, [images, positions, channels, taps].
        wanted: what it answers for, [images, positions, channels].
        addend: what is added to what it gives, of the same shape; None = nothing.
        held_out: which of them are, bool[images] or bool[images, positions].
    """

    design: Array
    wanted: Array
    addend: Array | None
    held_out: BoolArray


def _samples(walks: Walks, layer: Layer, rows: int, seed: int) -> Iterator[_Sample]:
    """Yield about so many rows of a layer, batch by batch."""
    each = math.ceil(rows / max(1, walks.images))
    for number, (held_out, (target, (source, *addend))) in enumerate(
        zip(walks.held_out, walks.compared(layer, layer.x), strict=True)
    ):
        if not (target.size and source.size):
            continue  # as many as the data tell, and these tell of none
        total = math.prod(channels_second(target, layer.outputs).shape[2:])
        rng = streams.stream(seed, streams.REFIT_ROWS, layer.index, number)
        at = np.sort(rng.choice(total, min(total, each), replace=False))
        design, wanted = _design(walks, layer, source, at), rows_at(target, layer.outputs, at)
        if len(design) != len(wanted):
            continue  # those of the cut model tell of others
        added = rows_at(addend[0], layer.outputs, at) if addend else None
        yield _Sample(design, wanted, added, _of_images(walks, held_out, layer, target.shape, at))


def _of_images(
    walks: Walks, flags: BoolArray, layer: Layer, shape: Sequence[int], at: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Return the flags of a target's rows, those of their images: bool[axis 0] or bool[axis 0, positions].

    Images lie on another axis behind a Transpose (steps first), or share one with steps, windows or heads.
    """
    rest = [axis for axis in range(len(shape)) if axis != layer.outputs]
    place = walks.free.images(layer.target)
    if place is None or place.axis not in rest:
        return flags_of(flags, shape[rest[0]] if rest else len(flags))
    own = flags_of(flags, shape[place.axis], place)
    if place.axis == rest[0]:
        return own
    along = own.reshape([-1 if axis == place.axis else 1 for axis in rest])
    return np.broadcast_to(along, [shape[axis] for axis in rest]).reshape(shape[rest[0]], -1)[:, at]


def _design(walks: Walks, layer: Layer, source: Array, at: NDArray[np.intp]) -> Array:
    """Return the regression's inputs [images, positions, channels, taps]."""
    x, node = channels_second(source, layer.channels), walks.model.graph.node[layer.index]
    if is_op(node, "Conv", "ConvTranspose"):
        shapes = walks.free.shaped.shapes
        kernel = shapes[node.input[1]][2:] if node.input[1] in shapes else ()
        made = walks.live.shape(layer.y, shapes[layer.y])[2:]
        read = taps(node.op_type, attributes(node), x.shape[2:], made, kernel)
        if at.max(initial=0) >= len(read):
            raise ModelError(
                f"{node.op_type} {node.name or node.output[0]!r} runs along the axis of the batch, and takes "
                "another one for the images; export the model with that one called the batch, or use --repair fold"
            )
        return patches(x, read[at]).transpose(0, 2, 1, 3)
    flat = x.reshape(*x.shape[:2], -1)[:, :, at]
    return flat.transpose(0, 2, 1)[..., None]
