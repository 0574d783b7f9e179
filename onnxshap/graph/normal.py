"""The one form of a graph that every later pass knows; what the model computes does not change.

Constant nodes are initializers, every initializer has one use and is no input, model-local functions are inlined; what
a body of a node computes stands in the main graph where it is lifted.

Edits happen on the ModelProto itself, so that metadata, doc strings, annotations and tensors we do not touch survive
bit for bit.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array
from onnxshap.graph import weights
from onnxshap.graph.appended import scan_lists
from onnxshap.graph.branches import Moved, conditions_of, rename
from onnxshap.graph.branches import take_branches as take_branches_of
from onnxshap.graph.functions import without_functions
from onnxshap.graph.fused import unfuse
from onnxshap.graph.invariants import read_from_outside
from onnxshap.graph.lifting import Lifted, lift
from onnxshap.graph.names import Names
from onnxshap.graph.nodes import array, tensor
from onnxshap.graph.sequences import read_items, read_parts
from onnxshap.graph.standard import is_op, opset_of
from onnxshap.graph.structure import (
    between,
    copied,
    keep_only,
    order,
    outer_names,
    reads,
    refill,
    subgraphs,
)
from onnxshap.graph.unrolling import unroll

_GENERATED = re.compile(r"_token_\d+$")
"""What onnxruntime makes a name one of its own with."""
_SMALL = 8
"""Numbers of a shape, of axes, of a factor: no weights."""
_BARE_INPUTS = 4
"""The version of the format from which on inputs that are initializers are there to be replaced: before it all are."""
_MOVES = ("Slice", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
"""What an exporter does to a number that it stretched; more would be kept twice for little."""
_FUSED = ("gemm_input_shape", "gemm_output_shape")
"""What it calls the first shapes that it makes."""
_CONSTANT_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@dataclass(frozen=True)
class Graph:
    """A normalised model.

    Attributes:
        model: the normalised model; treat as immutable.
        ir_version: the input file's; the normalised model has at least 4 (initializers need not be inputs).
        origin: name of an un-shared initializer copy, or of a tensor moved out of a body -> its name in the file.
        bodies: name of a tensor moved out of a body -> the body (`branches.Moved`).
        places: first output and input of a node taken out of a fused one -> the place of that input there.
        kept: the large initializers, taken out of the model.
        mixed: the initializers that the input file computes out of others.
        mixers: what is still computed here, that it computes them out of.
        lifted: what stands in the main graph, out of bodies, until the model is finished.
        overridable: the initializers that are inputs too, for who runs the model to replace.
    """

    model: ModelProto
    ir_version: int
    origin: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[tuple[str, int], int] = field(default_factory=dict)
    kept: weights.Kept = field(default_factory=weights.Kept)
    mixed: frozenset[str] = frozenset()
    mixers: frozenset[str] = frozenset()
    lifted: Lifted = field(default_factory=Lifted)
    overridable: frozenset[str] = frozenset()

    @property
    def fixed(self) -> frozenset[str]:
        """The initializers that keep their values, for who runs the model to replace.

        Before IR 4 all of them are inputs, and none is meant to be.
        """
        return self.overridable if self.ir_version >= _BARE_INPUTS else frozenset()

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """Nodes in topological order."""
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset_of(self.model)

    @property
    def initializers(self) -> dict[str, TensorProto]:
        """Name -> initializer."""
        return {t.name: t for t in self.model.graph.initializer}

    def names(self, others: Iterable[str] = ()) -> Names:
        """Return the names that are taken: here, by other tensors, and in the finished model.

        What has a name that was given outside of bodies stays there; If nodes that were joined are back.
        """
        return Names(self.model.graph, [*self.lifted.main, *others], self.lifted.nodes)

    @cached_property
    def sources(self) -> Mapping[str, tuple[str, str]]:
        """Initializer, or what Identity nodes make of one -> the one of the file that it is a copy of, and its body."""
        names = [t.name for t in self.model.graph.initializer]
        found = {name: (self.origin.get(name, name), self.bodies.get(name, "")) for name in names}
        for node in self.nodes:
            if is_op(node, "Identity") and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
        return found


def normalise(model: ModelProto, kept: weights.Kept | None = None) -> Graph:
    """Return the model in the one form that the passes know; the computed function is the same.

    Args:
        model: any model; not changed.
        kept: its large initializers, where they are taken out.
    """
    model = without_functions(model)
    normal = ModelProto()
    normal.CopyFrom(model)
    graph = normal.graph
    moved = Moved()
    scan_lists(graph, opset_of(normal), moved)
    _drop_unread(graph)
    _sort(graph)
    read_from_outside(graph, moved)
    _without_branches(graph, moved)
    overridable = _drop_overridable_inputs(graph)
    _end_training(graph)
    _unfuse(graph, opset_of(normal), moved)
    _rename_generated(graph, moved, overridable)
    origin = _unshare(graph, moved.origin)
    del graph.value_info[:]
    normal.ir_version = max(4, model.ir_version)
    # a copy: a message keeps the room of what was taken out of it
    return Graph(
        copied(normal), model.ir_version, origin, moved.bodies, moved.places, kept or weights.Kept(),
        overridable=overridable,
    )  # fmt: skip


def take_branches(graph: Graph) -> Graph | None:
    """Return a normalised graph without the If nodes whose condition is an initializer, None where it has none.

    Without sequences that are split into parts of sizes that are stored likewise.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    moved = Moved(dict(graph.origin), dict(graph.bodies))
    if not _without_branches(model.graph, moved) | read_parts(model.graph):
        return None
    return replace(graph, model=model, origin=_unshare(model.graph, moved.origin), bodies=moved.bodies)


