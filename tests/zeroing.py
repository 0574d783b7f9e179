"""An oracle that shares no code with the package: redo a cut by zeroing slices of the input file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def zeroed(model: onnx.ModelProto, slices: Sequence[dict[str, Any]]) -> onnx.ModelProto:
    """Return the model with the slices of a report's `removed_slices` set to zero, use by use."""
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    graph = copy.graph
    values: dict[tuple[str, str, int], NDArray[Any]] = {}
    nodes = dict(_nodes(graph, "", {}))
    computed: dict[str, _Stored] = {}
    for body in {item.get("body", "") for item in slices}:
        mine = [item for item in slices if item.get("body", "") == body]
        _, stored, around = nodes[body, mine[0]["node"]]
        computed[body] = stored | _computed(copy, around, {item["initializer"] for item in mine}, stored)
    for item in slices:
        key = item.get("body", ""), item["node"], item["input"]
        array = values.setdefault(key, computed[key[0]][item["initializer"]].copy())
        where: list[Any] = [slice(None)] * array.ndim
        where[item["axis"]] = item["indices"]
        array[tuple(where)] = np.asarray(item.get("value", 0), array.dtype)  # codes: the zero point
    for number, ((body, output, index), array) in enumerate(values.items()):
        name = f"zeroed_{number}"
        graph.initializer.append(numpy_helper.from_array(array, name))
        if copy.ir_version < 4:
            graph.input.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            )
        nodes[body, output][0].input[index] = name
    return copy


_Stored = dict[str, NDArray[Any]]
_Graphs = tuple[onnx.GraphProto, ...]


def _computed(model: onnx.ModelProto, around: _Graphs, wanted: set[str], stored: _Stored) -> _Stored:
    """Return the wanted tensors that are not stored, but computed from constants alone in some graphs."""
    part, known, names = onnx.ModelProto(), set(stored), sorted(wanted - set(stored))
    if not names:
        return {}
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.initializer[:]
    for graph in around:
        part.graph.initializer.extend(graph.initializer)
        for node in graph.node:
            if known.issuperset(filter(None, node.input)):
                part.graph.node.append(node)
                known.update(node.output)
    part.ir_version = max(4, part.ir_version)  # before, what is stored had to be an input too
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run(onnx.shape_inference.infer_shapes(part), {}), strict=True))


def _nodes(
    graph: onnx.GraphProto, body: str, outside: _Stored, around: _Graphs = ()
) -> Iterator[tuple[tuple[str, str], tuple[onnx.NodeProto, _Stored, _Graphs]]]:
    """Yield (body, first output) -> node, the constants that it can read, and the graphs that it stands in, of all."""
    stored, around = outside | {t.name: numpy_helper.to_array(t) for t in graph.initializer}, (*around, graph)
    for node in graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = _constant(node)
        elif node.op_type == "ConstantOfShape" and node.input[0] in stored:
            fill = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
            stored[node.output[0]] = np.full(stored[node.input[0]], fill[0], fill.dtype)
    for node in graph.node:
        yield (body, node.output[0]), (node, stored, around)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inside = f"{node.output[0]}.{attribute.name}"
                yield from _nodes(attribute.g, f"{body}/{inside}" if body else inside, stored, around)


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    value = helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.array(value, np.float32 if node.attribute[0].name.startswith("value_float") else np.int64)


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], *, optimise: bool = True) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # else products with int8 weights round what they multiply to int8, too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.intra_op_num_threads = 1  # small nets: threads would only wait for each other
    if model.functions:  # it crashes on some of those that hold a SimplifiedLayerNormalization
        model = onnx.inliner.inline_local_functions(model)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


LEAST = 0.03
"""Of which single precision rounds 1e-5 away, where it computes with numbers of order one."""


def relative_error(
    got: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]], usual: Sequence[NDArray[Any]] | None = None
) -> float:
    """Return the largest difference over the largest magnitude, over all outputs; inf on other shapes, dtypes, NaN.

    Where the outputs of the whole model are given as `usual`, the magnitude is theirs if it is larger: what is left of
    a sum may be next to nothing, its rounding is not. Nor is that of an output which is nothing but rounding (the mean
    of what a layer norm gives): no magnitude counts as less than `LEAST`.
    """
    worst = 0.0
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if b.dtype.kind == "f" and not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")  # max() would let a NaN pass
        if b.size:
            sizes = [float(np.abs(o.astype(np.float64)).max()) for o in ([b] if usual is None else [b, usual[k]])]
            scale = max(LEAST, *sizes)
            worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) / scale)
    return worst
