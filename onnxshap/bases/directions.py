"""The basis in which the first k of n coordinates lose least, whichever k.

Values x with covariance C are read by linear ops, V' x, V float64[n, outputs], S = V V' (a sum over several). Of
all k linear functions of x those that predict the ops' outputs best are the first k of

    x' = D U' C^-1/2 x,        C^1/2 S C^1/2 = U L U',        L descending, D = L^1/2

(reduced-rank regression: Izenman 1975; Eckart and Young 1936). With that scale D an error in x' counts in the ops as
much as it is long, whichever way it points (their S is 1 in the new coordinates): what makes x is one of the layers
that errors of others are summed up over (`methods.recon`). Two computed tensors that are multiplied with each other,
x' y, are the same problem with S = the second moments of y; D = L^1/4 shares the singular values between them, for
errors are made in both.
"""

from __future__ import annotations

import numpy as np

from onnxshap.core import FloatArray

_FLOOR = 1e-5
"""Least eigenvalue of a covariance, in the greatest: what hardly varies is scaled up by no more than its root."""
_LEAST = 1e-8
"""The same of the eigenvalues that the new coordinates are scaled by."""


def principal(covariance: FloatArray, weight: FloatArray, *, product: bool = False) -> FloatArray | None:
    """Return the matrix that gives the new coordinates, float64[n, n]; None where the values are constant or unread.

    Args:
        covariance: C, float64[n, n].
        weight: S, float64[n, n].
        product: whether S is of values that are computed too.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not (np.isfinite(values).all() and np.isfinite(weight).all() and values[-1] > 0):
        return None
    root = np.sqrt(np.maximum(values, _FLOOR * values[-1]))
    half, inverse = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    strengths, turned = np.linalg.eigh(half @ weight @ half)
    if not strengths[-1] > 0:
        return None
    scales = np.maximum(strengths, _LEAST * strengths[-1]) ** (0.25 if product else 0.5)
    signs = np.sign(turned[np.abs(turned).argmax(axis=0), np.arange(len(turned))])  # of a vector either is an answer
    return np.asarray(((scales * signs)[:, None] * turned.T @ inverse)[::-1])
