"""What outputs lose against the original's, whatever the labels say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.core import Array, Payoff
from onnxshap.payoffs.choice import choose


@dataclass(frozen=True)
class Fidelity:
    """Compares outputs with the original's: KL divergence of class scores, else the relative squared error.

    Attributes:
        reference: the original's outputs.
        payoff: the one that fits them without labels.
        best: its mean over the images, of what loses nothing.

    >>> of_codes = Fidelity.of([np.array([[1.0], [3.0]])], ["codes"])
    >>> of_codes.payoff.name, of_codes.lost([np.array([[1.0], [3.0]])])
    ('mse', 0.0)
    """

    reference: Sequence[Array]
    payoff: Payoff
    best: float

    @classmethod
    def of(cls, reference: Sequence[Array], names: Sequence[str], own: Sequence[Array] | None = None) -> Fidelity:
        """Return what compares with outputs of these names; `own` loses nothing, the reference itself if None."""
        payoff = choose(None, reference, None, names)
        return cls(reference, payoff, float(np.mean(payoff(own or reference, reference, None))))

    def lost(self, outputs: Sequence[Array]) -> float:
        """Return what outputs for the same images lose, the mean over them; below 0 where they gain."""
        return self.best - float(np.mean(self.payoff(outputs, self.reference, None)))
