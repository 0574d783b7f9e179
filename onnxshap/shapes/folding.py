"""Shape arithmetic folded: what is alike in runs at different sizes does not depend on them and becomes a constant.

What differs keeps following the input, and is taken apart from what does not: a Reshape target copies (0) or takes up
(-1) the sizes that follow, a vector of sizes of which some follow is put together of those and of constants. So what is
left of the arithmetic depends on free dimensions alone, and no width that a cut changes is hidden in it. A graph that
was folded before may be folded again: what was taken apart then is found again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.core import Array, BoolArray
from onnxshap.graph import Graph, Names, array, attributes, is_op, is_standard, opset_of, tensor
from onnxshap.graph.structure import copied, outer_names, subgraphs
from onnxshap.labels.fixups import grid_of
from onnxshap.shapes.alone import Alone
from onnxshap.shapes.doubts import Doubtful, doubtful, unlike

Shape = tuple[int, ...]
TABLE = 2**16
"""Entries of the largest table that is stored, and of which rules see the values: positions on a grid of pairs can take
more room than all weights, so the nodes that make them stay, and what those read is folded."""
COMPUTED = -(2**62)
"""Stands for the entries of a vector of sizes that follow free dimensions."""
_SIZES = {
    **dict.fromkeys(("Expand", "Pad", "Reshape", "Split", "Tile", "Upsample"), (1,)),
    "ConstantOfShape": (0,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2),
}
"""Op -> its inputs that are vectors of sizes, bounds or scales."""


@dataclass(frozen=True)
class Run:
    """What was seen at some sizes of the inputs.

    Attributes:
        inputs: those sizes.
        shapes: the shape of every tensor.
        values: the values of shape arithmetic.
        times: tensor made in the body of a loop -> how often.
    """

    inputs: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    times: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What is known of a vector that shape arithmetic computes, or of the places that a ScatterND writes.

    Attributes:
        values: its entries, `COMPUTED` those that follow free dimensions.
        stored: the initializer with the other ones, None where there is none.
    """

    values: Array
    stored: str | None = None


@dataclass(frozen=True)
class Folded:
    """A graph with its shape arithmetic folded.

    Attributes:
        graph: the graph.
        told: (tensor, axis) whose size is read by arithmetic that is left.
        parts: tensor name -> what is known of it.
        shapes: those of the tensors that were added.
        doubted: (tensor, axis) whose size may be alike in all runs by chance.
        by_data: whether the data of a batch, taken together, tell sizes.
    """

    graph: Graph
    told: frozenset[tuple[str, int]]
    parts: Mapping[str, Part] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    doubted: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    by_data: bool = False


def sizes_of(node: NodeProto) -> list[int]:
    """Return the inputs of a node that are vectors of sizes, bounds or scales."""
    places = _SIZES.get(node.op_type, ()) if is_standard(node) else ()
    return [k for k in places if k < len(node.input) and node.input[k]]


def fold(graph: Graph, first: Run, others: Sequence[Run], alone: Alone) -> Folded:
    """Return the graph with its shape arithmetic folded, as far as some runs allow; the same one where it has none.

    Args:
        graph: a normalised graph.
        first: a run.
        others: some at other sizes, the same run where no size is free, none where there is none.
        alone: infers what a node of the graph gives.
    """
    stored = {t.name: tuple(t.dims) for t in graph.model.graph.initializer}
    one, *more = (replace(run, shapes=stored | dict(run.shapes)) for run in (first, *others))
    doubts = doubtful(graph.model, one.values, [run.values for run in more], one.shapes, alone)
    doubted = frozenset((name, int(axis)) for name, axes in doubts.axes.items() for axis in np.flatnonzero(axes))
    if not others or not one.values:
        shapes = [n for n in graph.nodes if is_op(n, "Shape", "Size")]
        told = frozenset((n.input[0], a) for n in shapes for a in _axes(n, first))
        return Folded(graph, told, doubted=doubted if others else frozenset(), by_data=doubts.by_data)
    edit = _Folding(copied(graph.model), graph.names(), one, more, doubts)
    edit.apply()
    folded = replace(graph, model=copied(edit.model))
    return Folded(folded, frozenset(edit.told()), edit.parts, edit.shapes, doubted, doubts.by_data)


def _axes(node: NodeProto, run: Run) -> range:
    """Return the axes whose sizes a Shape gives."""
    given = attributes(node)
    axes = range(len(run.shapes.get(node.input[0], ())))
    return axes if node.op_type == "Size" else axes[given.get("start", 0) : given.get("end")]


