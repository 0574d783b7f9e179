"""How much of a model is run again where activations of all images do not fit into the memory."""

from __future__ import annotations

from collections.abc import Iterable

from onnxshap.calibrate.feeding import batches
from onnxshap.core import Dataset
from onnxshap.cost import node_macs
from onnxshap.tracing import Traced
from onnxshap.walk import Room, Walk


def runs_past(traced: Traced, names: Iterable[str], data: Dataset, memory: int) -> tuple[float, int]:
    """Return how many runs of the model it takes to stop at some tensors one after the other, and what is held at most.

    Nothing is run for it.

    Args:
        traced: the model.
        names: the tensors.
        data: the images.
        memory: bytes that may be held.

    Returns:
        The runs, in multiply-accumulates of one of the whole; bytes.
    """
    nodes, stops = traced.shaped.graph.nodes, sorted(set(names), key=lambda n: traced.shaped.producers.get(n, -1))
    work = dict(zip((node.output[0] for node in nodes), node_macs(traced.shaped, traced.labels), strict=True))
    feeds = [part for _, part in batches(traced, data, len(data))]
    walk = Walk(traced, traced.shaped.graph.model, feeds, Room(memory))
    taken, most = 0.0, 0
    for stop in stops:
        taken += sum(float(work.get(node.output[0], 0.0)) for node in walk.imagined([stop]))
        most = max(most, walk.taken)
    return taken / max(1.0, sum(map(float, work.values()))), most
