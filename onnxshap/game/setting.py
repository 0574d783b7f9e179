"""What the games of all groups share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxshap.core import Array, Dataset, Payoff
from onnxshap.masking import Means
from onnxshap.tracing import Traced


@dataclass(frozen=True)
class Setting:
    """What the games of all groups share.

    Attributes:
        traced: the model, its batch free if it can be (`calibrate.free_batch`).
        data: calibration images.
        payoff: outputs -> worth.
        reference: the original outputs on the data.
        means: what removed channels leave behind; empty = zeros.
    """

    traced: Traced
    data: Dataset
    payoff: Payoff
    reference: Sequence[Array]
    means: Means = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Bytes of activations that a game keeps at a time, about."""
        return self.traced.backend.memory
