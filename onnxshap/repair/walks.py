"""The original and the cut model side by side on the calibration images: what repairs compare, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap import streams
from onnxshap.calibrate import batches
from onnxshap.core import Array, Dataset
from onnxshap.graph.structure import between, copied, reads
from onnxshap.labels import Liveness
from onnxshap.repair.coefficients import Coefficients
from onnxshap.repair.recurrent import Recurrent, Seen
from onnxshap.repair.targets import Layer
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced
from onnxshap.walk import Repeated, Room, Steps, Walk

_HELD_OUT = 5
"""One image of so many is held out."""
_BATCH_BYTES = 2**26
"""Of the largest tensor that a batch of images may make."""


def batch_size(free: Traced, names: Sequence[str]) -> int:
    """Return how many images a batch may hold, by the largest of some tensors."""
    largest = max((4 * math.prod(free.shaped.shapes[n]) for n in names), default=1)
    return int(np.clip(_BATCH_BYTES * free.batch // max(1, largest), 1, 32))


class Walks:
    """Both models, run from layer to layer while the weights of the cut one are changed in place.

    Attributes:
        free: the original for evaluation.
        live: what is left of its tensors.
        model: the cut model.
        layers: those that are repaired.
        recurrent: the recurrent ops that are.
        images: how many calibration images there are.
        held_out: which of them are held out, bool[images] batch by batch.
        coefficients: weights and biases of the layers.
        present: the walk through the cut model.
    """

    def __init__(
        self,
        free: Traced,
        live: Liveness,
        model: ModelProto,
        data: Dataset,
        layers: Sequence[Layer],
        recurrent: Sequence[Recurrent],
        seed: int,
        original: Repeated | None = None,
    ) -> None:
        """Start both walks.

        Args:
            free, live, model, layers, recurrent: as the attributes.
            data: calibration images.
            seed: of the images held out.
            original: a walk through `free` over `data` to take again; None = a new one.
        """
        self.free, self.live, self.model = free, live, model
        self.layers, self.recurrent, self.images = layers, recurrent, len(data)
        self.coefficients = Coefficients(free, model)
        read = [n for layer in layers for n in (layer.x, layer.y)] + [layer.x for layer in recurrent]
        feeds = (
            [part for _, part in batches(free, data, batch_size(free, read))]
            if original is None
            else original.walk.batches
        )
        order = streams.stream(seed, streams.REFIT_IMAGES).permutation(self.images)
        held_out = np.zeros(self.images, np.bool_)
        held_out[order[: max(1, self.images // _HELD_OUT)]] = True
        starts = np.cumsum([0, *(free.shaped.count(part) for part in feeds)])
        # a fixed batch is filled up with repeats
        self.held_out: list[NDArray[np.bool_]] = [
            np.resize(held_out[start:], free.shaped.count(part)) for start, part in zip(starts, feeds, strict=False)
        ]
        whole = free.shaped.graph.model
        told = _telling_states(whole, recurrent)
        # what both walks hold fits into the memory together
        room = Room(free.backend.memory if original is None else original.most)
        self._original: Steps = (
            Walk(free, told, feeds, room) if original is None or told is not whole else original.again()
        )
        self.present = Walk(free, model, feeds, room, live)
        behind = [*(layer.x for layer in layers), *(layer.x for layer in recurrent)]
        self._read = {name for node in between(model.graph.node, (), behind) for name in node.output}

    def compared(self, layer: Layer, name: str) -> Iterator[tuple[Array, list[Array]]]:
        """Yield what a layer answers for, as it was, and a tensor of the cut model with what is added, if something is.

        Batch by batch; of what it was only what is left.
        """
        names = [name, *([layer.addend] if layer.addend else [])]
        for (target,), values in zip(self._original([layer.target]), self.present(names), strict=True):
            yield self.live.narrowed(layer.target, target), values

    def seen(self, layer: Recurrent) -> Iterator[Seen]:
        """Yield what a recurrent op sees, batch by batch."""
        given, source = [name for name in (layer.start, layer.lengths) if name], self.free.shaped.graph.model
        fixed = static_values(source, self.free.backend, [n for n in given if n in self.free.shaped.constants])
        asked = [layer.x, layer.states, *(name for name in given if name not in fixed)]
        for values, (x,) in zip(self._original(asked), self.present([layer.x]), strict=True):
            found = fixed | dict(zip(asked, values, strict=True))
            yield Seen(found[layer.x], x, found[layer.states], found.get(layer.start), found.get(layer.lengths))

    def is_read(self, layer: Layer) -> bool:
        """Return whether another layer that is repaired follows."""
        return layer.y in self._read

    def go_on(self, layers: Sequence[Layer]) -> None:
        """Go on with the weights that layers got.

        What is held is computed again where one of several layers that were changed at once lies behind another.
        """
        self.present.rewired(layer.index for layer in layers)
        changed = {layer.y for layer in layers} if len(layers) > 1 else set[str]()
        for node in self.model.graph.node if changed else ():
            if not changed.isdisjoint(reads(node)):
                changed.update(node.output)
        if any(name in changed for layer in layers for name in (layer.x, layer.addend)):
            self.present.restart()


def _telling_states(model: ModelProto, layers: Sequence[Recurrent]) -> ModelProto:
    """Return a model whose recurrent ops give all their states."""
    produced = {o for node in model.graph.node for o in node.output}
    untold = {tuple(layer.node.output)[1:]: layer.node for layer in layers if layer.states not in produced}
    told = copied(model) if untold else model
    for node in told.graph.node if untold else ():
        if not node.output[0] and tuple(node.output)[1:] in untold:
            node.CopyFrom(untold[tuple(node.output)[1:]])
    return told
