"""Where the images lie in every tensor.

Exporters merge the images with windows or heads ([8, 64, 32] for 4 windows of 2 images). One walk through the graph
follows the images; on its way it notes what each node needs so that their number may change (`batching`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxshap.core import Array
from onnxshap.graph import array, attributes
from onnxshap.graph.lifting import entered, is_enter, is_loop, is_open
from onnxshap.graph.loops import Passage, passages
from onnxshap.graph.structure import subgraphs
from onnxshap.labels.equations import terms_of
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import Shape

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

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of images in a tensor of a shape."""
        return shape[self.axis] // (self.outer * self.inner)

    def take(self, values: Array, images: Any) -> Array:
        """Return the chosen images of a tensor."""
        if self.alone:
            taken: Array = np.take(values, images, axis=self.axis)
            return taken
        apart = values.reshape(self.split(values.shape))
        chosen: Array = np.take(apart, images, axis=self.axis + 1)
        return chosen.reshape(*values.shape[: self.axis], -1, *values.shape[self.axis + 1 :])

    def part(self, values: Array, start: int, stop: int) -> Array:
        """Return images in a row of a tensor, a view of it where they lie in a row there."""
        return values[start:stop] if self == Images(0) else self.take(values, range(start, stop))

    def front(self, values: Array) -> Array:
        """Return a tensor with the images on axis 0; what shared an axis with them has axes of its own.

        >>> Images(1, inner=2).front(np.zeros((3, 8, 5))).shape
        (4, 3, 1, 2, 5)
        """
        apart = values if self.alone else values.reshape(self.split(values.shape))
        return np.moveaxis(apart, self.axis + (not self.alone), 0)

    def back(self, rows: Array) -> Array:
        """Return what `front` was given."""
        apart = np.moveaxis(rows, 0, self.axis + (not self.alone))
        return apart if self.alone else apart.reshape(*apart.shape[: self.axis], -1, *apart.shape[self.axis + 3 :])

    def join(self, parts: Sequence[Array]) -> Array:
        """Return the images of several tensors as one."""
        if self.alone or len(parts) == 1:
            joined: Array = np.concatenate(parts, axis=self.axis)
            return joined
        shape = parts[0].shape
        apart: Array = np.concatenate([p.reshape(self.split(p.shape)) for p in parts], axis=self.axis + 1)
        return apart.reshape(*shape[: self.axis], -1, *shape[self.axis + 1 :])


@dataclass(frozen=True)
class Repeat:
    """Input `input` of a node is the same for all images and needs an entry for each, at `images`."""

    node: int
    input: int
    images: Images


@dataclass
class ImageWalk:
    """Follows the images from node to node."""

    shaped: Shaped
    batch: int
    found: dict[str, Images] = field(default_factory=dict)
    targets: dict[int, Images] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    picks: dict[int, Images] = field(default_factory=dict)
    """Nodes that pick positions of one image by constants, from the axis with the images."""
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
        self.picks.clear()
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
        if (rule := _RULES.get(node.op_type)) is not None:
            return rule(self, index, node, number)
        return self._aligned(index, node, number)

    def moved(self, index: int, node: NodeProto) -> Images | None:
        """Return the place of images that keep theirs in the order of elements, and note it: a target may name it."""
        if (place := self._moved(node)) is not None:
            self.targets[index] = place
        return place

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
        # one image fits at the end of an axis and in front of the next one: theirs has a size that follows their number
        follows = self.shaped.varying
        if (node.input[0], place.axis) in follows:
            fitting = [p for p in fitting if (node.output[0], p.axis) in follows] or fitting
        following = source[place.axis + 1 : place.axis + 2]
        last = fitting[-1].axis
        if len(fitting) > 1 and (last == len(target) - 1 or (place.alone and target[last : last + 1] == following)):
            return fitting[0]  # [places, images, heads, features] -> [places x images, all features]
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
                    self.repeats.append(Repeat(index, k, replace(place, axis=axis)))
        return place

    def constant(self, index: int, node: NodeProto, k: int, place: Images) -> None:
        """Note that an input, if it is a constant, needs an entry for every image."""
        if k < len(node.input) and node.input[k] in self.shaped.constants:
            self.repeats.append(Repeat(index, k, place))


_Rule = Callable[[ImageWalk, int, NodeProto, int], Images | None]


