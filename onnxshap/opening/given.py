"""What a job is given: a model, data, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxshap import streams
from onnxshap.backend import OrtBackend
from onnxshap.core import Dataset
from onnxshap.data import DataLike
from onnxshap.errors import DataError
from onnxshap.evaluation import Evaluation
from onnxshap.graph import read
from onnxshap.opening.reading import ModelLike, calibration, open_model
from onnxshap.opening.written import check_outputs
from onnxshap.tracing import Traced

FEWEST_DIVIDED = 40
"""Images of which two fifths may be held out."""


@dataclass(frozen=True)
class Given:
    """The arguments of a job that say what it reads and writes; `api.prune` tells what they are."""

    model: ModelLike
    data: DataLike | None
    labels: str | Path | None = None
    eval_data: DataLike | None = None
    payoff: str | Callable[..., object] | None = None
    seed: int = 0
    backend: OrtBackend | None = None
    input_shapes: Mapping[str, Sequence[int | None]] | None = None
    output: str | Path | None = None

    def open(self) -> tuple[Traced, Dataset]:
        """Return the traced model and calibration data, once it is sure that the output replaces nothing that is read.

        Raises:
            ModelError, DataError, OnnxshapError: as `reading.open_model` and `written.check_outputs`.
        """
        model = self.model
        if self.output is not None:
            model = model if isinstance(model, Traced) else read(model)
            sources = {"data": self.data, "labels": self.labels, "eval_data": self.eval_data}
            check_outputs({"output": self.output}, model, sources)
        return open_model(
            model, self.data, labels=self.labels, seed=self.seed, backend=self.backend,
            input_shapes=self.input_shapes, own=callable(self.payoff),
        )  # fmt: skip

    def divide(self, traced: Traced, data: Dataset, dividing: str | None = None) -> tuple[Dataset, Dataset]:
        """Return the images to work with, and those to judge by.

        Args:
            traced: the model.
            data: calibration images; they judge too, where `eval_data` is None.
            dividing: what cannot judge by the images that it worked with: two fifths of them are held out then.

        Raises:
            DataError: the data do not fit the model, or are too few to divide.
        """
        if self.eval_data is not None:
            return data, calibration(traced, self.eval_data, seed=self.seed)
        return (data, data) if dividing is None else _divided(data, self.seed, dividing)

    def judged(self, dividing: str | None = None) -> tuple[Traced, Dataset, Evaluation]:
        """Return the traced model, the images to work with, and the original on those that judge.

        Raises:
            ModelError, DataError, OnnxshapError: as `open`, `divide` and `Evaluation.of`.
        """
        traced, data = self.open()
        data, held_out = self.divide(traced, data, dividing)
        return traced, data, Evaluation.of(traced, held_out, self.payoff)


def _divided(data: Dataset, seed: int, what: str) -> tuple[Dataset, Dataset]:
    if len(data) < FEWEST_DIVIDED:
        if data.source == "random" and data.labels is None:
            raise DataError(
                f"no data: {what} judges by images that nothing else sees, and random inputs tell nothing of what is "
                f"lost; give --data, at least {FEWEST_DIVIDED} images, or --eval-data"
            )
        raise DataError(
            f"{data.source}: {what} holds two fifths of the images out; there are {len(data)}, give at least "
            f"{FEWEST_DIVIDED}, or --eval-data"
        )
    order = streams.stream(seed, streams.HELD_OUT).permutation(len(data))
    split = 3 * len(data) // 5
    kept, held_out = (data.take(np.sort(part)) for part in (order[:split], order[split:]))
    return kept, replace(held_out, source=f"{data.source}, held out")
