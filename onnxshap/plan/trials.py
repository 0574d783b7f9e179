"""What plans lose once the layers behind the cut are refitted, on images that were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap import streams
from onnxshap.calibrate import run_all, site_means
from onnxshap.core import Array, BoolArray, Dataset
from onnxshap.masking import Means
from onnxshap.payoffs import Fidelity
from onnxshap.repair import refit
from onnxshap.rewrite import Removal
from onnxshap.tracing import Traced

FITTED = 0.6
"""Share of the images that is fitted on; the others judge."""
FEWEST_FITTED = 20
"""Images to fit on, below which what is seen of a plan on the others is noise."""


@dataclass(frozen=True)
class Trials:
    """Images to fit on and to judge by.

    Attributes:
        free: the model for evaluation.
        fitted, judged: the images.
        means: of what removed channels leave behind, on the fitted ones.
        seed: of the refit.
    """

    free: Traced
    fitted: Dataset
    judged: Dataset
    means: Means
    seed: int
    _fidelity: Fidelity

    @classmethod
    def of(
        cls, free: Traced, data: Dataset, seed: int, original: Traced | None = None, payoff: str | None = None
    ) -> Trials:
        """Divide images by a seed.

        Args:
            free: the model for evaluation.
            data: calibration images.
            seed: of the division.
            original: whose outputs are compared with, where the model was cut before; None = the model's own.
            payoff: what compares them, one of `payoffs.UNLABELLED`; None = what fits.
        """
        order = streams.stream(seed, streams.TRIALS).permutation(len(data))
        split = max(FEWEST_FITTED, round(FITTED * len(data)))
        fitted, judged = (data.take(np.sort(part)) for part in (order[:split], order[split:]))
        own = run_all(free, free.shaped.graph.model, judged)
        reference = own if original is None else run_all(original, original.shaped.graph.model, judged)
        fidelity = Fidelity.of(reference, free.outputs, own, payoff)
        return cls(free, fitted, judged, site_means(free, fitted), seed, fidelity)

    def loss(self, outputs: Sequence[Array]) -> float:
        """Return what outputs for the judged images lose: KL divergence of class scores, else the relative error."""
        return max(0.0, self._fidelity.lost(outputs))

    def removal(self, keep: Mapping[str, BoolArray]) -> Removal:
        """Return what a plan takes out of the model, which stays in its form for evaluation."""
        return Removal(self.free, self.free, keep, self.means)

    def of_plan(self, keep: Mapping[str, BoolArray]) -> float:
        """Return what the model loses that is cut by a plan and refitted."""
        model, _ = refit(self.removal(keep), self.fitted, self.seed)
        return self.loss(run_all(self.free, model, self.judged))