@dataclass
class _Folding:
    """A model while its shape arithmetic is folded."""

    model: ModelProto
    names: Names
    first: Run
    others: Sequence[Run]
    doubts: Doubtful
    parts: dict[str, Part] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    _before: defaultdict[int, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))
    _apart: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._outside: frozenset[str] = frozenset()
        self._nodes: list[NodeProto] = []
        self._chance, self._doubted = self.doubts.entries, self.doubts.axes
        self._stored = {t.name: t for t in self.model.graph.initializer}
        self._choices = {n.output[0]: n for n in self.model.graph.node if is_op(n, "Where")}
        self._opset = opset_of(self.model)

    def apply(self) -> None:
        """Fold what every op reads, from the last to the first, and drop what nothing reads any more."""
        graph = self.model.graph
        used = {o.name for o in graph.output}.union(*(outer_names(g) for n in graph.node for g in subgraphs(n)))
        self._outside = frozenset(used)
        kept: list[int] = []
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            if all(o in self.first.values for o in node.output) and used.isdisjoint(node.output):
                continue
            kept.append(index)
            self._take_in_order(node)
            for k, name in enumerate(node.input):
                if name in self.first.values:
                    node.input[k] = self._folded(index, node, k)
            used.update(name for one in (node, *self._before[index]) for name in one.input)
        nodes = [n for index in reversed(kept) for n in (*self._before[index], graph.node[index])]
        self._nodes = [copied(n) for n in nodes]
        self._tell_what_follows()
        del graph.node[:]
        graph.node.extend(self._nodes)

    def _take_in_order(self, node: NodeProto) -> None:
        """Make a Gather that takes all numbers of a list in their order the Reshape that it is.

        So torch writes `as_strided`: of a mean over the space of an image whose channels come last in memory.
        """
        runs = (self.first, *self.others)
        if not is_op(node, "Gather") or attributes(node).get("axis", 0) or node.output[0] in self.first.values:
            return
        data, name = node.input
        if not all(len(run.shapes.get(data, ())) == 1 and name in run.values for run in runs) or name in self._chance:
            return
        sizes = [(run.shapes[data], run.values[name].shape) for run in runs]
        if any(len(shape) < 2 for _, shape in sizes) or any(
            not np.array_equal(run.values[name].ravel(), np.arange(*run.shapes[data])) for run in runs
        ):
            return
        target = _relative_target(node, sizes, None)
        if target is not None and self._opset >= 5:
            node.op_type, node.input[1] = "Reshape", self._constant(f"{node.output[0]}.shape", target)
            del node.attribute[:]

    def _folded(self, index: int, node: NodeProto, k: int) -> str:
        """Return what an op reads in place of shape arithmetic."""
        name = node.input[k]
        value, follows = self.first.values[name], self._follows(name)
        if any(name not in run.values for run in self.others):
            return name
        if follows is not None and not follows.any():
            return self._constant(name, value) if value.size <= TABLE else name
        moved = [n for n in (*node.input[:1], *node.output) if n not in self.shapes]  # data may be folded by now
        if not all(n in run.shapes for n in moved for run in (self.first, *self.others)):
            return name
        if is_op(node, "ScatterND") and k == 1 and (grid := self._grid(name)) is not None:
            self.parts[name] = Part(grid)
        if is_op(node, "Reshape") and k == 1:
            target = _relative_target(node, self._sizes(node), self._chance.get(name))
            if target is not None:
                return self._constant(name, target)
        if k not in sizes_of(node) or value.ndim != 1 or follows is None:
            return name
        known, unknown = value, follows
        chance = self._chance.get(name, np.zeros(value.shape, np.bool_))
        if is_op(node, "Expand"):
            known, unknown = _stretches(self._sizes(node), value, follows, self._unsure(node.input[0], len(value)))
            unknown |= chance
        elif is_op(node, "Reshape"):
            known, unknown = _copies(node, self._sizes(node), value, unknown, chance)
        if not unknown.any():
            return self._constant(name, known)
        if unknown.all() or value.dtype != np.int64:
            self.parts[name] = Part(np.where(unknown, COMPUTED, known))
            return name
        if self._opset < 9:
            return name
        rest = np.where(unknown, 1, known)
        if (before := self._chosen_before(name, unknown)) is not None and self._is_stored(before, rest):
            self.parts[name] = Part(np.where(unknown, COMPUTED, known), before)
            return name
        stored = self._constant(f"{name}.known", rest)
        made = self._chosen(name, unknown, stored, self._before[index])
        self.parts[made] = Part(np.where(unknown, COMPUTED, known), stored)
        return made

    def _grid(self, name: str) -> Array | None:
        """Return the places that ScatterND nodes write if they are a grid, None if they are not.

        A list of positions for each axis, in all runs alike; or `COMPUTED`, where those are all that there are.
        """
        if name in self._chance or self.first.values[name].size > TABLE:
            return None
        found = self.first.values[name].copy()
        for node in (n for n in self.model.graph.node if is_op(n, "ScatterND") and n.input[1] == name):
            lists = []
            for run in (self.first, *self.others):
                size = run.shapes.get(node.input[0])
                own = None if size is None else grid_of(run.values[name], size)
                if size is None or own is None:
                    return None
                lists.append([(one, np.arange(n)) for one, n in zip(own, size, strict=False)])
            for axis, column in enumerate(zip(*lists, strict=True)):
                if not all(np.array_equal(one, column[0][0]) for one, _ in column):
                    if not all(np.array_equal(one, every) for one, every in column):
                        return None
                    found[..., axis] = COMPUTED
        return found

    def _constant(self, hint: str, values: Array) -> str:
        """Add an initializer, return its name."""
        name = self.names.numbered(f"{hint}.folded", 1)
        self.model.graph.initializer.append(tensor(name, values))
        self.shapes[name] = values.shape
        return name

    def _sizes(self, node: NodeProto) -> list[tuple[Shape, Shape]]:
        """Return the shapes of a node's data and output in both runs."""
        data, out = node.input[0], node.output[0]
        return [(self.shapes.get(data) or run.shapes[data], run.shapes[out]) for run in (self.first, *self.others)]

    def _unsure(self, data: str, length: int) -> BoolArray:
        """Return which of the last axes of what is stretched have sizes that are in doubt, bool[length]."""
        found = np.zeros(length, np.bool_)
        own = self._doubted.get(data, found)[-length:] if length else found
        found[length - len(own) :] = own
        return found

    def _follows(self, name: str) -> BoolArray | None:
        """Return which entries are not alike in all runs, or by chance; None where there are not as many in all."""
        found = unlike(self.first.values[name], [run.values.get(name) for run in self.others])
        return found if found is None or name not in self._chance else np.asarray(found | self._chance[name])

    def _chosen(self, name: str, follows: BoolArray, stored: str, nodes: list[NodeProto]) -> str:
        """Add a node that takes the entries that follow from a tensor, the others from an initializer."""
        condition = self._constant(f"{name}.follows", follows)
        made = self.names.new(f"{condition}.chosen")
        nodes.append(helper.make_node("Where", [condition, name, stored], [made], name=made))
        self.shapes[made] = follows.shape
        return made

    def _chosen_before(self, name: str, follows: BoolArray) -> str | None:
        """Return the initializer with the entries that do not follow, where a vector was taken apart in that way."""
        node = self._choices.get(name)
        if node is None or not self._is_stored(node.input[0], follows) or node.input[2] not in self._stored:
            return None
        return node.input[2]

    def _is_stored(self, name: str, values: Array) -> bool:
        """Return whether a name is that of an initializer with some values."""
        return name in self._stored and np.array_equal(array(self._stored[name]), values)

    def _tell_what_follows(self) -> None:
        """Make the arithmetic that is left read no size that is alike in both runs."""
        every = self._readers()
        for node in list(self._nodes):
            name = node.output[0]
            if not is_op(node, "Shape") or name not in self.first.values or self._opset < 9:
                continue  # one without a value: no run came there
            if (follows := self._follows(name)) is None:
                continue
            value, readers = self.first.values[name], every[name]
            if follows.all() or all(self._takes_what_follows(r) for r in readers):
                self._apart.add(name)
                continue
            if name in self._outside or name in self.parts:
                continue
            stored, added = self._constant(f"{name}.alike", value), list[NodeProto]()
            made = self._chosen(name, follows, stored, added)
            for reader in readers:
                for k, read in enumerate(reader.input):
                    if read == name:
                        reader.input[k] = made
            self._nodes.insert(self._nodes.index(node) + 1, added[0])
            self._apart.add(name)

    def _takes_what_follows(self, node: NodeProto) -> bool:
        """Return whether a node takes entries of a Shape of which every one follows free dimensions."""
        name = node.output[0]
        if name in self.parts:
            return True
        source = node.input[1] if is_op(node, "Where") else ""
        if source in self.first.values:
            follows = self._follows(source)
            return follows is not None and self._chosen_before(name, follows) is not None
        if not is_op(node, "Gather", "Slice") or name not in self.first.values:
            return False
        follows = self._follows(name)
        return follows is not None and bool(follows.all())

    def _readers(self) -> Mapping[str, list[NodeProto]]:
        """Return the nodes that read a tensor, in their order."""
        found = defaultdict[str, list[NodeProto]](list)
        for node in self._nodes:
            for name in dict.fromkeys(node.input):
                found[name].append(node)
        return found

    def _read_of(self, name: str, readers: Sequence[NodeProto], stored: Mapping[str, TensorProto]) -> BoolArray:
        """Return which entries of a Shape are read: those that follow, as far as vectors are put together of them."""
        follows = self._follows(name)
        assert follows is not None  # it would not be apart
        if not readers or any(not is_op(n, "Where") or n.input[1] != name for n in readers):
            return follows
        taken = [array(stored[n.input[0]]) for n in readers if n.input[0] in stored and n.input[2] != name]
        if len(taken) < len(readers) or any(one.shape != follows.shape for one in taken):
            return follows
        return np.asarray(follows & np.any(taken, axis=0))

    def told(self) -> set[tuple[str, int]]:
        """Return the axes whose sizes are read."""
        found: set[tuple[str, int]] = set()
        given_out, readers = {o.name for o in self.model.graph.output}, self._readers()
        stored = {t.name: t for t in self.model.graph.initializer}
        for node in self._nodes:
            if is_op(node, "Shape", "Size"):
                axes, name = list(_axes(node, self.first)), node.output[0]
                if name in self._apart - given_out:
                    follows = self._read_of(name, readers[name], stored)
                    axes = [axis for axis, does in zip(axes, follows, strict=True) if does]
                found.update((node.input[0], axis) for axis in axes)
        return found


