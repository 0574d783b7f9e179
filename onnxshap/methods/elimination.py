"""Backward elimination: which inputs of ridge regressions can go, the cheapest first.

A layer computes Y = X W. With the inputs R gone, ridge regression toward the present weights leaves, for the best refit
of the others,

    E(R) = min over D with D_R = -W_R of  tr(D' (G + lambda I) D) - lambda |W_R|^2,    G = X'X of centred X
         = tr(W_R' [(H_RR)^-1] W_R) - lambda |W_R|^2,                                  H = (G + lambda I)^-1

Removing the block c of inputs next costs tr(w_c' (H_cc)^-1 w_c) - lambda |W_c|^2, w being the weights as refitted so
far; then w -= H_.c (H_cc)^-1 w_c and H -= H_.c (H_cc)^-1 H_c. (the inverse of the smaller matrix). Prices read the
diagonal blocks of H and of Q = w w' alone. With H_cc = L L' and Z = H_.c L'^-1 the removal is

    H -= Z Z',    w -= Z A,    A = L^-1 w_c,    Q -= Z Y' + Y Z',    Y = w A' - Z A A' / 2

so one Gram matrix, one inversion and n downdates are all there is to it. Of w Q alone is needed: where a layer has more
outputs than inputs, another square root of it stands for w.

Source: Hassibi and Stork 1993 for the downdates. Differs: blocks, prices after the ridge of our own refit, diagonal
blocks by Z and Y, downdates put off and made many at once, of H in one triangle.
Cost: p (p + 4 k) t a block of t of p inputs, k = outputs, p at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from onnxshap.blas import with_squares
from onnxshap.core import BoolArray, FloatArray, IntArray

_WIDTH = 128
"""Columns of Z that are put off at most, but for the last block."""
_SHRINK = 0.75


@dataclass
class _Blocks:
    """The diagonal blocks of units that have equally many inputs, always up to date.

    Attributes:
        units: int64[k].
        inputs: int64[k, t], rows of the present matrices.
        gone: bool[k, t], inputs that went with another unit.
        inverse: float64[k, t, t], of H; of inputs that are gone those of the identity.
        products: float64[k, t, t], of Q; zeros there.
        spent: float64[k, t], lambda |W|^2; zeros there.
    """

    units: IntArray
    inputs: IntArray
    gone: BoolArray
    inverse: FloatArray
    products: FloatArray
    spent: FloatArray

    @property
    def prices(self) -> FloatArray:
        """What removing each unit next would add to the error, float64[k]."""
        if self.inputs.shape[1] == 1:
            return np.asarray((self.products / self.inverse)[:, 0, 0] - self.spent[:, 0])
        solved = np.linalg.solve(self.inverse, self.products)
        return np.asarray(np.trace(solved, axis1=1, axis2=2) - self.spent.sum(axis=1))

    def update(self, z: FloatArray, y: FloatArray) -> None:
        """Take a removal in, given Z and Y float64[p, columns]."""
        own, other = z[self.inputs], y[self.inputs]
        own[self.gone] = other[self.gone] = 0
        self.inverse -= own @ own.mT
        crossed = own @ other.mT
        self.products -= crossed + crossed.mT

    def leave(self, removed: IntArray) -> None:
        """Let inputs of the present matrices cost nothing any more."""
        unit, place = np.nonzero(np.isin(self.inputs, removed) & ~self.gone)
        self.gone[unit, place] = True
        for blocks in (self.inverse, self.products):
            blocks[unit, place] = blocks[unit, :, place] = 0
        self.inverse[unit, place, place] = 1
        self.spent[unit, place] = 0

    def drop(self, unit: int) -> None:
        """Take a unit out."""
        left = self.units != unit
        if not left.all():
            self.units, self.inputs, self.gone = self.units[left], self.inputs[left], self.gone[left]
            self.inverse, self.products, self.spent = self.inverse[left], self.products[left], self.spent[left]


class BlockRegression:
    """Outputs of a layer as a function of its inputs, of which blocks are removed one after the other."""

    def __init__(self, gram: FloatArray, weights: FloatArray, columns: Sequence[IntArray], ridge: float) -> None:
        """Invert once.

        Args:
            gram: float64[p, p], of centred inputs.
            weights: float64[p, m], the present ones.
            columns: unit -> the inputs that go with it; an input may go with several units.
            ridge: lambda, what is added to the diagonal.
        """
        self._gram, self._weights = gram, weights
        self._inverse, self._root = _inverse(gram, ridge), _root(weights)
        self._columns = [np.asarray(c, np.int64) for c in columns]
        self._alive = np.ones(len(gram), np.bool_)
        self._place = np.arange(len(gram))  # input -> row of the present matrices
        self._blocks = self._diagonal(ridge * (weights**2).sum(axis=1))
        self._shared = sum(map(len, self._columns)) > len(np.unique(np.concatenate(self._columns)))
        self._prices: FloatArray | None = None
        self._start()

    def _diagonal(self, spent: FloatArray) -> list[_Blocks]:
        sizes, found = np.array([len(c) for c in self._columns]), []
        for size in np.unique(sizes[sizes > 0]):
            units = np.flatnonzero(sizes == size)
            at = np.stack([self._columns[unit] for unit in units])
            rows, columns = at[:, :, None], at[:, None, :]
            inverse = self._inverse[np.minimum(rows, columns), np.maximum(rows, columns)]
            gone, own = np.zeros(at.shape, np.bool_), self._root[at]
            found.append(_Blocks(units, at, gone, inverse, own @ own.mT, spent[at]))
        return found

    def _start(self) -> None:
        """Begin to put removals off."""
        widest = max((block.inputs.shape[1] for block in self._blocks), default=0)
        self._z = np.zeros((len(self._inverse), _WIDTH + widest))
        self._a = np.zeros((_WIDTH + widest, self._root.shape[1]))
        self._width = 0

    def _rows(self, at: IntArray) -> FloatArray:
        """Return some rows of H as it was when it was brought up to date."""
        found, columns = self._inverse[at], self._inverse[:, at].T
        return np.where(np.arange(len(self._inverse)) < at[:, None], columns, found)

    def price(self, units: IntArray) -> FloatArray:
        """Return what removing each of some units next would add to the error."""
        if self._prices is None:
            self._prices = np.zeros(len(self._columns))
            for block in self._blocks:
                self._prices[block.units] = block.prices
        return self._prices[units]

    def remove(self, unit: int) -> None:
        """Remove the inputs of a unit."""
        gone = self._columns[unit]
        gone = gone[self._alive[gone]]
        if not len(gone):
            return
        at, z, a = self._place[gone], self._z[:, : self._width], self._a[: self._width]
        rows, own = self._rows(at) - z[at] @ z.T, self._root[at] - z[at] @ a
        # one small inverse and products: LAPACK shares many right-hand sides of a triangle among threads, badly
        undo, _ = lapack.dtrtri(np.linalg.cholesky(rows[:, at]), lower=1)
        new_z, new_a = undo @ rows, undo @ own
        new_y = new_a @ self._root.T - (new_a @ a.T) @ z.T - 0.5 * (new_a @ new_a.T) @ new_z
        self._alive[gone] = False
        self._prices = None
        for block in self._blocks:
            block.drop(unit)
            if self._shared:
                block.leave(at)
            block.update(new_z.T, new_y.T)
        self._z[:, self._width : self._width + len(at)] = new_z.T
        self._a[self._width : self._width + len(at)] = new_a
        self._width += len(at)
        if self._width >= _WIDTH:
            self._settle()

    def _settle(self) -> None:
        """Bring the matrices up to date, and drop what has gone once that is much."""
        z = self._z[:, : self._width]
        self._inverse = with_squares(self._inverse, z.T, -1.0)
        self._root -= z @ self._a[: self._width]
        live = np.flatnonzero(self._alive)
        if len(live) < _SHRINK * len(self._inverse):
            kept = self._place[live]
            self._inverse, self._root = self._inverse[np.ix_(kept, kept)], self._root[kept]
            moved = np.zeros(len(z), np.int64)
            moved[kept] = self._place[live] = np.arange(len(live))
            for block in self._blocks:
                block.inputs = moved[block.inputs]
        self._start()

    def weights(self, without: int | None = None) -> FloatArray:
        """Return the refitted weights float64[p, m], zero where inputs are gone; of one unit more if asked for."""
        self._settle()
        live = np.flatnonzero(self._alive)
        inverse = self._rows(self._place[live])[:, self._place[live]]
        if without is not None:
            more = np.isin(live, self._columns[without])
            own = inverse[np.ix_(more, more)]
            inverse = inverse - inverse[:, more] @ np.linalg.solve(own, inverse[more])
            live, inverse = live[~more], inverse[np.ix_(~more, ~more)]
        gone = np.setdiff1d(np.arange(len(self._alive)), live)
        found = np.zeros_like(self._weights)
        found[live] = self._weights[live] + inverse @ (self._gram[np.ix_(live, gone)] @ self._weights[gone])
        return found


def _inverse(gram: FloatArray, ridge: float) -> FloatArray:
    """Return the upper triangle of the inverse of a Gram matrix with something added to its diagonal.

    Raises:
        LinAlgError: the sum is not positive definite.
    """
    found = gram.copy()
    np.einsum("ii->i", found)[...] += ridge
    factor, failed = lapack.dpotrf(found.T, lower=1, overwrite_a=1)  # turned round, it is in place
    if failed:
        raise np.linalg.LinAlgError("a Gram matrix with its ridge is not positive definite")
    half, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return np.asarray(half.T)


def _root(weights: FloatArray) -> FloatArray:
    """Return a matrix of no more columns than rows whose product with itself is that of the weights: its own array."""
    if weights.shape[1] <= len(weights):
        return weights.copy()
    return np.asarray(np.linalg.qr(weights.T, mode="r")).T.copy()


def eliminate(problems: Sequence[BlockRegression], fixed: FloatArray) -> FloatArray:
    """Return the error reached when each unit went, float64[n]: greedily, the cheapest unit first.

    Args:
        problems: the layers that are refitted; their state is used up.
        fixed: float64[n], what a unit costs elsewhere, whatever else goes.
    """
    phi = np.empty(len(fixed))
    left = np.arange(len(fixed))
    total = 0.0
    while len(left):
        prices = fixed[left] + sum(p.price(left) for p in problems)
        best = int(np.argmin(prices))
        total += max(0.0, float(prices[best]))
        phi[left[best]] = total
        for problem in problems:
            problem.remove(int(left[best]))
        left = np.delete(left, best)
    return phi