def with_constants(graph: Graph, values: Mapping[str, Array]) -> Graph:
    """Return a normalised graph in which some computed tensors are stored, and what computed them alone is gone."""
    model, kept = weights.take_out(_stored(graph.model, values))
    makers = between(graph.nodes, (), values)
    left = {o for node in model.graph.node for o in node.output if o}
    return replace(
        graph,
        model=model,
        kept=weights.Kept(graph.kept | kept),
        origin=dict(graph.origin) | _unshare(model.graph, graph.origin),
        mixed=graph.mixed | values.keys(),
        mixers=graph.mixers | left.intersection(o for node in makers for o in node.output),
    )


def _stored(model: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    """Return a copy of a model with initializers in place of the nodes that compute some values."""
    made = copied(model)
    read = Counter([*(name for node in made.graph.node for name in reads(node)), *(o.name for o in made.graph.output)])
    nodes = []
    for node in reversed(made.graph.node):
        if all(name in values or not name or not read[name] for name in node.output):
            read.subtract(reads(node))
        else:
            nodes.append(node)
    refill(made.graph.node, reversed(nodes))
    stored = [t for t in made.graph.initializer if read[t.name]]  # what went into the mixture is not
    refill(made.graph.initializer, [*stored, *(tensor(name, found) for name, found in values.items())])
    return made


def lift_bodies(graph: Graph, chosen: Mapping[str, Collection[str]]) -> Graph:
    """Return a normalised graph with bodies of nodes in the main graph: first output -> attributes that are bodies."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    moved = Moved(dict(graph.origin), dict(graph.bodies))
    lifted = lift(model.graph, chosen, graph.lifted, moved)
    _without_branches(model.graph, moved)
    _unfuse(model.graph, graph.opset, moved)
    origin, places = _unshare(model.graph, moved.origin), {**graph.places, **moved.places}
    return replace(graph, model=model, origin=origin, bodies=moved.bodies, places=places, lifted=lifted)


def _unfuse(graph: GraphProto, opset: int, moved: Moved) -> None:
    unroll(graph, moved)
    read_items(graph, opset)
    _constants_to_initializers(graph)
    read_parts(graph)
    for part in unfuse(graph, opset):
        if part.made != part.fused:
            moved.rename(part.made, part.fused)
        moved.places.update({(part.made, k): place for k, place in part.places.items() if k != place})


def _end_training(graph: GraphProto) -> None:
    """Tell a Dropout that is told not to train nothing: one that is told anything draws at random (`is_random`)."""
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        told = stored.get(node.input[2]) if is_op(node, "Dropout") and len(node.input) > 2 else None
        if told is not None and not array(told).any():
            del node.input[2:]


def _rename_generated(graph: GraphProto, moved: Moved, overridable: Collection[str]) -> None:
    """Give small initializers that onnxruntime's fusions wrote (shapes, axes, factors) other names.

    It calls what it makes by names that it takes to be free as soon as a fusion has no use for the old one; then the
    model does not load ("Attempt to replace the existing tensor"), be it the one that was read or what is left of it.
    """
    fixed = {o.name for o in graph.output}.union(overridable)
    small = (t.name for t in graph.initializer if np.prod(t.dims) <= _SMALL and t.name not in fixed)
    bases = {name: _GENERATED.sub("", name) for name in small}
    counted = {base for name, base in bases.items() if name != base}.union(_FUSED)
    wanted = [name for name, base in bases.items() if base in counted]
    if not wanted:
        return
    taken = Names(graph)
    names = {name: taken.new(f"{name}.stored") for name in wanted}
    for item in graph.initializer:
        if item.name in names:
            moved.rename(names[item.name], item.name)
            item.name = names[item.name]
    for node in graph.node:
        rename(node, names)


def _without_branches(graph: GraphProto, moved: Moved) -> bool:
    """Make Constant nodes initializers, and put the branch taken in place of each If whose condition is one.

    Return whether there was one.
    """
    overridable = {i.name for i in graph.input}
    found = False
    while True:
        _constants_to_initializers(graph)
        asked = conditions_of(graph.node) - overridable
        known = {t.name: bool(array(t).all()) for t in graph.initializer if t.name in asked}
        if not known:
            return found
        take_branches_of(graph, known, moved)
        found = True


def _drop_unread(graph: GraphProto) -> None:
    """Leave out the nodes that no output comes of: runtimes do, and their rules would hold what they read."""
    needed = between(graph.node, (), [o.name for o in graph.output])
    if len(needed) < len(graph.node):
        refill(graph.node, needed)


def _sort(graph: GraphProto) -> None:
    """Put nodes behind what they read, where a file has them otherwise."""
    places = order(graph.node)
    if places is not None and places != list(range(len(places))):
        refill(graph.node, [graph.node[k] for k in places])


def constant_value(node: NodeProto) -> TensorProto | None:
    """Return what a Constant holds; None: sparse numbers, or strings."""
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None:
        return None
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name in _CONSTANT_DTYPES:
        return numpy_helper.from_array(
            np.array(helper.get_attribute_value(attribute), _CONSTANT_DTYPES[attribute.name])
        )
    return None  # sparse and string constants stay nodes


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        value = constant_value(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    if len(kept) < len(graph.node):
        refill(graph.node, kept)


def _drop_overridable_inputs(graph: GraphProto) -> frozenset[str]:
    """Take the initializers out of the inputs, of which they are defaults; return their names."""
    initialized = {t.name for t in graph.initializer}
    found = frozenset(i.name for i in graph.input if i.name in initialized)
    keep_only(graph.input, lambda item: item.name not in found)
    return found


def _unshare(graph: GraphProto, before: Mapping[str, str]) -> dict[str, str]:
    """Give every use of an initializer, and of one number stretched, its own copy; return copy name -> original name.

    Where a subgraph or an output of the model reads the original, that is a use of its own.
    """
    pinned = {o.name for o in graph.output}.union(*(outer_names(g) for n in graph.node for g in subgraphs(n)))
    taken = Names(graph)
    origin: dict[str, str] = dict(before)

    def own_names(name: str, uses: list[tuple[NodeProto, int]]) -> Iterator[str]:
        for node, k in uses if name in pinned else uses[1:]:
            node.input[k] = copy = taken.numbered(f"{name}.use", 2)
            origin[copy] = origin.get(name, name)
            yield copy

    uses, stretched = _uses(graph), _stretched(graph)
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):  # a copy of what is made of another one is a use of that
        clones = []
        for copy in own_names(node.output[0], uses[node.output[0]]) if node.output[0] in stretched else ():
            clones.append(clone := copied(node))
            clone.output[0] = clone.name = copy  # two nodes of one name do not load
            for k, name in enumerate(clone.input):
                uses[name].append((clone, k))
        nodes += [*reversed(clones), node]
    nodes.reverse()
    if len(nodes) > len(graph.node):
        refill(graph.node, nodes)
        uses = _uses(graph)
    for item in list(graph.initializer):
        for copy in own_names(item.name, uses[item.name]):
            own = graph.initializer.add()
            own.CopyFrom(item)
            own.name = copy
    return origin


def _stretched(graph: GraphProto) -> set[str]:
    """Return what is one number stretched, and what of it was moved about: the first states of recurrent nets."""
    numbers, found = {t.name for t in graph.initializer if math.prod(t.dims) == 1}, set[str]()
    for node in graph.node:
        made = is_op(node, "ConstantOfShape") or (is_op(node, "Expand") and node.input[0] in numbers)
        moved = is_op(node, *_MOVES) and node.input[0] in found and found.isdisjoint(node.input[1:])
        if made or moved:  # what is read as numbers and as their places, twice, would double what it is made of
            found.add(node.output[0])
    return found


def _uses(graph: GraphProto) -> defaultdict[str, list[tuple[NodeProto, int]]]:
    uses: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name:
                uses[name].append((node, k))
    return uses