def _stretches(
    sizes: list[tuple[Shape, Shape]], target: Array, follows: BoolArray, unsure: BoolArray
) -> tuple[Array, BoolArray]:
    """Return an Expand target that is 1 where nothing is ever stretched, and which of its entries follow free sizes.

    What is as long as its target in all runs may be stretched at other sizes, unless it is as long as that everywhere.

    Args:
        sizes: shapes of the data and of the output in some runs.
        target: its present target in the first.
        follows: which of its entries do.
        unsure: axes of the data, from the last, whose sizes are in doubt.
    """
    length = len(target)
    pairs = [
        (((1,) * (len(out) - len(data)) + data)[len(out) - length :], out[len(out) - length :]) for data, out in sizes
    ]
    own, made = (np.array(some, np.int64).reshape(-1, length) for some in zip(*pairs, strict=True))
    fixed = np.all((own == made) & (own == own[0]), axis=0) & ~unsure
    return np.where(fixed, 1, target), follows & ~fixed


def _copies(
    node: NodeProto, sizes: list[tuple[Shape, Shape]], target: Array, unknown: BoolArray, chance: BoolArray
) -> tuple[Array, BoolArray]:
    """Return a Reshape target that is 0 where it copies a size that follows, and which other entries follow.

    What is by `chance` what it is in all runs may be by chance what it seems to copy, too.
    """
    rank = len(sizes[0][1])
    copied = np.array([all(k < len(data) and data[k] == out[k] for data, out in sizes) for k in range(rank)], np.bool_)
    copied &= ~chance | np.array([len({out[k] for _, out in sizes}) > 1 for k in range(rank)], np.bool_)
    if attributes(node).get("allowzero"):
        return target, unknown
    return np.where(unknown & copied, 0, target), unknown & ~copied


def _relative_target(node: NodeProto, sizes: list[tuple[Shape, Shape]], doubts: BoolArray | None) -> Array | None:
    """Return a constant Reshape target that holds for every size: 0 copies, -1 takes up one dim; None if none.

    Args:
        node: the Reshape.
        sizes: shapes of its data and its output in some runs.
        doubts: entries of its present target that may be alike in all of them by chance; None = none.
    """
    if attributes(node).get("allowzero") or any(0 in out for _, out in sizes):  # what is empty has no -1
        return None
    target = []
    for axis, size in enumerate(sizes[0][1]):
        alike = all(out[axis] == size for _, out in sizes)
        if alike and doubts is not None and doubts[axis]:
            target.append(-1)
        elif alike:
            target.append(size)
        elif all(axis < len(data) and data[axis] == out[axis] for data, out in sizes):
            target.append(0)
        else:
            target.append(-1)
    return np.array(target, np.int64) if target.count(-1) <= 1 else None
