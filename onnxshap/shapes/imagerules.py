"""Where ops put the images: one function for each family, what keeps them in their place needs none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from onnx import NodeProto, TensorProto

from onnxshap.graph import array, attributes, is_op
from onnxshap.labels.equations import terms_of
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import Shape
from onnxshap.shapes.images import Images

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
class Repeat:
    """Input `input` of a node is the same for all images and needs an entry for each, at `images`."""

    node: int
    input: int
    images: Images


@dataclass
class ImagePlaces:
    """Where the images are, as far as they were followed, and what nodes need so that their number may change.

    Attributes:
        shaped: the model at its sizes.
        batch: the number of images.
        found: tensor -> the place of the images.
        targets: nodes that keep the order of elements, whose targets may name the images' axis -> their place before.
        repeats: constants that need an entry for every image.
        picks: nodes that pick positions of one image by constants -> the place of the images in what they pick from.
    """

    shaped: Shaped
    batch: int
    found: dict[str, Images] = field(default_factory=dict)
    targets: dict[int, Images] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    picks: dict[int, Images] = field(default_factory=dict)

    @cached_property
    def stored(self) -> dict[str, TensorProto]:
        """Name -> initializer."""
        return self.shaped.graph.initializers

    def after(self, index: int, node: NodeProto, number: int) -> Images | None:
        """Return the place of the images in an output of a node, None where it is not known."""
        rule = RULES.get(node.op_type)
        return self._aligned(index, node, number) if rule is None else rule(self, index, node, number)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor, () where it is not known."""
        return self.shaped.shapes.get(name, ())

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
        source, target = self.shape(node.input[0]), self.shape(node.output[0])
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
        fitting = [p for p in fitting if not self._taken_apart(node.output[0], p.axis)] or fitting
        following = source[place.axis + 1 : place.axis + 2]
        last = fitting[-1].axis
        if len(fitting) > 1 and (last == len(target) - 1 or (place.alone and target[last : last + 1] == following)):
            return fitting[0]  # [places, images, heads, features] -> [places x images, all features]
        return fitting[-1]

    def _taken_apart(self, name: str, axis: int) -> bool:
        """Return whether parts of an axis go different ways, as queries, keys and values do: it holds no images."""
        nodes = (self.shaped.graph.nodes[k] for k in self.shaped.readers.get(name, ()))
        rank = len(self.shape(name))
        return any(
            is_op(node, "Split", "Gather") and node.input[0] == name and attributes(node).get("axis", 0) % rank == axis
            for node in nodes
        )

    def _aligned(self, index: int, node: NodeProto, number: int) -> Images | None:
        """Axes are counted from the last, as broadcasting does; all inputs have the images in one place."""
        rank = len(self.shape(node.output[number]))
        places = {
            replace(p, axis=p.axis + rank - len(self.shape(i))) for i in node.input if i and (p := self.found.get(i))
        }
        if len(places) != 1:
            return None
        place = places.pop()
        if node.op_type in _BROADCASTS:
            for k, name in enumerate(node.input):
                shape = self.shape(name)
                axis = place.axis - rank + len(shape)
                if name in self.shaped.constants and axis >= 0 and shape[axis] > 1:
                    self.repeats.append(Repeat(index, k, replace(place, axis=axis)))
        return place

    def constant(self, index: int, node: NodeProto, k: int, place: Images) -> None:
        """Note that an input, if it is a constant, needs an entry for every image."""
        if k < len(node.input) and node.input[k] in self.shaped.constants:
            self.repeats.append(Repeat(index, k, place))


Rule = Callable[[ImagePlaces, int, NodeProto, int], Images | None]


