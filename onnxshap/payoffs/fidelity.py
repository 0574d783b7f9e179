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
    def of(
        cls,
        reference: Sequence[Array],
        names: Sequence[str],
        own: Sequence[Array] | None = None,
        payoff: str | None = None,
    ) -> Fidelity:
        """Return what compares with the original's outputs.

        Args:
            reference: the original's outputs.
            names: theirs, for messages.
            own: outputs that lose nothing; None = the reference itself.
            payoff: one of `UNLABELLED`; None = what fits.
        """
        fitted = choose(payoff, reference, None, names)
        return cls(reference, fitted, float(np.mean(fitted(own or reference, reference, None))))

    def lost(self, outputs: Sequence[Array]) -> float:
        """Return what outputs for the same images lose, the mean over them; below 0 where they gain."""
        return self.best - float(np.mean(self.payoff(outputs, self.reference, None)))
