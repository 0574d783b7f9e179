"""A model in two: a head, and a tail of nodes that is put back word for word behind whatever becomes of the head."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from onnxshap.core import Array
from onnxshap.graph.branches import rename
from onnxshap.graph.names import Names
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import between, copied, keep_only, reads, refill


@dataclass(frozen=True)
class Tail:
    """The last nodes of a model.

    Attributes:
        border: the tensors of the head that it reads, in the order of reading; they are outputs of the head.
        nodes: its nodes, in order.
        stored: the initializers that they read, sizes of the head among them.
        inputs: the entries among the model's inputs of those initializers.
        outputs: the outputs of the whole.
        model: the whole, as it was.
    """

    border: tuple[str, ...]
    nodes: tuple[NodeProto, ...]
    stored: tuple[TensorProto, ...]
    inputs: tuple[ValueInfoProto, ...]
    outputs: tuple[ValueInfoProto, ...]
    model: ModelProto

    @property
    def constants(self) -> list[TensorProto]:
        """What it stores, in nodes too."""
        inside = (given for node in self.nodes if is_op(node, "Constant") for given in node.attribute)
        return [*self.stored, *(given.t for given in inside if given.HasField("t"))]


def take_off(
    model: ModelProto, ends: Collection[str], border: Sequence[ValueInfoProto], sizes: Mapping[str, Array]
) -> tuple[ModelProto, Tail]:
    """Return the head of a model and its tail.

    Args:
        model: any model; nothing of what makes its sparse initializers is in the tail.
        ends: the outputs that the tail makes, or stores.
        border: tensors that the tail reads, as outputs. What else it needs stands in both.
        sizes: what nodes give that read sizes of the head: constants in the tail.
    """
    graph = model.graph
    names = [output.name for output in border]
    left = [output for output in graph.output if output.name not in ends]
    nodes = between(graph.node, [*names, *sizes], ends)
    read = {*ends, *(name for node in nodes for name in reads(node))}
    told = (numpy_helper.from_array(size, name) for name, size in sizes.items())
    stored = (*(copied(t) for t in graph.initializer if t.name in read), *told)
    given = {t.name for t in stored}
    tail = Tail(
        tuple(names), tuple(map(copied, nodes)), stored, tuple(copied(i) for i in graph.input if i.name in given),
        tuple(map(copied, graph.output)), model,
    )  # fmt: skip
    head = copied(model)
    known = {output.name for output in left}
    refill(
        head.graph.output,
        [*left, *(output for output in border if output.name not in known)],
    )
    refill(head.graph.node, between(graph.node, (), [o.name for o in head.graph.output]))
    used = {name for node in head.graph.node for name in reads(node)} | {o.name for o in head.graph.output}
    dead = {t.name for t in graph.initializer} - used
    keep_only(head.graph.initializer, lambda item: item.name not in dead)
    keep_only(head.graph.input, lambda item: item.name not in dead)
    return head, tail


def put_back(head: ModelProto, tail: Tail) -> ModelProto:
    """Return a form of the head with the tail behind it; what both have is the tail's own under a name of its own."""
    whole = copied(head)
    graph = whole.graph
    names = Names(graph)
    made = {name for node in tail.nodes for name in node.output if name}
    ends = [o.name for o in tail.outputs if o.name in made.union(t.name for t in tail.stored)]
    if moved := {name: names.new(name) for name in ends if name in names}:  # given since by what cut the head
        for node in graph.node:
            rename(node, moved)
        for item in graph.initializer:
            item.name = moved.get(item.name, item.name)
        for entry in graph.input:
            entry.name = moved.get(entry.name, entry.name)
    own = {name: name if name in ends else names.new(name) for name in (*(t.name for t in tail.stored), *sorted(made))}
    for item in map(copied, tail.stored):
        item.name = own[item.name]
        graph.initializer.append(item)
    for entry in map(copied, tail.inputs):
        entry.name = own[entry.name]
        graph.input.append(entry)
    for node in map(copied, tail.nodes):
        rename(node, own)
        if node.name:
            node.name = names.node(node.name)
        graph.node.append(node)
    refill(graph.output, tail.outputs)
    return whole
