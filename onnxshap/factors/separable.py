"""The pair of a column and a row whose first r channels lose least, whichever r.

Columns x of what a Conv reads have the covariance C, and the places of a row see what goes together like R (how the
values at places some steps apart correlate, the same for all of them). For errors E of the weight, a matrix of columns
by (places of a row, outputs), the mean square error of the outputs is then that of

    C^1/2 E R^1/2 (R at the places),        so of        C^1/2 W R^1/2 = U S V'

the first r terms are the best r channels (Eckart and Young 1936), and the pair is C^-1/2 U S and V' R^-1/2. Where a
column's values and the places of a row go together otherwise than apart from one another, that is an approximation, and
the refit, which sees the inputs themselves, makes up for what it misses. In these units an error between counts in the
outputs as much as it is long.
"""

from __future__ import annotations

import numpy as np

from onnxshap.core import FloatArray

_FLOOR = 1e-5
"""Least eigenvalue of C and R, in the greatest: what hardly varies is scaled up by no more than its root."""


def separable(
    kernel: FloatArray, covariance: FloatArray, correlation: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a weight as columns and rows, whose product it is, and what each channel between them counts.

    Args:
        kernel: float64[outputs, inputs, height, width].
        covariance: of what a column reads, float64[inputs * height, inputs * height].
        correlation: of the places of a row, float64[width, width].

    Returns:
        columns float64[rank, inputs, height, 1]; rows float64[outputs, rank, 1, width]; energy float64[rank], what the
        outputs' squared error grows by without each, falling.

    >>> rng = np.random.default_rng(0)
    >>> kernel = rng.normal(size=(4, 2, 3, 3))
    >>> columns, rows, energy = separable(kernel, np.eye(6), np.eye(3))
    >>> np.allclose(np.einsum("riho,orjw->oihw", columns, rows), kernel), len(energy)
    (True, 6)
    """
    outputs, inputs, height, width = kernel.shape
    root, unroot = _roots(covariance)
    beside, unbeside = _roots(correlation)
    whole = kernel.transpose(1, 2, 3, 0).reshape(inputs * height, width, outputs)
    seen = np.einsum("cd,dpo,pq->cqo", root, whole, beside, optimize=True).reshape(inputs * height, -1)
    left, strength, right = np.linalg.svd(seen, full_matrices=False)
    columns = (unroot @ left * strength).reshape(inputs, height, -1)
    rows = np.einsum("rqo,qp->rpo", right.reshape(-1, width, outputs), unbeside)
    return columns.transpose(2, 0, 1)[..., None], rows.transpose(2, 0, 1)[:, :, None], strength**2


def _roots(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the root of a symmetric matrix, and that of its inverse."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.sqrt(np.maximum(values, max(_FLOOR * values.max(initial=0.0), 1e-30)))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
