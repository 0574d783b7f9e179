"""What a graph computes from its initializers alone.

Weights that are only moved, scaled or dequantised on their way to a layer stay as they are stored: a cut follows them
back to the file. Where an entry depends on a whole slice of what is stored (weight normalisation and standardisation,
spectral norms, products of factors), or stands in many slices (a kernel repeated for every channel, as wavelets are),
no slice can be removed without changing the others: such weights are computed once and stored instead, as onnxruntime
does when it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from onnxshap.backend import Backend
from onnxshap.core import Array, FloatArray
from onnxshap.graph import Graph, array, attributes, is_op, with_constants
from onnxshap.graph.lifting import is_enter
from onnxshap.graph.structure import is_random, reads, subgraphs

_MIXING = (
    *("BatchNormalization", "Conv", "ConvTranspose", "CumSum", "Einsum", "Gemm", "GroupNormalization"),
    *("InstanceNormalization", "LayerNormalization", "LpNormalization", "MatMul", "MeanVarianceNormalization"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "RMSNormalization", "Softmax"),
)
"""Ops of which an entry depends on many."""
CHANNELS = 1
"""The axis of a BatchNormalization's channels, which need not be the one that the op before it makes."""


def is_constant(node: NodeProto, known: Iterable[str]) -> bool:
    """Return whether a node computes from known constants alone."""
    other = is_random(node) or is_enter(node) or any(subgraphs(node))
    return all(i in known for i in node.input if i) and not other


def constants_of(model: ModelProto) -> frozenset[str]:
    """Return the names of the tensors that are stored or computed from stored ones alone."""
    known = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if is_constant(node, known):
            known.update(o for o in node.output if o)
    return frozenset(known)


def static_values(model: ModelProto, backend: Backend, names: Sequence[str]) -> dict[str, Array]:
    """Return the values of tensors computed from initializers alone."""
    wanted = set(names)
    known = {t.name: array(t) for t in model.graph.initializer if t.name in wanted}
    rest = [name for name in names if name not in known]
    if rest:
        needed, nodes = set(rest), []
        for node in reversed(model.graph.node):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        part.graph.name = "constants"
        part.graph.node.extend(reversed(nodes))
        part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in rest)
        part = onnx.shape_inference.infer_shapes(part)
        # unoptimised: what onnxruntime folds by the shapes that it infers may differ from what it computes
        known.update(zip(rest, backend.session(part, optimize=False).run({}), strict=True))
    return {name: known[name] for name in names}


def is_stored(norm: NodeProto, constants: Collection[str]) -> bool:
    """Return whether all that a BatchNormalization multiplies by and adds is constant, of the names that are."""
    return all(name in constants for name in norm.input[1:5])


def norm_scale(model: ModelProto, backend: Backend, norm: NodeProto) -> FloatArray:
    """Return what a BatchNormalization multiplies each channel by, float64[channels]: scale / sqrt(var + epsilon)."""
    return norm_affine(model, backend, norm)[0]


def norm_affine(model: ModelProto, backend: Backend, norm: NodeProto) -> tuple[FloatArray, FloatArray]:
    """Return what a BatchNormalization multiplies each channel by, and what it adds then, float64[channels] each."""
    names = list(norm.input[1:5])
    values = static_values(model, backend, names)
    weight, bias, mean, variance = (values[name].astype(np.float64) for name in names)
    scale = np.asarray(weight / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5)))
    return scale, bias - mean * scale


def store_mixed(graph: Graph, backend: Backend) -> Graph:
    """Return a normalised graph that stores weights as layers read them, where they are mixed or repeated before."""
    known = {t.name for t in graph.model.graph.initializer}
    mixed, repeated = set[str](), set[str]()
    wanted: dict[str, None] = {}
    for node in graph.nodes:
        if not is_constant(node, known):
            kernels = repeated.intersection(node.input[1:2] if is_op(node, "Conv", "ConvTranspose") else ())
            wanted |= dict.fromkeys(name for name in reads(node) if name in mixed or name in kernels)
            continue
        made = [o for o in node.output if o]
        known.update(made)
        if is_op(node, "Tile"):
            repeated.update(made)
        if is_op(node, *_MIXING) or mixed.intersection(node.input):
            mixed.update(made)
    wanted |= dict.fromkeys(o.name for o in graph.model.graph.output if o.name in mixed)
    if not wanted:
        return graph
    return with_constants(graph, static_values(graph.model, backend, list(wanted)))
