"""How far two models' outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.core import Array

_LEAST = 1e-2
"""Least magnitude that counts: where numbers of order one are computed with, single precision rounds 1e-6 away, which
is all that shows of a Sigmoid of -36 or of the mean of what a layer norm gives."""


@dataclass(frozen=True)
class Verified:
    """How far the cut model is from its masked twin on real inputs.

    Attributes:
        max_abs_err: largest absolute difference over all outputs.
        rel_err: largest ratio of an output's difference to its largest magnitude, in the cut or the original model;
            no magnitude counts as less than .01.
        images: how many images were compared.
        typical: the median of that ratio over the images.
    """

    max_abs_err: float
    rel_err: float
    images: int
    typical: float


def compare(got: Sequence[Array], wanted: Sequence[Array], natural: Sequence[Array]) -> Verified:
    """Return the errors of outputs against those wanted; infinite where shapes or finiteness differ.

    `natural`, the original's outputs, tell how large outputs usually are: where a hard cut leaves next to nothing of an
    output (a Sigmoid of -20), rounding is not measured against that.
    """
    images = len(wanted[0]) if wanted and wanted[0].ndim else 0
    different = Verified(float("inf"), float("inf"), images, float("inf"))
    worst_abs, ratios = 0.0, np.zeros(max(1, images))
    for a, b, usual in zip(got, wanted, natural, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return different
        if b.dtype.kind not in "fiub" or not b.size:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        if not np.isfinite(y).all() or not np.isfinite(x).all():
            return different
        apart = np.abs(x - y)
        worst_abs = max(worst_abs, float(apart.max()))
        scale = max(float(np.abs(y).max()), float(np.abs(usual.astype(np.float64)).max(initial=0.0)))
        by_image = apart.reshape(images, -1).max(axis=1) if y.ndim and len(y) == images else apart.max()
        ratios = np.maximum(ratios, by_image / max(scale, _LEAST))
    return Verified(worst_abs, float(ratios.max()), images, float(np.median(ratios)))
