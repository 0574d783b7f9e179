"""Where the images lie in every tensor, and how a model with a fixed batch takes any number of them.

Exporters merge the images with windows or heads ([8, 64, 32] for 4 windows of 2 images), and write out the size of the
batch wherever a shape is named. One walk through the graph follows the images; on its way it notes what each node needs
so that their number may change: a Reshape target with -1 there, a constant that is repeated for every image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnxshap.core import Array
from onnxshap.fixups import set_attribute
from onnxshap.folding import Shape
from onnxshap.graph import array, attributes, is_op, tensor
from onnxshap.lifting import body, entered, is_enter, is_loop, is_open
from onnxshap.loops import Passage, handed_on, passages
from onnxshap.shapes import Shaped
from onnxshap.structure import subgraphs

_ROWS = "onnxshap.rows"
_MOVES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_BROADCASTS = (
    *(
        "Add",
        "And",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Or",
    ),
    *("PRelu", "Pow", "Sub", "Where"),
)
"""Ops whose constants have one entry for all images, or one for each."""


@dataclass(frozen=True)
class Images:
    """The place of the images: an axis of outer x images x inner positions."""

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def alone(self) -> bool:
        """Whether the images have the axis for themselves."""
        return self.outer == self.inner == 1

    def split(self, shape: Sequence[int]) -> list[int]:
        """Return a shape with the axis split in three, -1 for the images."""
        return [*shape[: self.axis], self.outer, -1, self.inner, *shape[self.axis + 1 :]]

    def take(self, values: Array, images: Any) -> Array:
        """Return the chosen images of a tensor."""
        if self.alone:
            taken: Array = np.take(values, images, axis=self.axis)
            return taken
        apart = values.reshape(self.split(values.shape))
        chosen: Array = np.take(apart, images, axis=self.axis + 1)
        return chosen.reshape(*values.shape[: self.axis], -1, *values.shape[self.axis + 1 :])

    def join(self, parts: Sequence[Array]) -> Array:
        """Return the images of several tensors as one."""
        if self.alone or len(parts) == 1:
            joined: Array = np.concatenate(parts, axis=self.axis)
            return joined
        shape = parts[0].shape
        apart: Array = np.concatenate([p.reshape(self.split(p.shape)) for p in parts], axis=self.axis + 1)
        return apart.reshape(*shape[: self.axis], -1, *shape[self.axis + 1 :])


@dataclass(frozen=True)
class _Repeat:
    """Input `input` of a node is the same for all images and needs an entry for each, at `images`."""

    node: int
    input: int
    images: Images


@dataclass
class _Walk:
    """Follows the images from node to node."""

    shaped: Shaped
    batch: int
    found: dict[str, Images] = field(default_factory=dict)
    targets: dict[int, Images] = field(default_factory=dict)
    repeats: list[_Repeat] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)

    def run(self) -> None:
        """Visit every node; what it cannot follow gets no entry."""
        nodes = self.shaped.graph.nodes
        given = entered(nodes)
        self.passages = [p for node in nodes if is_open(node, given) for p in passages(node)]
        states: dict[str, Images | None] = {}
        while True:  # the images of a state have to come out of an iteration where they went in
            self._visit_all(states)
            before = dict(states)
            for passage in self.passages:
                place, after = self.found.get(passage.inner), self.found.get(passage.outer)
                if passage.way == "on" and place != after:  # a state that starts as a constant has them later on
                    states[passage.inner] = after if passage.inner not in states and place is None else None
            if states == before:
                return

    def _visit_all(self, states: Mapping[str, Images | None]) -> None:
        """Visit every node once; the places of the images in some states of loops are given, None = there are none."""
        self.found.clear()
        self.targets.clear()
        self.repeats.clear()
        for name, shape in self.shaped.inputs.items():
            axis = self.shaped.batch_axis(name)
            if axis is not None and shape[axis] == self.batch:
                self.found[name] = Images(axis)
        for index, node in enumerate(self.shaped.graph.nodes):
            if is_enter(node) or is_loop(node):
                self._border(index, node, states)
                continue
            if any(True for _ in subgraphs(node)) or not any(i in self.found for i in node.input):
                continue
            if any(name and name not in self.shaped.shapes for name in node.output):
                continue  # no tensor, or one whose sizes differ from iteration to iteration of a loop
            for number, name in enumerate(node.output):
                place = self._visit(index, node, number)
                if name and place is not None and self._fits(name, place):
                    self.found[name] = place

    def _border(self, index: int, node: NodeProto, states: Mapping[str, Images | None]) -> None:
        """Follow the images into the body of a loop, and out of it."""
        for passage in self.passages:
            if passage.way == "in" and passage.inner in node.output:
                source, target = passage.outer, passage.inner
            elif passage.way == "out" and passage.outer in node.output:
                source, target = passage.inner, passage.outer
            else:
                continue
            place = states.get(target, self.found.get(source))
            if place is not None and passage.axis is not None:
                steps = passage.axis % len(self._shape(passage.outer))
                if passage.way == "in" and place.axis == steps:
                    continue
                further = place.axis > steps if passage.way == "in" else place.axis >= steps
                place = replace(place, axis=place.axis + (-1 if passage.way == "in" else 1) * further)
            if place is not None and self._fits(target, place):
                self.found[target] = place
        for passage in self.passages if is_loop(node) else ():
            if passage.way == "in" and (place := states.get(passage.inner)) is not None:
                for k in (k for k, name in enumerate(node.input) if name == passage.outer):
                    self.constant(index, node, k, place)

    def _shape(self, name: str) -> Shape:
        return self.shaped.shapes.get(name, ())

    def _fits(self, name: str, place: Images) -> bool:
        shape = self._shape(name)
        return 0 <= place.axis < len(shape) and shape[place.axis] == place.outer * self.batch * place.inner

    def _visit(self, index: int, node: NodeProto, number: int) -> Images | None:
        if node.op_type in _MOVES:
            if (place := self._moved(node)) is not None:
                self.targets[index] = place
            return place
        if (rule := _RULES.get(node.op_type)) is not None:
            return rule(self, index, node, number)
        return self._aligned(index, node, number)

    def _moved(self, node: NodeProto) -> Images | None:
        """The images keep their place in the order of elements; an axis is found for them."""
        place = self.found.get(node.input[0])
        if place is None:
            return None
        source, target = self._shape(node.input[0]), self._shape(node.output[0])
        before = math.prod(source[: place.axis]) * place.outer
        ends = list(itertools.accumulate(target, lambda a, b: a * b, initial=1))
        if 0 in ends:
            return None
        fitting = [
            Images(k, before // ends[k], ends[k + 1] // (before * self.batch))
            for k in range(len(target))
            if before % ends[k] == 0 and ends[k + 1] % (before * self.batch) == 0
        ]
        alone = [p for p in fitting if p.alone]
        if not fitting:
            return None
        if alone:
            return alone[0]
        following = source[place.axis + 1 : place.axis + 2]
        if place.alone and len(fitting) > 1 and target[fitting[-1].axis : fitting[-1].axis + 1] == following:
            return fitting[0]  # [places, images, features] -> [places x images, features]
        return fitting[-1]

    def _aligned(self, index: int, node: NodeProto, number: int) -> Images | None:
        """Axes are counted from the last, as broadcasting does; all inputs have the images in one place."""
        rank = len(self._shape(node.output[number]))
        places = {
            replace(p, axis=p.axis + rank - len(self._shape(i))) for i in node.input if i and (p := self.found.get(i))
        }
        if len(places) != 1:
            return None
        place = places.pop()
        if node.op_type in _BROADCASTS:
            for k, name in enumerate(node.input):
                shape = self._shape(name)
                axis = place.axis - rank + len(shape)
                if name in self.shaped.constants and axis >= 0 and shape[axis] > 1:
                    self.repeats.append(_Repeat(index, k, replace(place, axis=axis)))
        return place

    def constant(self, index: int, node: NodeProto, k: int, place: Images) -> None:
        """Note that an input, if it is a constant, needs an entry for every image."""
        if k < len(node.input) and node.input[k] in self.shaped.constants:
            self.repeats.append(_Repeat(index, k, place))


_Rule = Callable[[_Walk, int, NodeProto, int], Images | None]


def _transpose(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    place = walk.found[node.input[0]]
    rank = len(walk.shaped.shapes[node.input[0]])
    perm = list(attributes(node).get("perm", range(rank)[::-1]))
    return replace(place, axis=perm.index(place.axis))


def _concat(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    if int(attributes(node)["axis"]) % len(walk.shaped.shapes[node.output[0]]) == place.axis:
        return None
    for k in range(len(node.input)):
        walk.constant(index, node, k, place)
    return place


def _gather(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    shapes = walk.shaped.shapes
    data, chosen = (walk.found.get(name) for name in node.input[:2])
    axis = int(attributes(node).get("axis", 0)) % len(shapes[node.input[0]])
    if data is not None and chosen is None and data.axis != axis:
        shift = len(shapes[node.input[1]]) - 1 if data.axis > axis else 0
        return replace(data, axis=data.axis + shift)
    if chosen is not None and data is None:
        return replace(chosen, axis=chosen.axis + axis)
    return None


def _gather_elements(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    for k in range(2):
        walk.constant(index, node, k, place)
    return place


def _reduce(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    place, given = walk.found.get(node.input[0]), attributes(node)
    if place is None or given.get("keepdims", 1):
        return place
    rank = len(walk.shaped.shapes[node.input[0]])
    axes = given.get("axes", given.get("axis"))
    if len(node.input) > 1 and (stored := walk.shaped.graph.initializers.get(node.input[1])) is not None:
        axes = array(stored)
    if axes is None:
        return None
    gone = {int(a) % rank for a in np.ravel(axes)}
    return None if place.axis in gone else replace(place, axis=place.axis - sum(a < place.axis for a in gone))


def _recurrent(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    first = bool(attributes(node).get("layout", 0))
    for k in (5, 6):
        walk.constant(index, node, k, Images(0 if first else 1))
    return Images(0 if first else 2 if number == 0 else 1)


def _einsum(walk: _Walk, index: int, node: NodeProto, number: int) -> Images | None:
    left, arrow, right = str(attributes(node)["equation"]).replace(" ", "").partition("->")
    letters = {
        (term[place.axis], place.outer, place.inner)
        for term, name in zip(left.split(","), node.input, strict=False)
        if (place := walk.found.get(name)) is not None and "." not in term and place.axis < len(term)
    }
    if len(letters) != 1 or not arrow:
        return None
    letter, outer, inner = letters.pop()
    return Images(right.index(letter), outer, inner) if letter in right else None


_RULES: dict[str, _Rule] = {
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduce),
    **{f"Reduce{name}": _reduce for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")},
    "ReduceSumSquare": _reduce,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Einsum": _einsum,
    **dict.fromkeys(
        ("Shape", "Size", "NonZero", "Unique", "GatherND", "NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
        lambda walk, index, node, number: None,
    ),
}


def find_images(shaped: Shaped) -> Mapping[str, Images]:
    """Return tensor name -> the place of the images, for the tensors in which it is known."""
    walk = _Walk(shaped, shaped.batch)
    walk.run()
    return walk.found


# --- a free batch ----------------------------------------------------------------------------------------------------


def freed_model(shaped: Shaped) -> ModelProto | None:
    """Return a model whose batch axis is free, its nodes in their places; None where the images' way is not known.

    New nodes stand at the end, which onnxruntime does not mind. Whether the model takes several images, and gives for
    each what it gave alone, is for the caller to measure.
    """
    walk = _Walk(shaped, shaped.batch)
    walk.run()
    outputs = [o.name for o in shaped.graph.model.graph.output]
    if any(walk.found.get(name) != Images(0) for name in outputs):
        return None
    edit = _Free(walk)
    edit.apply()
    return edit.model


@dataclass
class _Free:
    """A model while its batch is being freed."""

    walk: _Walk
    model: ModelProto = field(default_factory=ModelProto)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def apply(self) -> None:
        """Change targets and sizes, and repeat constants."""
        self.model.CopyFrom(self.walk.shaped.graph.model)
        self.stored = {t.name: t for t in self.model.graph.initializer}
        nodes = list(self.model.graph.node)
        for index, place in self.walk.targets.items():
            if is_op(nodes[index], "Reshape"):
                self._aim(nodes[index], place)
        for node in nodes:
            if node.output[0] not in self.walk.found:
                continue
            if is_op(node, "Expand"):
                self._stretch(node)
            elif is_op(node, "Resize", "Upsample"):
                self._resize(node)
            elif is_op(node, "Squeeze"):
                self._squeeze(node)
        for repeat in dict.fromkeys(self.walk.repeats):  # an op of several outputs asks for it for each
            if self.walk.batch == 1:
                self._repeat(nodes[repeat.node], repeat)
        for item in (*self.model.graph.input, *self.model.graph.output):
            dims = item.type.tensor_type.shape.dim
            if len(dims) and self.walk.found.get(item.name) == Images(0):
                dims[0].dim_param = "onnxshap.images"
        given = entered(nodes)
        for node in nodes:
            if is_open(node, given):
                self._declare(node)

    def _declare(self, node: NodeProto) -> None:
        """Free the sizes that the body of a loop declares."""
        inside, handed = body(node), handed_on(node)
        pairs = [*((item, item.name) for item in inside.input), *zip(inside.output, handed, strict=True)]
        for item, name in pairs:
            dims, place = item.type.tensor_type.shape.dim, self.walk.found.get(name)
            if place is not None and place.axis < len(dims):
                dims[place.axis].Clear()

    def _aim(self, node: NodeProto, place: Images) -> None:
        """Give a Reshape a target with -1 for the images' axis, or 0 where that copies it."""
        name, shape = node.output[0], self.walk.shaped.shapes[node.output[0]]
        if len(node.input) < 2 or node.input[1] not in self.stored:
            return
        target = array(self.stored[node.input[1]]).copy()
        copies = place.alone and self.walk.found.get(node.input[0]) == place
        varying = any((name, axis) in self.walk.shaped.varying for axis in range(len(shape)))
        if not varying:
            target[:] = shape
        target[place.axis] = 0 if copies else -1
        if np.count_nonzero(target == -1) > 1:
            return
        self.stored[node.input[1]].CopyFrom(tensor(node.input[1], target))
        if any(a.name == "allowzero" for a in node.attribute):
            set_attribute(node, "allowzero", 0)  # torch writes it: 0 would be a size

    def _stretch(self, node: NodeProto) -> None:
        """Expand by 1 what is as wide as it is told to be."""
        stored = self.stored.get(node.input[1])
        if stored is None:
            return
        target = array(stored).copy()
        source, shapes = self.walk.shaped.shapes[node.input[0]], self.walk.shaped.shapes
        for axis in range(1, min(len(source), len(target)) + 1):
            if source[-axis] == shapes[node.output[0]][-axis]:
                target[-axis] = 1
        stored.CopyFrom(tensor(stored.name, target))

    def _resize(self, node: NodeProto) -> None:
        """Take the number of images from the input instead of from the sizes."""
        if len(node.input) < 4 or node.input[3] not in self.stored or "axes" in attributes(node):
            return
        sizes, output = array(self.stored[node.input[3]]), node.output[0]
        source = self.walk.shaped.shapes[node.input[0]]
        same = next((axis for axis, size in enumerate(sizes) if size != source[axis]), len(sizes))
        shape = self._node("Shape", [node.input[0]], f"{output}.source_sizes")
        bounds = [self._constant(f"{output}.{what}", np.array([k])) for what, k in (("first", 0), ("same", same))]
        copied = self._node("Slice", [shape, *bounds], f"{output}.same_sizes")
        rest = self._constant(f"{output}.sizes", sizes[same:])
        node.input[3] = self._node("Concat", [copied, rest], f"{output}.all_sizes", axis=0)

    def _squeeze(self, node: NodeProto) -> None:
        """Name the axes: one image is an axis of size 1 too."""
        given = attributes(node)
        if "axes" in given or len(node.input) > 1:
            return
        place = self.walk.found[node.input[0]]
        shape = self.walk.shaped.shapes[node.input[0]]
        axes = [axis for axis, size in enumerate(shape) if size == 1 and axis != place.axis]
        if self.walk.shaped.graph.opset >= 13:
            node.input.append(self._constant(f"{node.output[0]}.axes", np.array(axes, np.int64)))
        else:
            set_attribute(node, "axes", axes)

    def _repeat(self, node: NodeProto, repeat: _Repeat) -> None:
        """Repeat a constant of one image for every image."""
        name, place = node.input[repeat.input], repeat.images
        shape = self.walk.shaped.shapes[name]
        if shape[place.axis] != place.outer * place.inner:
            return
        key = (name, place)
        if key not in self.made and place.outer == 1:  # by numbers alone, whatever widths a cut leaves
            times = self._times(name, place.axis, len(shape) - place.axis - 1)
            self.made[key] = self._node("Tile", [name, times], f"{name}.repeated")
        elif key not in self.made:
            apart = self._constant(f"{name}.apart", np.array(place.split(shape), np.int64))
            whole = [-1 if axis == place.axis else size for axis, size in enumerate(shape)]
            together = self._constant(f"{name}.together", np.array(whole, np.int64))
            source = self._node("Reshape", [name, apart], f"{name}.split")
            target = self._times(name, place.axis + 1, len(shape) - place.axis)
            wide = self._node("Expand", [source, target], f"{name}.wide")
            self.made[key] = self._node("Reshape", [wide, together], f"{name}.repeated")
        node.input[repeat.input] = self.made[key]

    def _times(self, name: str, before: int, after: int) -> str:
        """Return the name of int64[before + 1 + after]: ones, and the number of images."""
        ones = [
            self._constant(f"{name}.{side}", np.ones(count, np.int64))
            for side, count in (("before", before), ("after", after))
        ]
        return self._node("Concat", [ones[0], self._rows(), ones[1]], f"{name}.times", axis=0)

    def _rows(self) -> str:
        """Return the name of int64[1], the number of images."""
        if ("rows",) not in self.made:
            first = next(n for n in self.walk.shaped.inputs if self.walk.found.get(n) == Images(0))
            sizes = self._node("Shape", [first], f"{_ROWS}.sizes")
            zero = self._constant(f"{_ROWS}.axis", np.array([0], np.int64))
            self.made["rows",] = self._node("Gather", [sizes, zero], _ROWS, axis=0)
        return self.made["rows",]

    def _constant(self, name: str, values: Array) -> str:
        while name in self.stored:
            name += "_"
        self.stored[name] = self.model.graph.initializer.add()
        self.stored[name].CopyFrom(tensor(name, values))
        return name

    def _node(self, kind: str, inputs: Sequence[str], output: str, **given: Any) -> str:
        while ("node", output) in self.made:
            output += "_"
        self.made["node", output] = output
        self.model.graph.node.append(helper.make_node(kind, list(inputs), [output], name=output, **given))
        return output
