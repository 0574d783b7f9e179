"""Which Convs may be split, and what they are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshap.core import FloatArray
from onnxshap.graph import array, attributes
from onnxshap.graph.standard import op_of
from onnxshap.groups import node_name
from onnxshap.taps import paddings
from onnxshap.tracing import Traced

_LARGEST = 2048
"""Channels between beyond which splitting takes too long: it goes with the cube."""
_TALLEST = 4096
"""Inputs times height beyond which their covariance takes too long, minutes a layer, and too much memory."""


@dataclass(frozen=True)
class Layer:
    """A dense Conv with a kernel of two axes.

    Attributes:
        node: its index.
        name: its name, or its first output's.
        weight: its weight, [outputs, inputs, height, width].
        source: what it reads.
        shape: of the weight.
        sizes: of its input's and its output's two axes: (input, output) each.
        strides, dilations, pads: of the two axes; pads are those before.
    """

    node: int
    name: str
    weight: str
    source: str
    shape: tuple[int, int, int, int]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]

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
        one = height * width * inputs * outputs * high * wide_out
        return (one - 1) // (height * inputs * high * wide + width * outputs * high * wide_out)


def layers_of(traced: Traced) -> Iterator[Layer]:
    """Yield the Convs that may be split: dense, with float weights of their own, a kernel of two axes, and a gain."""
    shaped, graph = traced.shaped, traced.shaped.graph
    stored = graph.initializers
    uses = Counter(graph.origin.get(name, name) for name in stored)
    for index, node in enumerate(graph.nodes):
        if op_of(node) != "Conv" or len(node.input) < 2 or node.input[1] not in stored:
            continue
        weight, source, output = node.input[1], node.input[0], node.output[0]
        kernel, given = stored[weight], attributes(node)
        if (
            kernel.data_type != TensorProto.FLOAT
            or len(kernel.dims) != 4
            or min(kernel.dims) < 1
            or min(kernel.dims[2:]) < 2
            or given.get("group", 1) != 1
            or traced.depth(output)
            or output in graph.bodies
            or weight in graph.overridable
            or uses[graph.origin.get(weight, weight)] > 1
            or len(shaped.shapes.get(source, ())) != 4
            or len(shaped.shapes.get(output, ())) != 4
        ):
            continue
        outputs, inputs, height, width = kernel.dims
        sizes = tuple(zip(shaped.shapes[source][2:], shaped.shapes[output][2:], strict=True))
        strides, dilations = (tuple(given.get(name, (1, 1))) for name in ("strides", "dilations"))
        axes = [(*size, k, s, d) for size, k, s, d in zip(sizes, kernel.dims[2:], strides, dilations, strict=True)]
        pads = tuple(paddings(given, axes))
        layer = Layer(
            index, node_name(shaped, index), weight, source, (outputs, inputs, height, width), (sizes[0], sizes[1]),
            (strides[0], strides[1]), (dilations[0], dilations[1]), (pads[0], pads[1]),
        )  # fmt: skip
        if 0 < layer.most < layer.rank <= _LARGEST and inputs * height <= _TALLEST:
            yield layer


def kernel_of(traced: Traced, layer: Layer) -> FloatArray:
    """Return the weight of a layer, float64[outputs, inputs, height, width]."""
    return np.asarray(array(traced.shaped.graph.initializers[layer.weight]), np.float64)
