"""Label-free tuning of a cut model against the original, after the refit.

The cut model is evaluated in torch straight from its ONNX graph (`torchgraph`); its floating-point initializers are
tuned by Adam so that its outputs, and what its layers answer for on the way (`repair.targets`), become the original's
on the calibration inputs and on mixtures, shifts and mirror images of them, which the original labels itself. A part
of the images is held out, from the refit before it too: the weights kept are those of the last epoch, unless another is
clearly better there, and the start's where these are no better, so the held-out score is never worse than before.

Needs the extra `onnxshap[distill]` (torch); nothing else imports it.

Source: Hinton et al. 2015 (soft targets), Ba and Caruana 2014 (class scores), Romero et al. 2015 (intermediate
targets), Shazeer and Stern 2018 (steps by a tensor's size).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from onnxshap import payoffs, streams
from onnxshap.backend import Backend, threads_of
from onnxshap.calibrate import by_image
from onnxshap.core import Array, Dataset, FloatArray, IntArray, Payoff
from onnxshap.distill.checking import COMPARED, check_same
from onnxshap.distill.feeds import BATCH, all_laid_out, as_given, as_tensors, images_in, pieces, rows_held
from onnxshap.distill.mixing import Mixer
from onnxshap.distill.ops import clipped
from onnxshap.distill.teachers import OrtTeacher, TorchTeacher
from onnxshap.distill.torchgraph import CPU, TorchGraph
from onnxshap.distill.tuning import SECONDS, Tuning, divided
from onnxshap.graph import equal_copies, extract
from onnxshap.graph.weights import set_values
from onnxshap.masking import Means
from onnxshap.repair.targets import Layer, find_layers
from onnxshap.repair.transfer import transfer
from onnxshap.rewrite import cut
from onnxshap.tracing import Keep, Traced

EPOCHS = 180
FEWER = 20
"""Images of a step where time allows less than half of the epochs: steps are what is missing then. MobileNetV2 learns
in 30 epochs of 20 what it learns in 60 of 50."""
RATES = (0.03, 0.01, 0.003, 1e-3, 3e-4, 1e-4)
"""First steps of a weight, over the root mean square of its tensor: weights of other sizes need other steps. The first
is taken that a few steps do no harm with which its decay would not mend: MobileNetV2 bears a tenth of what small nets
learn best with."""
_TRIED = 20
"""Steps that a rate is tried for."""
_JUDGED = 2
"""Batches that are judged by."""
_HARM, _RUIN = 1.4, 3.0
"""The loss after these over the one before, above which a rate is too large, and at which its trial ends at once."""
_LEAST = 1e-3
"""What counts as the root mean square of tensors that have less."""
SCORES = 10.0
"""Weight of the class scores, less their mean, as a share of their variance: they tell about classes too that no image
is of, which the divergence unlearns where images are few."""
HINTS = 20.0
"""Weight of the intermediate targets (mean share of variance) beside the outputs."""
HINTED = 2**25
"""Numbers of the intermediate targets that a step compares: those of all its images, or of some where images are large.
To compare numbers costs more than to compute them, and early layers have many positions to learn from in an image."""
_TIMED = 3


def distill(
    traced: Traced,
    free: Traced,
    keep: Keep,
    means: Means,
    model: ModelProto,
    data: Dataset,
    seed: int = 0,
    epochs: int | None = None,
    seconds: float = SECONDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    payoff: str | None = None,
) -> tuple[ModelProto, Tuning]:
    """Return the cut model (before `graph.finish`) with its weights tuned, and what that did.

    Args:
        traced, free: the original, as in its file and for evaluation.
        keep: the plan.
        means: as in `repair.refit`.
        model: the refitted model (`repair.refit`), which has seen none of the images that are held out here.
        data: calibration images; labels are not read.
        seed: of the images held out (`tuning.divided`), the order and the mixtures.
        epochs, seconds: how long at most; the schedule is set by what epochs take. Default: `EPOCHS`, and in proportion
            more where there are more seconds than usual.
        progress: told after every epoch.
        payoff: which outputs are class scores, one of `payoffs.UNLABELLED`; None = what fits.

    Raises:
        DataError: fewer than 25 images.
        ModelError: the model cannot be evaluated in torch exactly.
    """
    if epochs is None:
        epochs = int(EPOCHS * max(1.0, seconds / SECONDS))
    student = transfer(model, cut(free, keep, means))
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, _threads(threads_of(free.backend)):
        tuner = _Tuner(free, find_layers(traced, student, traced.alive(keep)), student, keep, data, seed, payoff)
        weights, tuning = tuner.run(epochs, seconds, progress)
    for item in student.graph.initializer:
        if item.name in weights:
            set_values(item, weights[item.name])
    return transfer(student, cut(traced, keep, means)), tuning


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch take some threads, 0: as many as it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(backend: Backend) -> torch.device:
    """Return where the weights are tuned: on a CUDA device where the model runs on one and torch can use it."""
    return torch.device("cuda") if backend.on_device and torch.cuda.is_available() else CPU


def seen_alike(mirrored: Sequence[Array], straight: Sequence[Array], columns: int = 3) -> bool:
    """Return whether a model sees in mirror images what it sees in the images: in clothes, not in letters.

    Outputs that are images themselves are mirrored back. Alike is what is apart by less than half of what the outputs
    of unrelated images are (two variances), over all outputs.

    Args:
        mirrored, straight: outputs for the mirror images and for the images.
        columns: the axis of the columns in images.
    """
    apart = []
    for a, b in zip(mirrored, straight, strict=True):
        if b.dtype.kind == "f":
            a = np.flip(a, columns) if a.ndim == 4 else a
            apart.append(float(np.mean((a.astype(np.float64) - b) ** 2)) / max(float(np.var(b)), 1e-12))
    return bool(apart) and float(np.mean(apart)) < 1.0


@dataclass(frozen=True)
class _Part:
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


class _Tuner:
    def __init__(
        self, free: Traced, layers: Sequence[Layer], student: ModelProto, keep: Keep, data: Dataset, seed: int,
        payoff: str | None = None,
    ) -> None:  # fmt: skip
        self._free, self._data, self._seed = free, data, seed
        self._rng = streams.stream(seed, streams.TUNING)
        self._train, self._held_out = divided(len(data), seed)
        source = free.shaped.graph.model
        self._outputs = [o.name for o in source.graph.output]
        hints = list({layer.target: layer for layer in layers if layer.target not in self._outputs}.values())
        self._live = free.alive(keep)
        numbers = sum(int(np.prod(free.shaped.shapes[layer.target])) for layer in hints) // free.batch
        hinted = int(np.clip(HINTED // max(1, numbers), 1, BATCH))
        self._rows = rows_held(free, student)
        outputs = range(len(self._outputs))
        parts = [(outputs, hints, BATCH)] if hinted == BATCH else [(outputs, [], BATCH), ([], hints, hinted)]
        self._device, self._steps = device_of(free.backend), 0
        self._parts = [self._part(o, h, images) for o, h, images in parts]
        self._graph = TorchGraph(student, equal_copies(student, free.shaped.graph.origin), self._device)
        inputs = self._tensors(data.take(self._held_out))
        compared = list(self._pieces(inputs, min(COMPARED, len(self._held_out))))
        check_same(free, student, lambda feeds: self._graph(all_laid_out(feeds), self._outputs), compared)
        if self._device != CPU:
            check_same(free, source, self._parts[0].teacher, compared)
        reference = self._outputs_of(inputs)
        fitted = payoffs.choose(payoff, reference, None, self._outputs)
        every: Sequence[Payoff] = fitted.parts if isinstance(fitted, payoffs.Joint) else [fitted]
        self._classes = {one.output: one for one in every if isinstance(one, payoffs.KL)}
        self._columns = {k: axis for one in every if isinstance(one, payoffs.MSE) for k, axis in one.columns.items()}
        self._scale = [self._variance(k, r) for k, r in enumerate(reference)]
        self._spread = self._spreads(inputs)
        last = [name for name, spec in free.shaped.specs.items() if spec.channels == 3]
        turned = {n: v.flip(2 if n in last else 3) if v.ndim == 4 else v for n, v in inputs.items()}
        mirrors = seen_alike(self._outputs_of(turned), reference, 2 if last else 3)
        self._mixer = Mixer(self._rng, mirrors, self._device, last)

    def _part(self, outputs: Sequence[int], hints: Sequence[Layer], images: int) -> _Part:
        """Return some outputs and targets, and the original up to them.

        On a device torch runs that too, so that nothing has to be copied to and fro; on a processor onnxruntime is
        faster.
        """
        source, made = self._free.shaped.graph.model, self._free.shaped.kinds
        names = [*(self._outputs[k] for k in outputs), *(layer.target for layer in hints)]
        kinds = {i.name: i.type.tensor_type.elem_type for i in source.graph.input}
        original = extract(source, kinds, {n: made.get(n, 1) for n in names})
        if self._device != CPU:
            return _Part(TorchTeacher(TorchGraph(original, device=self._device), names), names, outputs, hints, images)
        return _Part(OrtTeacher(self._free.backend.session(original)), names, outputs, hints, images)

    def _tensors(self, data: Dataset) -> dict[str, Tensor]:
        return as_tensors(data, self._device)

    def _led(self, values: Sequence[Tensor], part: _Part) -> list[Tensor]:
        """Return a part's outputs with the images on axis 0, wherever the model has them."""
        return by_image(self._free, values[: len(part.outputs)], part.outputs, torch.moveaxis)

    def _outputs_of(self, feeds: Mapping[str, Tensor]) -> list[Array]:
        """Return the original's outputs, batch by batch."""
        count = len(self._held_out)
        part = self._parts[0]
        every = (self._led(part.teacher(as_given(self._free, piece)), part) for piece in self._pieces(feeds, count))
        parts = [[value.cpu().numpy() for value in values] for values in every]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _variance(self, number: int, output: Array) -> Tensor:
        """Return that of an output, of its class scores less their mean where it holds such, or of each column."""
        values = torch.from_numpy(output)
        if number in self._classes:
            values = _centred(_log_p(values, self._classes[number]))
        if (axis := self._columns.get(number)) is None:
            found = values.double().var(correction=0)
        else:
            found = values.double().var(dim=[k for k in range(values.ndim) if k != axis], correction=0, keepdim=True)[0]
        return found.clamp(min=max(1e-12, 1e-8 * float(found.max()))).float().to(self._device)

    def _spreads(self, feeds: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the variance of every intermediate target on the images held out."""
        found = {}
        for part in self._parts:
            count = min(part.images, images_in(feeds))
            moments = np.zeros((len(part.hints), 3))
            for piece in self._pieces(feeds, count):
                values = part.teacher(as_given(self._free, piece))[len(part.outputs) :]
                for moment, value, layer in zip(moments, values, part.hints, strict=True):
                    x = self._hint(value, layer).double()
                    moment += x.numel(), float(x.sum()), float((x * x).sum())
            for (size, total, square), layer in zip(moments, part.hints, strict=True):
                found[layer.target] = max(float(square / size - (total / size) ** 2), 1e-12)
        return found

    def _hint(self, value: Tensor, layer: Layer) -> Tensor:
        """Return what of an intermediate target of the original is left in the cut model."""
        for axis, places in self._live.places(layer.target, value.shape):
            value = value.index_select(axis, torch.from_numpy(places).to(value.device))
        return clipped(value, *layer.flat)

    def _losses(self, feeds: Mapping[str, Tensor], part: _Part) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of the outputs, one an image, and of class scores and hints as shares of variance."""
        given, count = as_given(self._free, feeds), len(part.outputs)
        wanted = part.teacher(given)
        found = self._graph(all_laid_out(given), part.names)
        outputs, scores, hints = (torch.zeros(size, device=self._device) for size in (images_in(feeds), (), ()))
        for k, a, b in zip(part.outputs, self._led(found, part), self._led(wanted, part), strict=True):
            if not a.is_floating_point():
                continue
            if k in self._classes:
                p, q = (_log_p(x, self._classes[k]) for x in (b, a))
                outputs = outputs + _by_image((p.exp() * (p - q)).sum(1))
                scores = scores + ((_centred(p) - _centred(q)) ** 2).mean() / self._scale[k]
            else:
                outputs = outputs + _by_image((a - b) ** 2 / self._scale[k])
        for a, b, layer in zip(found[count:], wanted[count:], part.hints, strict=True):
            b = self._hint(b, layer)
            hints = hints + ((clipped(a, *layer.flat) - b) ** 2).mean() / self._spread[layer.target]
        return outputs, scores, hints / max(1, len(part.hints))

    def run(self, epochs: int, seconds: float, progress: Callable[[int, int], None]) -> tuple[dict[str, Array], Tuning]:
        """Tune; return the weights kept by initializer name.

        The last epoch's, where the rate is lowest, unless others are better on held-out images by more than those can
        err: the least of many noisy figures is a lucky epoch, not the best one. The start's, unless what was learnt is
        better by a standard error: a few images tell little.
        """
        torch.manual_seed(self._seed)
        started = time.perf_counter()
        deadline = started + seconds
        highest = self._rate(started + seconds / 3)
        optimizer = self._optimizer()
        before = best = last = self._judge()
        number, kept = 0, self._graph.arrays()
        start = kept
        spent = time.perf_counter() - started
        seconds -= spent
        allowed = seconds * self._steps * BATCH / (spent * len(self._train))  # epochs, until it is known better
        planned = max(1, min(epochs, int(allowed)))
        size = BATCH if 2 * allowed >= epochs else FEWER
        steps = math.ceil(len(self._train) / size)
        started, epoch = time.perf_counter(), 0
        while epoch < planned:
            order = self._rng.permutation(self._train)
            for step in range(steps):
                if time.perf_counter() > deadline:  # an epoch takes longer than all that there is
                    planned = epoch + 1
                    break
                done = (epoch + step / steps) / planned
                rate = highest * min(1.0, 20 * done + 0.05) * 0.5 * (1 + math.cos(math.pi * done))
                self._step(optimizer, rate, self._mixed(order[step * size : (step + 1) * size]))
            epoch += 1
            last = self._judge()
            if last.mean() < best.mean():
                number, best, kept = epoch, last, self._graph.arrays()
            if epoch >= _TIMED:  # a machine may get busier meanwhile
                planned = max(epoch, min(epochs, int(seconds / (time.perf_counter() - started) * epoch)))
            progress(epoch, planned)
        if last.mean() < before.mean() and not _above(last, best, 2):
            number, best, kept = epoch, last, self._graph.arrays()
        if number and not _above(before, best, 1):
            number, best, kept = 0, before, start
        return kept, Tuning(epoch, number, float(before.mean()), float(best.mean()), self._device.type)

    def _optimizer(self) -> torch.optim.Adam:
        """Return a new one of the weights of layers and what is behind them, less the constants of a formula.

        Those are single numbers (bounds, epsilons), and what inputs go through before the first layer: their scales.
        """
        behind = self._graph.behind_layers()
        sized = [
            {"params": [w], "size": max(_LEAST, float(w.detach().square().mean().sqrt()))}
            for name, w in zip(self._graph.names, self._graph.weights, strict=True)
            if w.numel() > 1 and name in behind
        ]
        return torch.optim.Adam(sized, fused=self._device.type == "cuda")  # there a step is as slow as it has kernels

    def _step(self, optimizer: torch.optim.Adam, rate: float, feeds: Mapping[str, Tensor]) -> None:
        self._steps += 1
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        optimizer.zero_grad()
        for loss in self._totals(feeds):
            loss.backward()
        optimizer.step()

    def _totals(self, feeds: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield what sums up to the loss that is tuned on some images, as many of them at a time as memory allows."""
        for part in self._parts:
            count = min(part.images, images_in(feeds))
            for piece in self._pieces(feeds, count):
                outputs, scores, hints = self._losses(piece, part)
                yield (outputs.mean() + SCORES * scores + HINTS * hints) * (images_in(piece) / count)

    def _pieces(self, feeds: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
        """Yield the first `count` images, as many at a time as memory allows."""
        return pieces({name: value[:count] for name, value in feeds.items()}, self._rows)

    def _rate(self, latest: float) -> float:
        """Return the highest rate that does no lasting harm, untried once it is `latest`; weights stay as they are."""
        judged = [self._mixed(self._rng.permutation(self._train)[:BATCH]) for _ in range(_JUDGED)]
        start = [w.detach().clone() for w in self._graph.weights]

        def loss() -> float:
            with torch.no_grad():
                return float(np.mean([sum(map(float, self._totals(feeds))) for feeds in judged]))

        before = loss()
        for place, rate in enumerate(RATES, 1):
            optimizer, after, harmless = self._optimizer(), before, False
            for number in range(1, _TRIED + 1):
                if time.perf_counter() > latest:
                    break
                feeds = self._mixed(self._rng.permutation(self._train)[:BATCH])
                self._step(optimizer, rate * min(1.0, 2 * number / _TRIED), feeds)
                if number % (_TRIED // 4) == 0 and not (after := loss()) <= _RUIN * before:
                    break
            else:
                harmless = after <= _HARM * before
            for weight, value in zip(self._graph.weights, start, strict=True):
                weight.data.copy_(value)
            if harmless:
                return rate
            if time.perf_counter() > latest:
                return RATES[min(place, len(RATES) - 1)]
        return RATES[-1]

    def _judge(self) -> FloatArray:
        """Return the held-out losses of the outputs, one an image."""
        parts = []
        with torch.no_grad():
            for piece in self._pieces(self._tensors(self._data.take(self._held_out)), len(self._held_out)):
                outputs, *_ = self._losses(piece, self._parts[0])
                parts.append(outputs.cpu().numpy().astype(np.float64))
        return np.concatenate(parts)

    def _mixed(self, images: IntArray) -> dict[str, Tensor]:
        return self._mixer(self._data.take(images).inputs)


def _log_p(values: Tensor, classes: payoffs.KL) -> Tensor:
    """Return log probabilities [n, classes] of class scores [n, classes], logits or probabilities."""
    return torch.log(values.clamp_min(1e-12)) if classes.probabilities else torch.log_softmax(values, 1)


def _centred(log_p: Tensor) -> Tensor:
    return log_p - log_p.mean(1, keepdim=True)


def _by_image(values: Tensor) -> Tensor:
    """Return the means over all but the first axis."""
    return values.reshape(len(values), -1).mean(1)


def _above(losses: FloatArray, others: FloatArray, errors: float) -> bool:
    """Return whether losses are above others of the same images by more than some standard errors."""
    apart = losses - others
    return bool(apart.mean() > errors * apart.std() / math.sqrt(len(apart)))
