"""Parts of a model, for evaluation only. The only owner of onnx-graphsurgeon."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto

from onnxshap.graph.loops import closed
from onnxshap.graph.names import Names
from onnxshap.graph.structure import (
    between,
    graphs_of,
    reads,
    refill,
    subgraphs,
)
from onnxshap.quiet import quiet


def extract(
    model: ModelProto,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    nodes: Sequence[NodeProto] | None = None,
) -> ModelProto:
    """Return the sub-model that computes `outputs` from `inputs`, for evaluation only.

    Args:
        model: any model.
        inputs: tensor name -> ONNX element type. All of them are inputs of the result.
        outputs: tensor name -> ONNX element type, in the order wanted; those made in a body as `loops.closed` gives
            them.
        shapes: tensor name -> dims to declare of an input, None = open; of others even the rank is left open.
        nodes: those of the model among which are all that come between, in order; None = all.
    """
    whole, model = model, closed(model, outputs)
    among = model.graph.node if nodes is None or model is not whole else nodes
    with quiet():
        between = _upstream(model, among, inputs, outputs)
        graph = gs.import_onnx(between)
        tensors = {name: gs.Variable(name) for name in inputs} | graph.tensors()
        graph.inputs = [tensors[name] for name in inputs]
        graph.outputs = [tensors[name] for name in outputs]
        for name, kind in (*inputs.items(), *outputs.items()):
            tensors[name].dtype = kind
            tensors[name].shape = list(shapes[name]) if shapes and name in inputs and name in shapes else None
        if producers := [producer for item in graph.inputs for producer in item.inputs]:
            taken = Names(between.graph, inputs)
            for node in producers:
                node.outputs = [
                    gs.Variable(taken.new(f"{o.name}.cut")) if o.name in inputs else o for o in node.outputs
                ]
        graph.cleanup().toposort()
        part: ModelProto = gs.export_onnx(graph, do_type_check=False)
    _keep_outside(part.graph, model.graph)
    del part.graph.value_info[:]
    del part.opset_import[:]
    part.opset_import.extend(model.opset_import)
    part.ir_version = model.ir_version
    return part


def _upstream(
    model: ModelProto, among: Sequence[NodeProto], inputs: Collection[str], outputs: Collection[str]
) -> ModelProto:
    """Return a model of the nodes alone that come between some tensors: graphsurgeon takes its time over every node."""
    graph = model.graph
    nodes = between(among, inputs, outputs)
    read = {*outputs, *(name for node in nodes for name in reads(node))}
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = graph.name
    part.graph.node.extend(nodes)
    part.graph.input.extend(graph.input)
    part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
    part.graph.sparse_initializer.extend(graph.sparse_initializer)
    return part


def _keep_outside(part: GraphProto, whole: GraphProto) -> None:
    """Take out of bodies the initializers of the graph around them, of which graphsurgeon writes copies there."""
    bodies = [g for node in part.node for body in subgraphs(node) for g in graphs_of(body)]
    if not bodies:
        return
    stored = {t.name: t for t in whole.initializer}
    present = {t.name for t in part.initializer}
    for item in bodies:
        twins = [t.name for t in item.initializer if t.name in stored]
        if twins:
            refill(item.initializer, [t for t in item.initializer if t.name not in stored])
        missing = [name for name in twins if name not in present]
        part.initializer.extend(stored[name] for name in missing)
        present.update(missing)
