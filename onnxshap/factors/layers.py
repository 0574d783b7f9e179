"""Which layers may be split, and what they are like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshap.core import Array, FloatArray
from onnxshap.graph import array, attributes
from onnxshap.graph.standard import op_of, opset_of
from onnxshap.groups import node_name
from onnxshap.labels import Site, Weight
from onnxshap.labels.kernels import in_first
from onnxshap.taps import paddings
from onnxshap.tracing import Traced

LOW_RANK = ("spatial", "all")
"""Which layers may be two: Convs, as a column of their kernel and then a row; these, and all other linear ones."""
_OPS = {"spatial": ("Conv",), "all": ("Conv", "Gemm", "MatMul")}
_BARE_GEMM = 11
"""The opset from which on a Gemm, as the first of two is, needs no bias."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_LARGEST = 2048
"""Channels between beyond which splitting takes too long: it goes with the cube."""
_TALLEST = 4096
"""Inputs times height beyond which their covariance takes too long, minutes a layer, and too much memory."""


@dataclass(frozen=True)
class Layer:
    """A dense linear layer, as a Conv with a kernel of two axes: those that it has not are of one position.

    Attributes:
        node: its index.
        name: its name, or its first output's.
        weight: its weight.
        kind: the type of that, one of `_FLOATS`.
        how: how that lies.
        input, source: which input it reads, and that tensor.
        axis: its channels in there.
        taps: how many axes the kernel has, of two at most.
        shape: of the weight as [outputs, inputs, height, width].
        sizes: of its input's and its output's two axes: (input, output) each.
        strides, dilations, pads: of the two axes; pads are those before.
    """

    node: int
    name: str
    weight: str
    kind: int
    how: Weight
    input: int
    source: str
    axis: int
    taps: int
    shape: tuple[int, int, int, int]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)

    @property
    def rank(self) -> int:
        """The channels between with which two compute what the one does."""
        outputs, inputs, height, width = self.shape
        return min(inputs * height, width * outputs)

    @property
    def most(self) -> int:
        """Return the most channels between with which two take fewer multiply-accumulates than one, 0 if none do."""
        outputs, inputs, height, width = self.shape
        (_, high), (wide, wide_out) = self.sizes
        between = wide_out if width == 1 else wide  # a column alone moves along both axes
        one = height * width * inputs * outputs * high * wide_out
        return (one - 1) // (height * inputs * high * between + width * outputs * high * wide_out)

    def seen(self, x: Array) -> Array:
        """Return what it reads as [images, inputs, height, width]."""
        moved = np.moveaxis(x, self.axis, 1) if x.ndim > 1 else x[None]
        return moved.reshape(*moved.shape[:2], *(moved.shape[2:] if moved.ndim == 4 else (-1, 1)))


def layers_of(traced: Traced, low_rank: str) -> Iterator[Layer]:
    """Yield the layers that may be split: dense, with float weights of their own, and a gain.

    Args:
        traced: the model.
        low_rank: which, one of `LOW_RANK`.
    """
    shaped, graph = traced.shaped, traced.shaped.graph
    stored = graph.initializers
    ops = [op for op in _OPS[low_rank] if op != "Gemm" or opset_of(graph.model) >= _BARE_GEMM]
    uses = Counter(graph.origin.get(name, name) for name in stored)
    for site in traced.labels.trace.linear:
        node, weight = graph.nodes[site.node], site.weight
        if weight is None or weight.groups > 1 or op_of(node) not in ops:
            continue
        name, output = node.input[weight.input], node.output[0]
        if (
            name not in stored
            or stored[name].data_type not in _FLOATS
            or min(stored[name].dims) < 1
            or traced.depth(output)
            or output in graph.bodies
            or name in graph.fixed
            or uses[graph.origin.get(name, name)] > 1
            or not {site.tensor, output} <= shaped.shapes.keys()
        ):
            continue
        layer = _layer(traced, site, weight, name)
        if layer is None or (low_rank == "spatial" and min(layer.shape[2:]) < 2):
            continue
        _, inputs, height, _ = layer.shape
        if 0 < layer.most < layer.rank <= _LARGEST and inputs * height <= _TALLEST:
            yield layer


def _layer(traced: Traced, site: Site, weight: Weight, name: str) -> Layer | None:
    """Return a linear op as a layer, None where its kernel has more than two axes."""
    shaped, node = traced.shaped, traced.shaped.graph.nodes[site.node]
    source, output = shaped.shapes[site.tensor], shaped.shapes[node.output[0]]
    taps = [n for axis, n in enumerate(shaped.shapes[name]) if axis not in (weight.sums, weight.makes)]
    inputs, outputs = (shaped.shapes[name][axis] for axis in (weight.sums, weight.makes))
    read = site.input, site.tensor, site.axis, len(taps)
    called, kind = node_name(shaped, site.node), traced.shaped.graph.initializers[name].data_type
    if op_of(node) != "Conv":
        places = math.prod(source) // max(1, inputs)
        return Layer(site.node, called, name, kind, weight, *read, (outputs, inputs, 1, 1), ((places, places), (1, 1)))
    if len(taps) > 2:
        return None
    given, missing = attributes(node), 2 - len(taps)
    strides, dilations = (tuple(given.get(kind, (1,) * len(taps))) for kind in ("strides", "dilations"))
    pairs = list(zip(source[2:], output[2:], strict=True))
    axes = [(*size, k, s, d) for size, k, s, d in zip(pairs, taps, strides, dilations, strict=True)]
    pads = paddings(given, axes)
    one = (1,) * missing
    (high, wide), (up, across) = (*taps, *one), (*pairs, *[(1, 1)] * missing)
    moves = [(first, second) for first, second in ((*strides, *one), (*dilations, *one), (*pads, *[0] * missing))]
    return Layer(site.node, called, name, kind, weight, *read, (outputs, inputs, high, wide), (up, across), *moves)


def kernel_of(traced: Traced, layer: Layer) -> FloatArray:
    """Return the weight of a layer, float64[outputs, inputs, height, width]."""
    values = in_first(np.asarray(array(traced.shaped.graph.initializers[layer.weight]), np.float64), layer.how)
    outputs, inputs, height, width = layer.shape
    return values.reshape(inputs, outputs, height, width).swapaxes(0, 1)
