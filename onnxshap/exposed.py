"""What is scored of a model that gives choices alone: the real numbers that it chooses by.

The class of every pixel (ArgMax), boxes by number (NonMaxSuppression) or a yes or no are integers, which say nothing
of how near a removed unit comes to another choice. While units are scored and repaired, the nearest real numbers before
them are outputs too; the file that is written has those of the original alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, TensorProto, helper

from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import copied, refill, subgraphs
from onnxshap.payoffs.checked import class_axis
from onnxshap.tracing import Traced

REALS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""Element types of real numbers."""
OF_SIZES = ("EyeLike", "Shape", "Size")
"""Ops that give integers whatever the numbers are."""


def chosen_by(traced: Traced) -> tuple[str, ...]:
    """Return the nearest real tensors, with an axis for the images, before a model's outputs; none if one is real."""
    model, kinds = traced.source, traced.shaped.kinds
    if any(kinds.get(name) in REALS for name in traced.outputs):
        return ()
    producers = {name: node for node in model.graph.node for name in node.output if name}
    found, pending, seen = set[str](), list(traced.outputs), set[str]()
    while pending:
        node = producers.get(name := pending.pop())
        if node is None or name in seen or is_op(node, *OF_SIZES) or any(subgraphs(node)):
            continue
        seen.add(name)
        for read in node.input:
            if read in producers and kinds.get(read) in REALS and traced.batch_axis(read) is not None:
                found.add(read)
            else:
                pending.append(read)
    return tuple(name for name in producers if name in found)


def expose(traced: Traced, model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a form of a model that gives those of some tensors which it computes, too."""
    made = copied(model)
    computed = {o for node in model.graph.node for o in node.output} - {o.name for o in model.graph.output}
    made.graph.output.extend(
        helper.make_tensor_value_info(name, traced.shaped.kinds[name] or 0, None) for name in names if name in computed
    )
    return made


def gives_classes(traced: Traced) -> bool:
    """Return whether the one real output of a model is scores of which the model itself takes the largest."""
    graph, kinds = traced.shaped.graph, traced.shaped.kinds
    real = [name for name in traced.outputs if kinds.get(name) in REALS]
    if len(real) != 1:
        return False
    rank = len(traced.shaped.shapes[real[0]])
    return any(
        is_op(node, "ArgMax") and node.input[0] == real[0] and rank > 1
        and attributes(node).get("axis", 0) % rank == class_axis(rank, None)
        for node in graph.nodes
    )  # fmt: skip


def conceal(traced: Traced, model: ModelProto) -> ModelProto:
    """Return a form of a model with the outputs of its file alone."""
    if not traced.exposed:
        return model
    made = copied(model)
    refill(made.graph.output, [output for output in made.graph.output if output.name not in traced.exposed])
    return made
