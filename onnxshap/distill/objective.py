"""What tuning lowers: how far a cut model is from the original, by its outputs and by what it gives on the way.

What its layers answer for (`repair.targets`) is compared beside the outputs: intermediate targets, or hints.

Source: Hinton et al. 2015 (soft targets), Ba and Caruana 2014 (class scores), Romero et al. 2015 (hints).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from onnxshap.backend import Backend
from onnxshap.calibrate import by_image
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.distill.checking import COMPARED, check_same
from onnxshap.distill.feeds import BATCH, all_laid_out, as_given, as_tensors, images_in, pieces, rows_held
from onnxshap.distill.losses import losses_of
from onnxshap.distill.ops import clipped
from onnxshap.distill.teachers import OrtTeacher, TorchTeacher
from onnxshap.distill.torchgraph import CPU, TorchGraph
from onnxshap.graph import equal_copies, extract
from onnxshap.labels import Liveness
from onnxshap.repair.targets import Layer
from onnxshap.tracing import Traced

SCORES = 10.0
"""Weight of the class scores, less their mean, as a share of their variance: they tell about classes too that no image
is of, which the divergence unlearns where images are few."""
HINTS = 20.0
"""Weight of the hints (mean share of variance) beside the outputs."""
HINTED = 2**25
"""Numbers of the hints that a step compares: those of all its images, or of some where images are large. To compare
numbers costs more than to compute them, and early layers have many positions to learn from in an image."""


def device_of(backend: Backend) -> torch.device:
    """Return where the weights are tuned: on a CUDA device where the model runs on one and torch can use it."""
    return torch.device("cuda") if backend.on_device and torch.cuda.is_available() else CPU


@dataclass(frozen=True)
class Compared:
    """Tensors that are compared in one run.

    Attributes:
        teacher: the original up to them, on the device of what it is given.
        names: of the tensors, outputs of the model first.
        outputs: of the model, by number.
        hints: intermediate targets, behind the outputs.
        images: of a batch that are run, at most.
    """

    teacher: Callable[[Mapping[str, Tensor]], list[Tensor]]
    names: Sequence[str]
    outputs: Sequence[int]
    hints: Sequence[Layer]
    images: int


class Objective:
    """The loss of a cut model, as a function of its weights.

    Attributes:
        device: where it is computed.
        student: the cut model, whose weights are tuned.
        parts: what is compared, the outputs in the first.
        held_out: images that judge.
        reference: the original's outputs for these.
    """

    def __init__(
        self,
        free: Traced,
        layers: Sequence[Layer],
        model: ModelProto,
        live: Liveness,
        held_out: Dataset,
        payoff: str | None = None,
    ) -> None:
        """Take over a model, and what is the scale of its losses from images held out.

        Args:
            free: the original for evaluation.
            layers: what they answer for are the hints.
            model: the cut model (`rewrite.cut`).
            live: which positions of every axis it has.
            held_out: images that judge.
            payoff: which outputs are class scores, one of `payoffs.UNLABELLED`; None = what fits.

        Raises:
            ModelError: torch cannot evaluate the model exactly.
        """
        self._free, self._live, self._rows = free, live, rows_held(free, model)
        self.device = device_of(free.backend)
        source = free.shaped.graph.model
        self._outputs = [o.name for o in source.graph.output]
        self.parts = self._parts(layers)
        self.student = TorchGraph(model, equal_copies(model, free.shaped.graph.origin), self.device)
        self.held_out = self.tensors(held_out)
        compared = list(self._pieces(self.held_out, min(COMPARED, len(held_out))))
        check_same(free, model, lambda feeds: self.student(all_laid_out(feeds), self._outputs), compared)
        if self.device != CPU:
            check_same(free, source, self.parts[0].teacher, compared)
        self.reference = self.outputs_of(self.held_out)
        self._losses_of = losses_of(self.reference, self._outputs, payoff, self.device)
        self._spread = self._spreads()

    def _parts(self, layers: Sequence[Layer]) -> list[Compared]:
        """Return what is compared: in one run, where as many numbers of the hints as outputs' images are affordable."""
        free, outputs = self._free, range(len(self._outputs))
        hints = list({layer.target: layer for layer in layers if layer.target not in self._outputs}.values())
        numbers = sum(int(np.prod(free.shaped.shapes[layer.target])) for layer in hints) // free.batch
        hinted = int(np.clip(HINTED // max(1, numbers), 1, BATCH))
        if hinted == BATCH:
            return [self._part(outputs, hints, BATCH)]
        return [self._part(outputs, [], BATCH), self._part([], hints, hinted)]

    def _part(self, outputs: Sequence[int], hints: Sequence[Layer], images: int) -> Compared:
        """Return some outputs and hints, and the original up to them.

        On a device torch runs that too, so that nothing has to be copied to and fro; on a processor onnxruntime is
        faster.
        """
        source, made = self._free.shaped.graph.model, self._free.shaped.kinds
        names = [*(self._outputs[k] for k in outputs), *(layer.target for layer in hints)]
        kinds = {i.name: i.type.tensor_type.elem_type for i in source.graph.input}
        original = extract(source, kinds, {n: made.get(n, 1) for n in names})
        if self.device != CPU:
            teacher = TorchTeacher(TorchGraph(original, device=self.device), names)
            return Compared(teacher, names, outputs, hints, images)
        return Compared(OrtTeacher(self._free.backend.session(original)), names, outputs, hints, images)

    def tensors(self, data: Dataset) -> dict[str, Tensor]:
        """Return the inputs of images as tensors where the losses are computed."""
        return as_tensors(data, self.device)

    def outputs_of(self, feeds: Mapping[str, Tensor]) -> list[Array]:
        """Return the original's outputs, with the images on axis 0."""
        part = self.parts[0]
        given = (as_given(self._free, piece) for piece in self._pieces(feeds, images_in(feeds)))
        every = [[value.cpu().numpy() for value in self._led(part.teacher(one), part)] for one in given]
        return [np.concatenate(column) for column in zip(*every, strict=True)]

    def totals(self, feeds: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield what sums up to the loss that is tuned on some images, as many of them at a time as memory allows."""
        for part in self.parts:
            count = min(part.images, images_in(feeds))
            for piece in self._pieces(feeds, count):
                outputs, scores, hints = self._losses(piece, part)
                yield (outputs.mean() + SCORES * scores + HINTS * hints) * (images_in(piece) / count)

    def judged(self) -> FloatArray:
        """Return the losses of the outputs for the images held out, one an image."""
        with torch.no_grad():
            pieces_ = self._pieces(self.held_out, images_in(self.held_out))
            found = [self._losses(piece, self.parts[0])[0] for piece in pieces_]
            return np.concatenate([losses.cpu().numpy().astype(np.float64) for losses in found])

    def _losses(self, feeds: Mapping[str, Tensor], part: Compared) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of the outputs, one an image, and of class scores and hints as shares of variance."""
        given, count = as_given(self._free, feeds), len(part.outputs)
        wanted = part.teacher(given)
        found = self.student(all_laid_out(given), part.names)
        outputs, scores, hints = (torch.zeros(size, device=self.device) for size in (images_in(feeds), (), ()))
        for k, a, b in zip(part.outputs, self._led(found, part), self._led(wanted, part), strict=True):
            if a.is_floating_point():
                lost, beside = self._losses_of[k](a, b)
                outputs, scores = outputs + lost, scores + beside
        for a, b, layer in zip(found[count:], wanted[count:], part.hints, strict=True):
            b = self._hint(b, layer)
            hints = hints + ((clipped(a, *layer.flat) - b) ** 2).mean() / self._spread[layer.target]
        return outputs, scores, hints / max(1, len(part.hints))

    def _led(self, values: Sequence[Tensor], part: Compared) -> list[Tensor]:
        """Return a part's outputs with the images on axis 0, wherever the model has them."""
        return by_image(self._free, values[: len(part.outputs)], part.outputs, torch.moveaxis)

    def _hint(self, value: Tensor, layer: Layer) -> Tensor:
        """Return what of an intermediate target of the original is left in the cut model."""
        for axis, places in self._live.places(layer.target, value.shape):
            value = value.index_select(axis, torch.from_numpy(places).to(value.device))
        return clipped(value, *layer.flat)

    def _spreads(self) -> dict[str, float]:
        """Return the variance of every hint on the images held out."""
        found = {}
        for part in self.parts:
            count = min(part.images, images_in(self.held_out))
            moments = np.zeros((len(part.hints), 3))
            for piece in self._pieces(self.held_out, count):
                values = part.teacher(as_given(self._free, piece))[len(part.outputs) :]
                for moment, value, layer in zip(moments, values, part.hints, strict=True):
                    x = self._hint(value, layer).double()
                    moment += x.numel(), float(x.sum()), float((x * x).sum())
            for (size, total, square), layer in zip(moments, part.hints, strict=True):
                found[layer.target] = max(float(square / size - (total / size) ** 2), 1e-12)
        return found

    def _pieces(self, feeds: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
        """Yield the first `count` images, as many at a time as memory allows."""
        return pieces({name: value[:count] for name, value in feeds.items()}, self._rows)
