"""Recurrent ops refitted: the regressions of their gates on both models side by side."""

from __future__ import annotations

import math

import numpy as np

from onnxshap import streams
from onnxshap.repair.recurrent import Gates, Recurrent, Weights, parts_of
from onnxshap.repair.regression import Effort, Refit, Response, Rows, solve
from onnxshap.repair.rows import flags_of
from onnxshap.repair.walks import Walks


def fit_recurrent(walks: Walks, layer: Recurrent, effort: Effort, seed: int) -> Refit:
    """Refit the weights of a recurrent op, in place; arguments as for `linear.fit_linear`."""
    node, kept = walks.model.graph.node[layer.index], walks.live.axis(layer.states_weight, 2)
    whole = Weights.of(walks.free.shaped.graph.model, layer.node, walks.free)
    present = Weights.of(walks.model, node, walks.free)
    gates = Gates(layer, whole, present, np.ones(whole.r.shape[2], np.bool_) if kept is None else kept)
    parts = [(part, (Rows(Response()), Rows(Response()))) for part in parts_of(layer)]
    for number, (flags, seen) in enumerate(zip(walks.held_out, walks.seen(layer), strict=True)):
        held_out = flags_of(flags, seen.x.shape[1], walks.free.images(layer.x))
        for part, rows in parts:
            count = math.ceil(effort.needed(gates.inputs(part)) / max(1, walks.images))
            rng = streams.stream(seed, streams.REFIT_ROWS, layer.index, number)
            gates.add(part, rows, seen, held_out, min(1.0, count / len(seen.x)), rng)
    errors, ridges = list[tuple[float, float]](), list[float]()
    for part, rows in parts:
        solved, was, now, ridge = solve(*rows, gates.present(part), gates.inputs(part), effort)
        gates.take(part, solved)
        errors.append((was, now))
        ridges += [] if ridge is None else [ridge]
    before, after = (float(np.mean(column)) for column in zip(*errors, strict=True))
    if any(now < was for was, now in errors):
        if not gates.store(node, walks.coefficients.store):
            return Refit(layer.name, before, before, None)
        walks.present.rewired([layer.index])
    return Refit(layer.name, before, after, max(ridges, default=None))
