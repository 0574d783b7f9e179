"""What the gates of recurrent ops are fed, as a layer: weights times what comes in and the states of the step before.

Every direction reads what comes in and its own states, which is one row of inputs of a step of an image. A state's way
to the gates of its own unit is left out: they go with it. The two parts of the last gate of a GRU, one of which another
gate multiplies, are outputs of their own, as they are to a refit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from onnxshap.core import Array, FloatArray
from onnxshap.game import Setting
from onnxshap.graph import attributes
from onnxshap.repair.recurrent import REVERSED, Recurrent, Weights, parts_of, refittable
from onnxshap.tracing import Traced


def tells_states(traced: Traced, number: int) -> bool:
    """Return whether a node is a recurrent op that is refitted and gives all of its states."""
    return bool(traced.shaped.graph.nodes[number].output[0]) and refittable(traced, number)


def gate_kernels(traced: Traced, number: int) -> FloatArray:
    """Return the weights of such a node, float64[directions, inputs + hidden, 1, gates of all regressions x hidden]."""
    node = traced.shaped.graph.nodes[number]
    weights = Weights.of(traced.shaped.graph.model, node, traced)
    hidden = weights.r.shape[2]
    gates = weights.r.shape[1] // hidden
    states = weights.r * np.tile(1 - np.eye(hidden), (gates, 1))
    blocks = [
        np.concatenate(
            [part.came * weights.w[:, part.rows(hidden)], part.before * states[:, part.rows(hidden)]], axis=2
        )
        for part in parts_of(Recurrent(number, node, gates, node.name))
    ]
    return np.concatenate(blocks, axis=1).transpose(0, 2, 1)[:, :, None]


def gate_rows(setting: Setting, number: int, rows: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield what they multiply, [rows, directions x (inputs + hidden), 1], about `rows` in all, from all images.

    First states other than zeros are not looked at, nor how many steps an image has.
    """
    traced, route = setting.traced, setting.route
    node, left = traced.shaped.graph.nodes[number], len(setting.data)
    backwards = REVERSED[attributes(node).get("direction", "forward")]
    came = list[tuple[Array, Array, Array]]()
    for feeds, x in zip(route.walk.batches, route(node.input[0]), strict=True):
        whole = traced.shaped.count(feeds)
        count = min(left, whole)  # a fixed batch is filled up with repeats
        left -= count
        own = x.shape[1] * count // whole
        share = math.ceil(rows * count / len(setting.data))
        steps, images = np.divmod(np.sort(rng.permutation(len(x) * own)[:share]), max(1, own))
        came.append((x[steps, images], steps, images))
    for (x, steps, images), states in zip(came, route(node.output[0]), strict=True):
        parts = list[Array]()
        for direction, backward in enumerate(backwards):
            of_direction = states[:, direction]
            first = np.zeros_like(of_direction[:1])
            before = [of_direction[1:], first] if backward else [first, of_direction[:-1]]
            parts += [x, np.concatenate(before)[steps, images]]
        yield np.concatenate(parts, axis=1)[..., None]
