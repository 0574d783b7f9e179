"""Where the images lie in every tensor.

Exporters merge the images with windows or heads ([8, 64, 32] for 4 windows of 2 images). One walk through the graph
follows the images, by `imagerules`; on its way it notes what each node needs so that their number may change
(`batching`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnx import NodeProto

from onnxshap.graph.lifting import entered, is_enter, is_loop, is_open
from onnxshap.graph.loops import Passage, passages
from onnxshap.graph.structure import subgraphs
from onnxshap.shapes import Shaped
from onnxshap.shapes.imagerules import ImagePlaces
from onnxshap.shapes.images import Images


@dataclass
class ImageWalk(ImagePlaces):
    """Follows the images from node to node."""

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
                place = self.after(index, node, number)
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
                steps = passage.axis % len(self.shape(passage.outer))
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

    def _fits(self, name: str, place: Images) -> bool:
        shape = self.shape(name)
        return 0 <= place.axis < len(shape) and shape[place.axis] == place.outer * self.batch * place.inner


def find_images(shaped: Shaped) -> Mapping[str, Images]:
    """Return tensor name -> the place of the images, for the tensors in which it is known."""
    walk = ImageWalk(shaped, shaped.batch)
    walk.run()
    return walk.found
