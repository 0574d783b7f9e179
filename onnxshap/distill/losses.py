"""How far an output of the cut model is from the original's: by its class scores, or by squares over the variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxshap import payoffs
from onnxshap.core import Array, Payoff

OutputLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(found, wanted), images on axis 0 -> the losses, one an image, and the loss of class scores beside, one number."""


def losses_of(
    reference: Sequence[Array], outputs: Sequence[str], payoff: str | None, device: torch.device
) -> list[OutputLoss]:
    """Return the loss of every output.

    Args:
        reference: what the original gives on some images, which stand on axis 0.
        outputs: the names of its outputs.
        payoff: which of them are class scores, one of `payoffs.UNLABELLED`; None = what fits.
        device: where losses are computed.
    """
    fitted = payoffs.choose(payoff, reference, None, outputs)
    every: Sequence[Payoff] = fitted.parts if isinstance(fitted, payoffs.Joint) else [fitted]
    classes = {one.output: one for one in every if isinstance(one, payoffs.KL)}
    columns = {k: axis for one in every if isinstance(one, payoffs.MSE) for k, axis in one.columns.items()}
    return [_loss_of(k, values, classes, columns, device) for k, values in enumerate(reference)]


def _loss_of(
    number: int, output: Array, classes: Mapping[int, payoffs.KL], columns: Mapping[int, int], device: torch.device
) -> OutputLoss:
    values = torch.from_numpy(output)
    if number in classes:
        scores = _centred(_log_p(values, classes[number]))
        return ClassLoss(classes[number], _variance(scores, columns.get(number)).to(device))
    return SquaredLoss(_variance(values, columns.get(number)).to(device))


@dataclass(frozen=True)
class ClassLoss:
    """Divergence of class scores; beside it their squared distance, less their means, over their variance."""

    classes: payoffs.KL
    variance: Tensor

    def __call__(self, found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        p, q = (_log_p(x, self.classes) for x in (wanted, found))
        return _by_image((p.exp() * (p - q)).sum(1)), ((_centred(p) - _centred(q)) ** 2).mean() / self.variance


@dataclass(frozen=True)
class SquaredLoss:
    """Squared distance over the variance, of all numbers or of each column."""

    variance: Tensor

    def __call__(self, found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return it; no class scores are lost."""
        return _by_image((found - wanted) ** 2 / self.variance), found.new_zeros(())


def _variance(values: Tensor, columns: int | None) -> Tensor:
    """Return the variance of all numbers, or of each entry of an axis."""
    if columns is None:
        found = values.double().var(correction=0)
    else:
        found = values.double().var(dim=[k for k in range(values.ndim) if k != columns], correction=0, keepdim=True)[0]
    return found.clamp(min=max(1e-12, 1e-8 * float(found.max()))).float()


def _log_p(values: Tensor, classes: payoffs.KL) -> Tensor:
    """Return log probabilities [n, classes] of class scores [n, classes], logits or probabilities."""
    return torch.log(values.clamp_min(1e-12)) if classes.probabilities else torch.log_softmax(values, 1)


def _centred(log_p: Tensor) -> Tensor:
    return log_p - log_p.mean(1, keepdim=True)


def _by_image(values: Tensor) -> Tensor:
    """Return the means over all but the first axis."""
    return values.reshape(len(values), -1).mean(1)
