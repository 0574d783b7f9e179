"""The equations of a ridge regression: as many as it has inputs, or as it has rows where those are fewer.

With penalties P on a diagonal, D = (X'X + P)^-1 C asks for one of two factorisations, that of X'X + P or, by

    (X'X + P)^-1 = P^-1 - P^-1 X' (I + X P^-1 X')^-1 X P^-1,

that of a matrix of rows by rows: a layer behind a Flatten has one row an image, however many inputs.

Source: Woodbury 1950; Hoerl and Kennard 1970 for the ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxshap.blas import with_squares
from onnxshap.core import FloatArray

_BLOCK = 4096
_NUMBERS = 2**19
"""Numbers of float64 that rows are copied to at a time, and the fewest rows, and the inputs from which on sums are
added to in place."""
_FEWEST = 256
_WIDE = 128
_BIAS = 1e-3
"""The penalty of a bias, in that of an input."""
Single = NDArray[np.float32]
Solver = Callable[[FloatArray], FloatArray]
"""C, float64[groups, inputs, outputs], to D of the same shape."""


class System(Protocol):
    """Equations that wait for their penalties."""

    def solver(self, ridge: float) -> Solver:
        """Return what solves them; `ridge` is in units of the mean squared input."""
        ...

    def more(self, before: Sequence[Single], x: Sequence[Single]) -> System:
        """Return the equations with further rows, to the last bit those of all at once; these here are used up.

        Args:
            before: the rows that are there.
            x: those that are added.
        """
        ...


def system(x: Sequence[Single], penalised: int) -> System:
    """Return the equations of rows in pieces float32[groups, rows, inputs], of which the last inputs may be biases.

    Args:
        x: the rows.
        penalised: how many inputs are not biases.
    """
    rows, inputs = sum(piece.shape[1] for piece in x), x[0].shape[2]
    if rows < inputs:
        return _ByRows.of(np.concatenate(x, axis=1), penalised)
    return _ByInputs.of(x, penalised)


def _penalties(squares: FloatArray, penalised: int, ridge: float) -> FloatArray:
    """Return what is added to the diagonal, given what stands there, float64[groups, inputs]."""
    strength = ridge * squares[:, :penalised].mean(axis=1, keepdims=True)
    found = np.full(squares.shape, 1.0) * strength
    found[:, penalised:] *= _BIAS
    return np.asarray(found + (1e-12 * squares.max() + 1e-30))


def _factorised(matrices: FloatArray) -> Solver:
    """Return what solves positive definite equations, float64[groups, n, n], which it overwrites."""
    # turned round they lie as LAPACK wants them, which would copy them otherwise
    factors = [scipy.linalg.cho_factor(one.T, lower=True, overwrite_a=True) for one in matrices]
    return lambda c: np.stack([scipy.linalg.cho_solve(f, one) for f, one in zip(factors, c, strict=True)])


@dataclass(frozen=True)
class _ByInputs:
    """The Gram matrices, float64[groups, inputs, inputs]; the upper triangles are enough."""

    gram: FloatArray
    penalised: int

    @classmethod
    def of(cls, x: Sequence[Single], penalised: int) -> _ByInputs:
        """Sum over the rows."""
        groups, _, inputs = x[0].shape
        return cls(np.zeros((groups, inputs, inputs)), penalised).more((), x)

    def more(self, before: Sequence[Single], x: Sequence[Single]) -> _ByInputs:
        """Go on with the sums."""
        total, (groups, _, inputs) = self.gram, self.gram.shape
        step = max(_FEWEST, min(_BLOCK, _NUMBERS // (groups * inputs)))
        for piece in x:
            for start in range(0, piece.shape[1], step):
                part = piece[:, start : start + step].astype(np.float64)
                if inputs < _WIDE:
                    total += part.transpose(0, 2, 1) @ part
                    continue
                for group, rows in enumerate(part):
                    total[group] = with_squares(total[group], rows)
        return self

    def solver(self, ridge: float) -> Solver:
        """Factorise once."""
        every = self.gram.copy()
        diagonals = np.einsum("gii->gi", every)
        diagonals += _penalties(diagonals, self.penalised, ridge)
        return _factorised(every)


@dataclass(frozen=True)
class _ByRows:
    """The products of rows, float64[groups, rows, rows], of what is penalised and of the biases.

    Attributes:
        x: the rows, float32[groups, rows, inputs].
        squares: float64[groups, inputs], the diagonal of the Gram matrices.
        inner: products over the inputs that are penalised.
        biases: the others.
    """

    x: Single
    squares: FloatArray
    inner: FloatArray
    biases: FloatArray
    penalised: int

    @classmethod
    def of(cls, x: Single, penalised: int) -> _ByRows:
        """Sum over the inputs."""
        inner = np.zeros((len(x), x.shape[1], x.shape[1]))
        for start in range(0, penalised, _BLOCK):
            part = x[:, :, start : min(start + _BLOCK, penalised)].astype(np.float64)
            inner += part @ part.transpose(0, 2, 1)
        last = x[:, :, penalised:].astype(np.float64)
        squares = np.einsum("gri,gri->gi", x, x, dtype=np.float64)
        return cls(x, squares, inner, last @ last.transpose(0, 2, 1), penalised)

    def more(self, before: Sequence[Single], x: Sequence[Single]) -> System:
        """Start anew: every row is multiplied by every other."""
        return system([*before, *x], self.penalised)

    def solver(self, ridge: float) -> Solver:
        """Factorise once."""
        weights = 1 / _penalties(self.squares, self.penalised, ridge)
        every = self.inner * weights[:, :1, None]
        every += self.biases * weights[:, -1:, None]  # nothing, where there are none
        np.einsum("gii->gi", every)[...] += 1
        solve = _factorised(every)

        def solved(c: FloatArray) -> FloatArray:
            found = weights[:, :, None] * c
            blocks = [slice(start, start + _BLOCK) for start in range(0, self.x.shape[2], _BLOCK)]
            seen = np.zeros((*self.x.shape[:2], c.shape[2]))
            for at in blocks:
                seen += self.x[:, :, at].astype(np.float64) @ found[:, at]
            alpha = solve(seen)
            for at in blocks:
                found[:, at] -= weights[:, at, None] * (self.x[:, :, at].astype(np.float64).transpose(0, 2, 1) @ alpha)
            return found

        return solved
