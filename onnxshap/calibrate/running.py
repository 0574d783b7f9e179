"""Outputs of a model, or of a form of it, on all images of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto

from onnxshap.backend import Session
from onnxshap.calibrate.feeding import batches, by_image, usual_size
from onnxshap.core import Array, Dataset
from onnxshap.errors import DataError, ModelError
from onnxshap.graph.structure import copied
from onnxshap.tracing import Traced


def run_all(
    traced: Traced,
    model: ModelProto,
    data: Dataset,
    extra: Mapping[str, Array] | None = None,
    *,
    optimize: bool = True,
) -> list[Array]:
    """Return the outputs of `model`, a form of the traced one, on all images.

    Args:
        traced: tells the batch sizes allowed.
        model: what to run.
        data: n images.
        extra: further feeds, the same for every batch (mask rows of 1).
        optimize: let onnxruntime fuse nodes.

    Returns:
        One array an output, [n, ...].

    Raises:
        DataError: an output has no entry for every image.
        ModelError: an output is no tensor.
    """
    session = traced.backend.session(_unnoted(model), optimize=optimize)
    if 0 in session.kinds:
        name = session.outputs[list(session.kinds).index(0)]
        raise ModelError(
            f"output {name!r} is no tensor (a sequence or a map), by which a model cannot be judged; export it "
            "without, or as an array (skl2onnx: zipmap=False)"
        )
    columns = list(zip(*rows_of(traced, session, data, extra), strict=True))
    for name, column in zip(session.outputs, columns, strict=True):
        sizes = list(dict.fromkeys(value.shape[1:] for value in column))
        if len(sizes) > 1:
            raise DataError(
                f"output {name!r} is {list(sizes[0])} for some images and {list(sizes[1])} for others (as many as are "
                "found in them), which cannot be compared; export the model without what selects (NonMaxSuppression), "
                "or give images alike in size"
            )
    return [np.concatenate(column) for column in columns]


def rows_of(
    traced: Traced, session: Session, data: Dataset, extra: Mapping[str, Array] | None = None
) -> Iterator[list[Array]]:
    """Yield the outputs of batches of images, each [images, ...]; the rest is as in `run_all`."""
    for count, feeds in batches(traced, data, usual_size(traced), least=2):  # of one image a Squeeze may take the axis
        rows = traced.shaped.count(feeds)
        outputs = by_image(traced, session.run({**feeds, **(extra or {})}), images=rows)
        for name, value in zip(session.outputs, outputs, strict=True):
            if value.ndim == 0 or len(value) != rows:
                raise DataError(
                    f"output {name!r} has shape {list(value.shape)} for {rows} images, no axis of which is known to be "
                    "theirs; export the model with a free batch that every output has"
                )
        yield [value[:count] for value in outputs]


def _unnoted(model: ModelProto) -> ModelProto:
    """Return a model without the shapes that its exporter noted, which may be those of one batch alone.

    onnxruntime believes them where it fuses nodes, and then takes no other batch.
    """
    if not model.graph.value_info:
        return model
    bare = copied(model)
    del bare.graph.value_info[:]
    return bare
