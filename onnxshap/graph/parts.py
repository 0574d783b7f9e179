"""Parts of a model, for evaluation only. The only owner of onnx-graphsurgeon."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxshap.graph.loops import closed
from onnxshap.graph.names import Names
from onnxshap.graph.structure import between, graphs_of, keep_only, order, reads, refill, subgraphs
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
    part = _upstream(model, among, inputs, outputs)
    if any(name in inputs for node in part.graph.node for name in node.output):
        part = _let_go(part, inputs)
    places = order(part.graph.node)
    assert places is not None
    if places != sorted(places):
        refill(part.graph.node, [part.graph.node[k] for k in places])
    for name, kind in inputs.items():
        dims = list(shapes[name]) if shapes and name in shapes else None
        part.graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    for name, kind in outputs.items():
        part.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return part


def _upstream(
    model: ModelProto, among: Sequence[NodeProto], inputs: Collection[str], outputs: Collection[str]
) -> ModelProto:
    """Return a model of the nodes that come between some tensors, and of what is stored for them."""
    graph = model.graph
    nodes = between(among, inputs, outputs)
    read = {*outputs, *(name for node in nodes for name in reads(node))}.difference(inputs)
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = graph.name
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
    part.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
    return part


def _let_go(part: ModelProto, inputs: Collection[str]) -> ModelProto:
    """Return a model in which what nodes make beside what is wanted, and is fed, has another name."""
    import onnx_graphsurgeon as gs  # slow to load, and seldom needed

    with quiet():
        graph = gs.import_onnx(part)
        taken = Names(part.graph, inputs)
        for node in graph.nodes:
            node.outputs = [gs.Variable(taken.new(f"{o.name}.cut")) if o.name in inputs else o for o in node.outputs]
        made: ModelProto = gs.export_onnx(graph, do_type_check=False)
    _keep_outside(made.graph, part.graph)
    part = ModelProto(ir_version=part.ir_version, opset_import=part.opset_import, functions=part.functions)
    part.graph.CopyFrom(made.graph)
    del part.graph.value_info[:]
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
            keep_only(item.initializer, lambda t: t.name not in stored)
        missing = [name for name in twins if name not in present]
        part.initializer.extend(stored[name] for name in missing)
        present.update(missing)
