"""How a model with a fixed batch takes any number of images.

Exporters write out the size of the batch wherever a shape is named, and repeat constants for every image: a Reshape
gets -1 there, and a constant is repeated as often as there are images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnxshap.core import Array
from onnxshap.graph import Names, array, attributes, is_op, tensor
from onnxshap.graph.lifting import body, entered, is_open
from onnxshap.graph.loops import handed_on
from onnxshap.graph.weights import set_values
from onnxshap.labels.fixups import name_axes, set_attribute, takes_all
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import TABLE
from onnxshap.shapes.imagerules import Repeat
from onnxshap.shapes.images import Images
from onnxshap.shapes.imagewalk import ImageWalk, find_images

_ROWS = "onnxshap.rows"


def freed_model(shaped: Shaped) -> ModelProto | None:
    """Return a model whose batch axis is free, its nodes in their places; None where the images' way is not known.

    New nodes stand at the end, which onnxruntime does not mind. Whether the model takes several images, and gives for
    each what it gave alone, is for the caller to measure.
    """
    walk = ImageWalk(shaped, shaped.batch)
    walk.run()
    outputs = [o.name for o in shaped.graph.model.graph.output]
    if any(name not in walk.found for name in outputs):
        return None
    edit = _Free(walk)
    edit.apply()
    return edit.model


def steady_model(shaped: Shaped) -> ModelProto | None:
    """Return a model of a free batch that gives one image the axes that it gives several, None if it is one already.

    A Squeeze of all axes of size 1 names those that it was traced with, but for that of a single image.
    """
    nodes, places = shaped.graph.nodes, find_images(shaped) if shaped.batch == 1 else {}
    taking = [k for k, n in enumerate(nodes) if is_op(n, "Squeeze") and takes_all(n) and n.input[0] in shaped.shapes]
    if not taking:
        return None
    model = ModelProto()
    model.CopyFrom(shaped.graph.model)
    names = shaped.graph.names()

    def constant(wish: str, values: Array) -> str:
        model.graph.initializer.append(tensor(name := names.new(wish), values))
        return name

    for index in taking:
        place = places.get(nodes[index].input[0])
        _name_single(shaped, model.graph.node[index], constant, None if place is None else place.axis)
    return model


def _name_single(
    shaped: Shaped, squeeze: NodeProto, constant: Callable[[str, Array], str], but: int | None = None
) -> None:
    """Name the axes of size 1 that a Squeeze takes, but for one."""
    shape = shaped.shapes[squeeze.input[0]]
    axes = [axis for axis, size in enumerate(shape) if size == 1 and axis != but]
    name_axes(squeeze, axes, constant, shaped.graph.opset)


@dataclass
class _Free:
    """A model while its batch is being freed."""

    walk: ImageWalk
    model: ModelProto = field(default_factory=ModelProto)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names: Names = self.walk.shaped.graph.names()

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
        for index, place in self.walk.picks.items():
            self._pick(nodes[index], place)
        for repeat in dict.fromkeys(self.walk.repeats):  # an op of several outputs asks for it for each
            (self._repeat if self.walk.batch == 1 else self._take_one)(nodes[repeat.node], repeat)
        for item in (*self.model.graph.input, *self.model.graph.output):
            dims = item.type.tensor_type.shape.dim
            if len(dims) and (images := self.walk.found.get(item.name)) is not None:
                dims[images.axis].dim_param = "onnxshap.images"
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
        set_values(self.stored[node.input[1]], target)
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
        set_values(stored, target)

    def _pick(self, node: NodeProto, place: Images) -> None:
        """Pick of every image the positions that are picked of one, on the axis behind that of the images."""
        name = node.input[1]
        if name not in self.stored:
            return
        chosen = array(self.stored[name])[0]
        if is_op(node, "GatherND"):
            node.op_type, chosen = "Gather", chosen[..., 1]
            del node.attribute[:]
        else:
            shape = self.walk.shaped.shapes[node.input[0]]
            apart = np.array([*shape[: place.axis], -1, place.inner, *shape[place.axis + 1 :]])
            parts = [node.input[0], self._constant(f"{node.output[0]}.apart", apart)]
            node.input[0] = self._node("Reshape", parts, f"{node.output[0]}.images")
        set_attribute(node, "axis", place.axis + 1)
        node.input[1] = self._constant(f"{node.output[0]}.places", chosen)

    def _resize(self, node: NodeProto) -> None:
        """Take the number of images, and every width that stays, from the input instead of from the sizes."""
        if len(node.input) < 4 or node.input[3] not in self.stored or "axes" in attributes(node):
            return
        name, output = node.input[0], node.output[0]
        sizes, source, varying = (
            array(self.stored[node.input[3]]),
            self.walk.shaped.shapes[name],
            self.walk.shaped.varying,
        )
        shape, parts = self._node("Shape", [name], f"{output}.source_sizes"), list[str]()

        def stays(axis: int) -> bool:
            return axis == 0 or bool(sizes[axis] == source[axis] and (name, axis) not in varying)

        for same, run in itertools.groupby(range(len(sizes)), stays):
            first, *_ = axes = list(run)
            if same:
                bounds = (("first", first), ("last", first + len(axes)))
                ends = [self._constant(f"{output}.{what}", np.array([k])) for what, k in bounds]
                parts.append(self._node("Slice", [shape, *ends], f"{output}.same_sizes"))
            else:
                parts.append(self._constant(f"{output}.sizes", sizes[axes]))
        node.input[3] = self._node("Concat", parts, f"{output}.all_sizes", axis=0)

    def _squeeze(self, node: NodeProto) -> None:
        """Name the axes: one image is an axis of size 1 too."""
        if takes_all(node):
            _name_single(self.walk.shaped, node, self._constant, self.walk.found[node.input[0]].axis)

    def _take_one(self, node: NodeProto, repeat: Repeat) -> None:
        """Repeat the first image of a stored constant of several, if they are alike.

        It is picked as the model runs: the constant itself stays, for weights are handed back by their names.
        """
        name, place = node.input[repeat.input], repeat.images
        if not place.alone or name not in self.stored or math.prod(self.stored[name].dims) > TABLE:
            return
        values = array(self.stored[name])
        one = place.take(values, [0])
        if values.shape[place.axis] != self.walk.batch or not np.array_equal(
            place.join([one] * self.walk.batch), values
        ):
            return
        if (key := ("one", name, place)) not in self.made:
            first = self._constant(f"{name}.first", np.array([0], np.int64))
            image = self._node("Gather", [name, first], f"{name}.image", axis=place.axis)
            times = self._times(name, place.axis, values.ndim - place.axis - 1)
            self.made[key] = self._node("Tile", [image, times], f"{name}.repeated")
        node.input[repeat.input] = self.made[key]

    def _repeat(self, node: NodeProto, repeat: Repeat) -> None:
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
            first, place = next((n, at) for n in self.walk.shaped.inputs if (at := self.walk.found.get(n)) is not None)
            sizes = self._node("Shape", [first], f"{_ROWS}.sizes")
            axis = self._constant(f"{_ROWS}.axis", np.array([place.axis], np.int64))
            self.made["rows",] = self._node("Gather", [sizes, axis], _ROWS, axis=0)
        return self.made["rows",]

    def _constant(self, wish: str, values: Array) -> str:
        name = self.names.new(wish)
        self.stored[name] = self.model.graph.initializer.add()
        self.stored[name].CopyFrom(tensor(name, values))
        return name

    def _node(self, kind: str, inputs: Sequence[str], wish: str, **given: Any) -> str:
        output = self.names.new(wish)
        self.model.graph.node.append(helper.make_node(kind, list(inputs), [output], name=output, **given))
        return output