def _transpose(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    place = walk.found[node.input[0]]
    rank = len(walk.shaped.shapes[node.input[0]])
    perm = list(attributes(node).get("perm", range(rank)[::-1]))
    return replace(place, axis=perm.index(place.axis))


def _concat(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    if int(attributes(node)["axis"]) % len(walk.shaped.shapes[node.output[0]]) == place.axis:
        return None
    for k in range(len(node.input)):
        walk.constant(index, node, k, place)
    return place


def _gather(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    shapes = walk.shaped.shapes
    data, chosen = (walk.found.get(name) for name in node.input[:2])
    given = attributes(node)
    axis = int(given.get("axis", given.get("gather_axis", 0))) % len(shapes[node.input[0]])
    if data is not None and chosen is None and data.axis != axis:
        shift = len(shapes[node.input[1]]) - 1 if data.axis > axis else 0
        return replace(data, axis=data.axis + shift)
    if chosen is not None and data is None:
        return replace(chosen, axis=chosen.axis + axis)
    if data is not None and data.axis == axis and chosen is None and data.outer == 1:
        return _picked(walk, index, node, Images(axis))
    return None


def _gather_nd(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    """Positions [image, place] of [images, places, ...], as exporters write mask[image, place]."""
    names, alone = walk.shaped.shapes, walk.found.get(node.input[0]) == Images(0)
    pairs = names[node.input[1]][-1:] == (2,) and not attributes(node).get("batch_dims", 0)
    return _picked(walk, index, node, Images(0)) if alone and pairs and node.input[1] not in walk.found else None


def _picked(walk: ImagePlaces, index: int, node: NodeProto, place: Images) -> Images | None:
    """One image's positions are picked by constants: with several, each has its own on the first axis of these."""
    chosen = node.input[1]
    single = walk.batch == 1 and not walk.shaped.free_batch and walk.shaped.shapes[chosen][:1] == (1,)
    if not single or chosen not in walk.shaped.constants:
        return None
    walk.picks[index] = walk.found[node.input[0]]
    return place


def _gather_elements(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    place = next(walk.found[i] for i in node.input if i in walk.found)
    for k in range(2):
        walk.constant(index, node, k, place)
    return place


def _scatter_elements(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
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


def _reduce(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    place, given = walk.found.get(node.input[0]), attributes(node)
    if place is None or given.get("keepdims", 1):
        return place
    gone = _named_axes(walk, node, len(walk.shaped.shapes[node.input[0]]))
    if gone is None or place.axis in gone:
        return None
    return replace(place, axis=place.axis - sum(a < place.axis for a in gone))


def _squeeze(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    """Axes that are named tell where one image goes among others of size 1; elsewhere the order of elements does.

    So it does where a Squeeze was told its axes later, when the batch was freed: shapes are those of one image.
    """
    place = walk.found.get(node.input[0])
    longer, shorter = (len(walk.shaped.shapes[name]) for name in (node.input[0], node.output[0]))
    gone = _named_axes(walk, node, longer)
    if place is None or gone is None or place.axis in gone or longer - len(gone) != shorter:
        return walk.moved(index, node)
    return replace(place, axis=place.axis - sum(a < place.axis for a in gone))


def _unsqueeze(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    place, rank = walk.found.get(node.input[0]), len(walk.shaped.shapes[node.output[0]])
    added = _named_axes(walk, node, rank)
    if place is None or added is None:
        return walk.moved(index, node)
    return replace(place, axis=[axis for axis in range(rank) if axis not in added][place.axis])


def _named_axes(walk: ImagePlaces, node: NodeProto, rank: int) -> set[int] | None:
    """Return the axes that a node names, in an attribute or a constant, None where it names none or computes them."""
    given = attributes(node)
    axes = given.get("axes", given.get("axis"))
    if len(node.input) > 1 and (stored := walk.stored.get(node.input[1])) is not None:
        axes = array(stored)
    return None if axes is None else {int(a) % rank for a in np.ravel(axes)}


def _recurrent(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
    first = bool(attributes(node).get("layout", 0))
    batch = 0 if first else 1
    place = walk.found.get(node.input[0], Images(batch))
    if place.axis != batch:
        return None
    for k in (5, 6):
        walk.constant(index, node, k, place)
    return replace(place, axis=2) if number == 0 and not first else place


def _einsum(walk: ImagePlaces, index: int, node: NodeProto, number: int) -> Images | None:
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


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Flatten", "Reshape"), lambda walk, index, node, number: walk.moved(index, node)),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    **dict.fromkeys(("Gather", "GatherBlockQuantized"), _gather),
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
