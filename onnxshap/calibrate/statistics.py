"""Means and covariances of the channels of tensors, over images and positions; means are reduced inside the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxshap.arguments import checked
from onnxshap.calibrate.feeding import activations, batches, fitting
from onnxshap.codes import foldable
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.graph import extract, tensor
from onnxshap.labels import Site
from onnxshap.labels.fixups import give
from onnxshap.masking import SiteKey
from onnxshap.tracing import Traced

_STATISTICS = "onnxshap.statistics."
_POSITIONS = 256
"""Of an image, about as many as covariances are taken over."""
_BATCH = 8
"""Most images that they are taken of at a time, fewer where half of the memory does not hold what they are of."""


def channel_means(
    traced: Traced, data: Dataset, places: Sequence[tuple[str, int]], transform: str = "identity"
) -> dict[tuple[str, int], FloatArray]:
    """Return the mean over images and positions of every channel of some tensors, and over iterations inside loops.

    Args:
        traced: a model whose batch is free, if it can be (`free_batch`).
        data: calibration images.
        places: tensors and their channel axes.
        transform: what is averaged: identity, `abs`, `square`, or `positive` (1 where > 0).

    Returns:
        (tensor, axis) -> float64[n]; none of tensors in a body in a body, whose iterations differ in number.
    """
    todo = [place for place in dict.fromkeys(places) if traced.depth(place[0]) < 2]
    if not todo:
        return {}
    session = traced.backend.session(_averaging(traced, todo, transform))
    sums, total = [np.zeros(traced.shaped.shapes[name][axis]) for name, axis in todo], 0
    for count, feeds in batches(traced, data, fitting(traced, sum)):  # onnxruntime may average all of them in the end
        total += count
        for k, (found, (name, _)) in enumerate(zip(session.run(feeds), todo, strict=True)):
            whole = found.astype(np.float64)
            if traced.depth(name):
                whole = whole.mean(axis=0) if len(whole) else np.zeros(whole.shape[1:])
            sums[k] += whole * count if traced.batch_axis(name) is None else whole[:count].sum(axis=0)
    return {place: s / total for place, s in zip(todo, sums, strict=True)}


def _averaging(traced: Traced, places: Sequence[tuple[str, int]], transform: str) -> ModelProto:
    """Return a model whose outputs are what `channel_means` sums up: [images, n] each, or [n] without images."""
    shaped = traced.shaped
    model = ModelProto()
    model.CopyFrom(shaped.graph.model)
    graph = model.graph
    names, outputs = shaped.graph.names(), dict[str, int]()

    def put(kind: str, inputs: Sequence[str], wish: str, **given: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [made := names.new(wish)], **given))
        return made

    def constant(wish: str, values: Array) -> str:
        graph.initializer.append(tensor(names.new(wish), values))
        return graph.initializer[-1].name

    for number, (name, axis) in enumerate(places):
        base, batch = f"{_STATISTICS}{number}", traced.batch_axis(name)
        source = put("Cast", [name], f"{base}.x", to=TensorProto.FLOAT)
        if transform == "abs":
            source = put("Abs", [source], f"{base}.t")
        elif transform == "square":
            source = put("Mul", [source, source], f"{base}.t")
        elif transform == "positive":
            source = put("Sign", [put("Relu", [source], f"{base}.relu")], f"{base}.t")
        axes = [a for a in range(len(shaped.shapes[name])) if a not in (axis, batch)]
        if axes:
            source = put("ReduceMean", [source], f"{base}.mean", keepdims=0)
            give(graph.node[-1], "axes", axes, partial(constant, f"{base}.mean.axes"), shaped.graph.opset)
        if batch is not None and batch > axis:
            source = put("Transpose", [source], f"{base}.turned", perm=[1, 0])
        outputs[source] = TensorProto.FLOAT
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    return extract(model, kinds, outputs)


def channel_covariances(traced: Traced, data: Dataset, names: Sequence[str]) -> dict[str, FloatArray]:
    """Return the covariance of the channels, on axis 1, of some tensors over images and positions.

    Args:
        traced: a model whose batch is free, if it can be (`free_batch`).
        data: calibration images.
        names: the tensors, channels on axis 1.

    Returns:
        tensor -> float64[channels, channels].
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    rows, sums, products = dict.fromkeys(wanted, 0), dict[str, FloatArray](), dict[str, FloatArray]()
    for _, values in activations(traced, wanted, data, _BATCH, share=2):
        for name, found in values.items():
            flat = found.reshape(*found.shape[:2], -1)
            flat = flat[:, :, :: max(1, flat.shape[2] // _POSITIONS)]
            x = flat.transpose(1, 0, 2).reshape(flat.shape[1], -1).astype(np.float64)
            rows[name] += x.shape[1]
            sums[name] = sums.get(name, 0.0) + x.sum(axis=1)
            products[name] = products.get(name, 0.0) + x @ x.T
    means = {name: sums[name] / rows[name] for name in wanted}
    return {name: products[name] / rows[name] - np.outer(mean, mean) for name, mean in means.items()}


@checked
def site_means(traced: Traced, data: Dataset) -> dict[SiteKey, FloatArray]:
    """Return, for every site whose consumer can take them up, the calibration mean of each channel.

    A branch of an If that the data do not take may give anything; what is not finite there counts as 0.
    """
    sites = _taking(traced)
    means = channel_means(traced, data, [(s.tensor, s.axis) for s in sites])
    found = [((s.node, s.input), means[s.tensor, s.axis]) for s in sites if (s.tensor, s.axis) in means]
    return {key: np.nan_to_num(values, posinf=0.0, neginf=0.0) for key, values in found}


def means_of_sites(traced: Traced, means: Mapping[SiteKey, FloatArray], other: Traced) -> dict[SiteKey, FloatArray]:
    """Return what `site_means` does for another model of the same tensors, or of some of them, from those of one."""
    found = {
        (s.tensor, s.axis): means[s.node, s.input] for s in traced.labels.trace.sites if (s.node, s.input) in means
    }
    return {(s.node, s.input): found[s.tensor, s.axis] for s in _taking(other) if (s.tensor, s.axis) in found}


def _taking(traced: Traced) -> list[Site]:
    """Return the sites whose consumers can take up the means of what is removed there."""
    sites = [s for s in traced.labels.trace.sites if foldable(traced.shaped, s)]
    return [s for s in sites if (traced.labels.units(s.tensor, s.axis) >= 0).any()]
