"""A masked model in two: what no mask reaches, computed once an image, and what has to be run for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, helper

from onnxshap.graph import Names, extract
from onnxshap.graph.structure import reads, refill
from onnxshap.tracing import Traced


@dataclass(frozen=True)
class Halves:
    """`prefix` computes what `suffix` needs from the inputs, `suffix` the outputs from there.

    Attributes:
        prefix: None where the boundary holds inputs alone.
        suffix: None where every output that changes is given.
        boundary: tensors that the suffix reads and that are the same in every row of an image; some are model inputs.
        outputs: numbers of the model outputs that change with the mask.
        computed: those of them that the suffix computes.
        masked: whether the suffix reads the mask.
    """

    prefix: ModelProto | None
    suffix: ModelProto | None
    boundary: tuple[str, ...]
    outputs: tuple[int, ...]
    computed: tuple[int, ...]
    masked: bool


def dependent(masked: ModelProto, mask: str) -> set[str]:
    """Return the names of all tensors that a mask reaches, the mask among them."""
    found = {mask}
    for node in masked.graph.node:
        if any(name in found for name in reads(node)):
            found.update(node.output)
    return found


def halve(traced: Traced, masked: ModelProto, mask: str, given: Sequence[str] = (), also: Sequence[str] = ()) -> Halves:
    """Cut a masked model at the earliest tensors that the mask reaches.

    Behind the cut is what depends on the mask, and what is not of the images: shape arithmetic and constants (where the
    batch was fixed they may have an axis for it, which is stretched there).

    Args:
        traced: the model.
        masked: with the mask of one group.
        mask: name of that input.
        given: tensors that are fed for every row, though the mask reaches them.
        also: tensors that the prefix computes besides the boundary; they join it.
    """
    graph = masked.graph
    producer = {o: k for k, node in enumerate(graph.node) for o in node.output}
    stored = {t.name for t in graph.initializer}
    inputs = {i.name: i.type.tensor_type.elem_type for i in graph.input if i.name != mask}
    changing = dependent(masked, mask)
    behind = changing | traced.shaped.constants
    outputs = tuple(i for i, o in enumerate(graph.output) if o.name in changing)
    computed = tuple(i for i in outputs if graph.output[i].name not in given)
    pending = [graph.output[i].name for i in computed]
    boundary: dict[str, None] = dict.fromkeys(also)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if not name or name in seen or name in stored or name in given or name == mask:
            seen.add(name)
            continue
        seen.add(name)
        if name in inputs or (name not in behind and traced.images(name) is not None):
            boundary[name] = None
        else:
            pending.extend(reads(graph.node[producer[name]]))
    order = tuple(sorted(boundary, key=lambda name: (producer.get(name, -1), name)))
    kinds = {name: traced.shaped.kinds.get(name, TensorProto.FLOAT) for name in (*order, *given)}
    made = [name for name in order if name not in inputs]
    whole = traced.shaped.graph.model  # tensors that the mask reaches are wanted as they are without it
    prefix = extract(whole, inputs, {name: kinds[name] for name in made}) if made else None
    fed = {name: kinds[name] for name in (*(n for n in order if n in seen), *given)}
    if mask in seen:
        fed[mask] = TensorProto.FLOAT
    wanted = {graph.output[i].name: graph.output[i].type.tensor_type.elem_type for i in computed}
    suffix = extract(masked, fed, wanted, traced.shaped.sized) if wanted else None
    return Halves(prefix, suffix, order, outputs, computed, mask in seen)


def gathered(traced: Traced, suffix: ModelProto, mask: str) -> tuple[ModelProto, str]:
    """Return a suffix that is fed tensors of many images once, and with every run which of them each row is of.

    The name is that of the input for the latter, int64[rows].
    """
    found = ModelProto()
    found.CopyFrom(suffix)
    names = Names(found.graph)
    rows = names.new("onnxshap.rows")
    gathers = []
    for item in found.graph.input:
        axis = None if item.name == mask else traced.batch_axis(item.name)
        if axis is None:
            continue
        row = names.new(f"{item.name}.rows")
        gathers.append(helper.make_node("Gather", [item.name, rows], [row], axis=axis, name=row))
        for node in found.graph.node:
            node.input[:] = [row if name == item.name else name for name in node.input]
    refill(found.graph.node, [*gathers, *found.graph.node])
    found.graph.input.append(helper.make_tensor_value_info(rows, TensorProto.INT64, ["rows"]))
    return found, rows
