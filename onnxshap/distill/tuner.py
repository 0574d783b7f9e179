"""Label-free tuning of a cut model against the original, after the refit.

The cut model is evaluated in torch straight from its ONNX graph (`torchgraph`); its floating-point initializers are
tuned by Adam so that its outputs, and what its layers answer for on the way, become the original's (`objective`) on the
calibration inputs and on mixtures, shifts and mirror images of them, which the original labels itself (`mixing`). A
part of the images is held out, from the refit before it too: the weights kept are those of the last epoch, unless
another is clearly better there, and the start's where these are no better, so the held-out score is never worse than
before.

Needs the extra `onnxshap[distill]` (torch); nothing else imports it.

Source: Kingma and Ba 2015 (Adam), Shazeer and Stern 2018 (steps by a tensor's size).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from onnxshap import streams
from onnxshap.backend import threads_of
from onnxshap.core import Array, Dataset, FloatArray, IntArray
from onnxshap.distill.feeds import BATCH
from onnxshap.distill.mixing import Mixer, seen_alike
from onnxshap.distill.objective import Objective
from onnxshap.distill.schedule import Schedule
from onnxshap.distill.tuning import SECONDS, Tuning, divided
from onnxshap.graph.weights import set_values
from onnxshap.repair.targets import find_layers
from onnxshap.repair.transfer import transfer
from onnxshap.rewrite import Removal
from onnxshap.tracing import Traced

EPOCHS = 180
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


def distill(
    removal: Removal,
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
        removal: what is taken out of the original.
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
    tuned, held_out = (data.take(images) for images in divided(len(data), seed))
    free, student = removal.free, transfer(model, removal.evaluated())
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, _threads(threads_of(free.backend)):
        layers = find_layers(removal.traced, student, removal.live)
        objective = Objective(free, layers, student, removal.live, held_out, payoff)
        weights, tuning = Tuner(free, objective, tuned, seed).run(epochs, seconds, progress)
    for item in student.graph.initializer:
        if item.name in weights:
            set_values(item, weights[item.name])
    return transfer(student, removal.in_file()), tuning


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch take some threads, 0: as many as it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Epoch:
    """The weights after an epoch by initializer name, 0 = the start, and their losses for the images held out."""

    number: int
    losses: FloatArray
    weights: dict[str, Array]


class Tuner:
    """Tunes the weights of an objective's student on images.

    Args:
        free: the original for evaluation.
        objective: what is lowered.
        data: the images that are tuned on.
        seed: of their order and their mixtures.
    """

    def __init__(self, free: Traced, objective: Objective, data: Dataset, seed: int) -> None:
        self._objective, self._data, self._seed = objective, data, seed
        self._rng, self._steps = streams.stream(seed, streams.TUNING), 0
        last = [name for name, spec in free.shaped.specs.items() if spec.channels == 3]
        turned = {n: v.flip(2 if n in last else 3) if v.ndim == 4 else v for n, v in objective.held_out.items()}
        mirrors = seen_alike(objective.outputs_of(turned), objective.reference, 2 if last else 3)
        self._mixer = Mixer(self._rng, mirrors, objective.device, last)

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
        start = best = last = self._after(0)
        spent = time.perf_counter() - started
        allowed = (seconds - spent) * self._steps * BATCH / (spent * len(self._data))
        schedule, epoch = Schedule(epochs, seconds - spent, allowed), 0
        while epoch < schedule.planned:
            batches = schedule.batches(self._rng.permutation(len(self._data)))
            for step, images in enumerate(batches):
                if time.perf_counter() > deadline:  # an epoch takes longer than all that there is
                    schedule.end_with(epoch + 1)
                    break
                self._step(optimizer, schedule.rate(highest, epoch + step / len(batches)), self._mixed(images))
            epoch += 1
            last = self._after(epoch)
            best = last if last.losses.mean() < best.losses.mean() else best
            schedule.take(epoch)
            progress(epoch, schedule.planned)
        if last.losses.mean() < start.losses.mean() and not _above(last.losses, best.losses, 2):
            best = last
        if best.number and not _above(start.losses, best.losses, 1):
            best = start
        before, after = (float(one.losses.mean()) for one in (start, best))
        return best.weights, Tuning(epoch, best.number, before, after, self._objective.device.type)

    def _after(self, epoch: int) -> _Epoch:
        return _Epoch(epoch, self._objective.judged(), self._objective.student.arrays())

    def _optimizer(self) -> torch.optim.Adam:
        """Return a new one of the weights of layers and what is behind them, less the constants of a formula.

        Those are single numbers (bounds, epsilons), and what inputs go through before the first layer: their scales.
        """
        student = self._objective.student
        behind = student.behind_layers()
        sized = [
            {"params": [w], "size": max(_LEAST, float(w.detach().square().mean().sqrt()))}
            for name, w in zip(student.names, student.weights, strict=True)
            if w.numel() > 1 and name in behind
        ]
        fused = self._objective.device.type == "cuda"  # there a step is as slow as it has kernels
        return torch.optim.Adam(sized, fused=fused)

    def _step(self, optimizer: torch.optim.Adam, rate: float, feeds: Mapping[str, Tensor]) -> None:
        self._steps += 1
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        optimizer.zero_grad()
        for loss in self._objective.totals(feeds):
            loss.backward()
        optimizer.step()

    def _rate(self, latest: float) -> float:
        """Return the highest rate that does no lasting harm, untried once it is `latest`; weights stay as they are."""
        judged = [self._batch() for _ in range(_JUDGED)]
        weights = self._objective.student.weights
        start = [w.detach().clone() for w in weights]

        def loss() -> float:
            with torch.no_grad():
                return float(np.mean([sum(map(float, self._objective.totals(feeds))) for feeds in judged]))

        before = loss()
        for place, rate in enumerate(RATES, 1):
            optimizer, after, harmless = self._optimizer(), before, False
            for number in range(1, _TRIED + 1):
                if time.perf_counter() > latest:
                    break
                self._step(optimizer, rate * min(1.0, 2 * number / _TRIED), self._batch())
                if number % (_TRIED // 4) == 0 and not (after := loss()) <= _RUIN * before:
                    break
            else:
                harmless = after <= _HARM * before
            for weight, value in zip(weights, start, strict=True):
                weight.data.copy_(value)
            if harmless:
                return rate
            if time.perf_counter() > latest:
                return RATES[min(place, len(RATES) - 1)]
        return RATES[-1]

    def _batch(self) -> dict[str, Tensor]:
        """Return mixtures of some images."""
        return self._mixed(self._rng.permutation(len(self._data))[:BATCH])

    def _mixed(self, images: IntArray) -> dict[str, Tensor]:
        return self._mixer(self._data.take(images).inputs)


def _above(losses: FloatArray, others: FloatArray, errors: float) -> bool:
    """Return whether losses are above others of the same images by more than some standard errors."""
    apart = losses - others
    return bool(apart.mean() > errors * apart.std() / math.sqrt(len(apart)))
