"""Whether torch computes a model as onnxruntime does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from onnxshap.core import Dataset
from onnxshap.distill.feeds import all_laid_out, as_given, as_tensors, pieces, rows_held, run_session
from onnxshap.distill.torchgraph import CPU, TorchGraph
from onnxshap.errors import ModelError
from onnxshap.tracing import Traced

_TOLERANCE = 1e-3
COMPARED = 8
"""Images that torch and onnxruntime are compared on."""


def check_model(free: Traced, data: Dataset) -> None:
    """Refuse a model that cannot be tuned: told before anything else takes its time.

    Raises:
        ModelError: what runs many images at a time does not run, an op has no equal in torch, or none that gives the
            same on the first images, or no weights are tuned.
    """
    if not free.shaped.free_batch and free.batch > 1:
        raise ModelError(
            f"distillation runs as many images as memory lets it, the model takes {free.batch}; use --repair lstsq"
        )
    model = free.shaped.graph.model
    graph = TorchGraph(model)
    if not graph.behind_layers():
        raise ModelError("distillation tunes weights of float32, the model has none; use --repair lstsq")
    names = [o.name for o in model.graph.output]
    inputs = as_tensors(data.take(slice(0, COMPARED)), CPU)
    check_same(free, model, lambda feeds: graph(all_laid_out(feeds), names), pieces(inputs, rows_held(free, model)))


def check_same(
    free: Traced, model: ModelProto, graph: Callable[[Mapping[str, Tensor]], list[Tensor]],
    pieces: Iterable[Mapping[str, Tensor]],
) -> None:  # fmt: skip
    """Refuse a model that torch does not compute as onnxruntime does.

    Raises:
        ModelError: an output differs.
    """
    session, names = free.backend.session(model), [o.name for o in model.graph.output]
    for feeds in pieces:
        given = as_given(free, feeds)
        with torch.no_grad():
            found = [value.cpu() for value in graph(given)]
        for name, a, b in zip(names, found, run_session(session, given), strict=False):
            x, y = a.numpy().astype(np.float64), b.astype(np.float64)  # truth values have no difference
            size = float(np.abs(y).max(initial=1e-6))
            if x.shape != y.shape or not np.abs(x - y).max(initial=0.0) <= _TOLERANCE * size:
                raise ModelError(f"output {name!r}: torch does not compute what onnxruntime does; use --repair lstsq")
