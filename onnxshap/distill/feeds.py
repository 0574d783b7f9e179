"""Images as torch and sessions take them: as tensors, as the model lays them out, as many at a time as memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from onnxshap.backend import Session
from onnxshap.calibrate import bytes_per_image
from onnxshap.core import Array, Dataset
from onnxshap.distill.torchgraph import laid_out
from onnxshap.tracing import Traced

BATCH = 50
"""Images of a step."""


def as_tensors(data: Dataset, device: torch.device) -> dict[str, Tensor]:
    """Return the inputs of images as tensors on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(v)).to(device) for name, v in data.inputs.items()}


def as_given(free: Traced, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs as the model takes them, of images along axis 0."""
    axes = {name: free.shaped.batch_axes.get(name, 0) for name in feeds}
    return {n: v[0] if (axis := axes[n]) is None else v.movedim(0, axis) for n, v in feeds.items()}


def all_laid_out(feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs in the memory layout that torch is fastest with."""
    return {name: laid_out(value) for name, value in feeds.items()}


def images_in(feeds: Mapping[str, Tensor]) -> int:
    """Return how many images inputs hold, which are along axis 0."""
    return len(next(iter(feeds.values())))


def pieces(feeds: Mapping[str, Tensor], rows: int) -> Iterator[dict[str, Tensor]]:
    """Yield images, so many at a time."""
    for start in range(0, images_in(feeds), rows):
        yield {name: value[start : start + rows] for name, value in feeds.items()}


def rows_held(free: Traced, model: ModelProto) -> int:
    """Return how many images of a form of the model memory holds at a time, with gradients."""
    if free.shaped.apart or not free.shaped.free_batch:
        return 1
    held = 2 * sum(bytes_per_image(free, [o for node in model.graph.node for o in node.output]))
    return int(np.clip(free.backend.memory // max(1, held), 1, BATCH))


def run_session(session: Session, feeds: Mapping[str, Tensor]) -> list[Array]:
    """Return what a session gives for tensors, wherever they are."""
    return session.run({name: value.cpu().numpy() for name, value in feeds.items()})
