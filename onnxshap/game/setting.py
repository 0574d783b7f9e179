"""What the games of all groups share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxshap.calibrate import batches, live_bytes, rows_apart
from onnxshap.core import Array, Dataset, FloatArray, Payoff
from onnxshap.estimators.images import Alike
from onnxshap.game.alike import alike_images
from onnxshap.masking import Means
from onnxshap.payoffs import units_of
from onnxshap.tracing import Traced
from onnxshap.walk import Room, Route, Walk

_BATCH_BYTES = 2**28
"""Of the largest tensor that a batch of images on a route may make."""
_OF_A_RUN = 8
"""Of so many parts of the memory, one is for a run's own where not all activations can be held."""


@dataclass(frozen=True)
class Setting:
    """What the games of all groups share.

    Attributes:
        traced: the model, its batch free if it can be (`calibrate.free_batch`).
        data: calibration images.
        payoff: outputs -> worth.
        reference: the original outputs on the data.
        means: what removed channels leave behind; empty = zeros.
        measured: what is known of the model by running it, found once for all copies of a setting.
    """

    traced: Traced
    data: Dataset
    payoff: Payoff
    reference: Sequence[Array]
    means: Means = field(default_factory=dict)
    measured: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @property
    def memory(self) -> int:
        """Bytes of activations that a game keeps at a time, about."""
        return self.traced.backend.memory

    @property
    def apart(self) -> bool:
        """Whether images give together what each gives alone, measured: what ops do with a batch's size tells nothing.

        Where they do not, rows of coalitions cannot share a run: what a row gives would depend on the masks of others.
        """
        if "apart" not in self.measured:
            self.measured["apart"] = rows_apart(self.traced, self.data)
        return self.measured["apart"]

    @cached_property
    def alike(self) -> Alike | None:
        """The images by kind; None where nothing tells."""
        return alike_images(self.payoff, self.reference, self.data.labels)

    @cached_property
    def by_units(self) -> Mapping[int, FloatArray]:
        """Of the ops that give the model's outputs, what a squared error of each column counts in its own unit."""
        shaped, found = self.traced.shaped, {}
        places = {shaped.graph.nodes[s.node].output[0]: s for s in self.traced.labels.trace.linear}
        for name, values in zip(self.traced.outputs, self.reference, strict=False):
            site = places.get(name)
            if site is None or site.weight is None or values.dtype.kind != "f":
                continue
            units = units_of(np.asarray(values, np.float64))
            if units is not None and units.axis == site.weight.out % values.ndim:
                found[site.node] = 1 / units.variances
        return found

    @cached_property
    def route(self) -> Route:
        """The way through the model past every tensor of which units are summed away, whatever groups are looked at.

        Where an op sums positions of weights away, it goes past what the op reads and what it gives, which may be fed
        to itself. It holds activations, as far as the memory goes: a copy of the setting has one of its own.
        """
        shaped = self.traced.shaped
        fed = {site.node for site in self.traced.labels.trace.sites if site.stored}
        passed = dict[str, None]()
        for site in self.traced.sites(self.traced.groups):
            node = shaped.graph.nodes[site.node]
            if site.node in fed:
                passed.update(dict.fromkeys([node.input[0], node.output[0]]))
            if not site.stored:
                passed[site.tensor] = None
        seen = [name for name in passed if name in shaped.shapes and self.traced.depth(name) < 2]
        steps = sorted(seen, key=lambda name: shaped.producers.get(name, -1))
        feeds = [part for _, part in batches(self.traced, self.data, self._images_of_a_batch(steps))]
        run = live_bytes(self.traced) * max((shaped.count(part) for part in feeds), default=0)
        return Route(Walk(self.traced, shaped.graph.model, feeds, Room(max(0, self.memory - run))), steps)

    def _images_of_a_batch(self, names: Sequence[str]) -> int:
        """Return how many images at a time are run for some tensors: fewer where not all that is held has room."""
        size = max((4 * math.prod(self.traced.shaped.shapes[name]) // self.traced.batch for name in names), default=0)
        images, live = max(1, min(32, _BATCH_BYTES // (size + 1))), live_bytes(self.traced)
        if live * (len(self.data) + images) <= self.memory:
            return images
        return int(np.clip(self.memory // (_OF_A_RUN * max(1, live)), 1, images))