def _transpose(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    place = walk.found[node.input[0]]
    rank = len(walk.shaped.shapes[node.input[0]])
    perm = list(attributes(node).get("perm", range(rank)[::-1]))
    return replace(place, axis=perm.index(place.axis))


def _concat(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    if int(attributes(node)["axis"]) % len(walk.shaped.shapes[node.output[0]]) == place.axis:
        return None
    for k in range(len(node.input)):
        walk.constant(index, node, k, place)
    return place


def _gather(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    shapes = walk.shaped.shapes
    data, chosen = (walk.found.get(name) for name in node.input[:2])
    axis = int(attributes(node).get("axis", 0)) % len(shapes[node.input[0]])
    if data is not None and chosen is None and data.axis != axis:
        shift = len(shapes[node.input[1]]) - 1 if data.axis > axis else 0
        return replace(data, axis=data.axis + shift)
    if chosen is not None and data is None:
        return replace(chosen, axis=chosen.axis + axis)
    if data is not None and data.axis == axis and chosen is None and data.outer == 1:
        return _picked(walk, index, node, Images(axis))
    return None


def _gather_nd(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    """Positions [image, place] of [images, places, ...], as exporters write mask[image, place]."""
    names, alone = walk.shaped.shapes, walk.found.get(node.input[0]) == Images(0)
    pairs = names[node.input[1]][-1:] == (2,) and not attributes(node).get("batch_dims", 0)
    return _picked(walk, index, node, Images(0)) if alone and pairs and node.input[1] not in walk.found else None


def _picked(walk: ImageWalk, index: int, node: NodeProto, place: Images) -> Images | None:
    """One image's positions are picked by constants: with several, each has its own on the first axis of these."""
    chosen = node.input[1]
    single = walk.batch == 1 and not walk.shaped.free_batch and walk.shaped.shapes[chosen][:1] == (1,)
    if not single or chosen not in walk.shaped.constants:
        return None
    walk.picks[index] = walk.found[node.input[0]]
    return place


def _gather_elements(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    for k in range(2):
        walk.constant(index, node, k, place)
    return place


def _scatter_elements(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    """Written to places of every image's own, the images of what is written, of its places and of the rest as one."""
    places = {walk.found[name] for name in node.input if name in walk.found}
    if len(places) != 1 or not all(name in walk.found or name in walk.shaped.constants for name in node.input):
        return None
    place = places.pop()
    if int(attributes(node).get("axis", 0)) % len(walk.shaped.shapes[node.input[0]]) == place.axis:
        return None
    for k in range(3):
        walk.constant(index, node, k, place)
    return place


def _reduce(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    place, given = walk.found.get(node.input[0]), attributes(node)
    if place is None or given.get("keepdims", 1):
        return place
    gone = _named_axes(walk, node, len(walk.shaped.shapes[node.input[0]]))
    if gone is None or place.axis in gone:
        return None
    return replace(place, axis=place.axis - sum(a < place.axis for a in gone))


def _squeeze(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    """Axes that are named tell where one image goes among others of size 1; elsewhere the order of elements does.

    So it does where a Squeeze was told its axes later, when the batch was freed: shapes are those of one image.
    """
    place = walk.found.get(node.input[0])
    longer, shorter = (len(walk.shaped.shapes[name]) for name in (node.input[0], node.output[0]))
    gone = _named_axes(walk, node, longer)
    if place is None or gone is None or place.axis in gone or longer - len(gone) != shorter:
        return walk.moved(index, node)
    return replace(place, axis=place.axis - sum(a < place.axis for a in gone))


def _unsqueeze(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    place, rank = walk.found.get(node.input[0]), len(walk.shaped.shapes[node.output[0]])
    added = _named_axes(walk, node, rank)
    if place is None or added is None:
        return walk.moved(index, node)
    return replace(place, axis=[axis for axis in range(rank) if axis not in added][place.axis])


def _named_axes(walk: ImageWalk, node: NodeProto, rank: int) -> set[int] | None:
    """Return the axes that a node names, in an attribute or a constant, None where it names none or computes them."""
    given = attributes(node)
    axes = given.get("axes", given.get("axis"))
    if len(node.input) > 1 and (stored := walk.shaped.graph.initializers.get(node.input[1])) is not None:
        axes = array(stored)
    return None if axes is None else {int(a) % rank for a in np.ravel(axes)}


def _recurrent(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    first = bool(attributes(node).get("layout", 0))
    for k in (5, 6):
        walk.constant(index, node, k, Images(0 if first else 1))
    return Images(0 if first else 2 if number == 0 else 1)


def _einsum(walk: ImageWalk, index: int, node: NodeProto, number: int) -> Images | None:
    given, result = terms_of(attributes(node))
    letters = {
        (term[place.axis], place.outer, place.inner)
        for term, name in zip(given, node.input, strict=False)
        if (place := walk.found.get(name)) is not None and "." not in term and place.axis < len(term)
    }
    if len(letters) != 1 or result is None:
        return None
    letter, outer, inner = letters.pop()
    return Images(result.index(letter), outer, inner) if letter in result else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Flatten", "Reshape"), lambda walk, index, node, number: walk.moved(index, node)),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduce),
    **{f"Reduce{name}": _reduce for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")},
    "ReduceSumSquare": _reduce,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Einsum": _einsum,
    **dict.fromkeys(
        ("Shape", "Size", "NonZero", "Unique", "NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
        lambda walk, index, node, number: None,
    ),
}


def find_images(shaped: Shaped) -> Mapping[str, Images]:
    """Return tensor name -> the place of the images, for the tensors in which it is known."""
    walk = ImageWalk(shaped, shaped.batch)
    walk.run()
    return walk.found
