"""Ridge regression toward present weights, on stored rows, with responses that may be flat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxshap.core import FloatArray
from onnxshap.errors import DataError
from onnxshap.repair.moments import Moments, pooled_scale
from onnxshap.repair.systems import Single, system

_GAIN = 0.01
"""Share of the held-out error by which another round has to lower it."""
FEWEST_IMAGES = 5
"""One of them is held out."""
_BLOCK = 4096
_LARGE = 1e30
"""Products up to which float32 holds sums of them."""
_JOINED = 2**26
"""Bytes of rows that may be there twice for a moment."""
MAX_COEFFICIENTS = 6_000
"""Inputs of a layer, times taps, above which it is fitted on fewer rows than it has inputs: its Gram matrix would not
fit."""
_MOST = 4_000
"""Rows of such a layer."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on a layer.

    Attributes:
        rows: patches it is fitted on, about; more where a layer has more coefficients.
        ridges: candidates, in units of the mean squared input.
        rounds: most rounds of fitting and projecting where responses are flat.
        again: whether the held-out rows join in at the end.
    """

    rows: int
    ridges: tuple[float, ...]
    rounds: int
    again: bool

    def needed(self, inputs: int) -> int:
        """Return the rows for a layer with so many inputs."""
        if inputs > MAX_COEFFICIENTS:
            return min(self.rows, _MOST)
        return max(self.rows, (3 if self.again else 2) * inputs)


FULL = Effort(20_000, (1e-4, 1e-3, 1e-2, 1e-1, 1.0), 8, True)
QUICK = Effort(5_000, (1e-2,), 1, False)
"""To compare widths by, not to keep."""


@dataclass(frozen=True)
class Refit:
    """What the repair did to one layer.

    Attributes:
        node: the layer's name.
        before, after: mean squared error of what it answers for on held-out images, over the variance.
        ridge: the ridge chosen; None = none helped: its outputs' means and variances were matched where that did
            (`after` below `before`), else it is as it was.
    """

    node: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Response:
    """What becomes of a layer's output u: t = scale u + shift + addend, read by what is flat outside of `flat`."""

    scale: FloatArray | float = 1.0
    shift: FloatArray | float = 0.0
    flat: tuple[float, float] = (-math.inf, math.inf)

    def of(self, u: FloatArray, addend: FloatArray | None) -> FloatArray:
        """Return t."""
        t = u * self.scale + self.shift
        return t if addend is None else t + addend

    def needed(self, t: FloatArray, addend: FloatArray | None) -> FloatArray:
        """Return the u that gives t."""
        u = t if addend is None else t - addend
        return (u - self.shift) / self.scale

    @property
    def bent(self) -> bool:
        """Whether there is a flat part."""
        return self.flat != (-math.inf, math.inf)

    def error(self, t: FloatArray, wanted: FloatArray) -> float:
        """Return the summed squared error as the reader sees it."""
        return float(((np.clip(t, *self.flat) - np.clip(wanted, *self.flat)) ** 2).sum())

    def projected(self, t: FloatArray, wanted: FloatArray) -> FloatArray:
        """Return the wanted values, the flat ones replaced by the nearest flat values to t."""
        low, high = self.flat
        return np.where(wanted <= low, np.minimum(t, low), np.where(wanted >= high, np.maximum(t, high), wanted))


@dataclass
class Rows:
    """Rows of a grouped regression.

    Attributes:
        response: what becomes of the outputs.
        x: float32[groups, rows, inputs] pieces.
        wanted: float64[groups, rows, outputs] pieces: what the response should be.
        addend: the same, what is added on the way; empty = nothing.
    """

    response: Response
    x: list[Single] = field(default_factory=list)
    wanted: list[FloatArray] = field(default_factory=list)
    addend: list[FloatArray] = field(default_factory=list)

    def add(self, x: Single, wanted: FloatArray, addend: FloatArray | None = None) -> None:
        """Add rows."""
        self.x.append(x)
        self.wanted.append(wanted)
        if addend is not None:
            self.addend.append(addend)

    def __len__(self) -> int:
        return sum(piece.shape[1] for piece in self.x)

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        pieces: list[Single | FloatArray] = [*self.x, *self.wanted, *self.addend]
        return all(bool(np.isfinite(piece).all()) for piece in pieces)

    def plus(self, other: Rows) -> Rows:
        """Return the rows of both."""
        return Rows(self.response, self.x + other.x, self.wanted + other.wanted, self.addend + other.addend)

    def joined(self) -> Rows:
        """Return the rows in one piece, unless they are too many to be there twice: many small products cost more."""
        if len(self.x) < 2 or sum(piece.nbytes for piece in self.x) > _JOINED:
            return self
        addend = [np.concatenate(self.addend, axis=1)] if self.addend else []
        return Rows(self.response, [np.concatenate(self.x, axis=1)], [np.concatenate(self.wanted, axis=1)], addend)

    def pieces(self) -> list[tuple[Single, FloatArray, FloatArray | None]]:
        """Return (x, wanted, addend) pieces."""
        addends: list[FloatArray | None] = list(self.addend) or [None] * len(self.x)
        return list(zip(self.x, self.wanted, addends, strict=True))

    def error(self, coefficients: FloatArray, mean: FloatArray | None = None) -> float:
        """Return the mean squared error of [groups, inputs, outputs] as the reader sees it, over the variance.

        Args:
            coefficients: what gives the outputs.
            mean: float64[groups, 1, outputs], what the variance is about; None = the mean of these rows.
        """
        total, spread = 0.0, 0.0
        mean = self.mean() if mean is None else mean
        for x, wanted, addend in self.pieces():
            total += self.response.error(self.response.of(_product(x, coefficients), addend), wanted)
            spread += float(((np.clip(wanted, *self.response.flat) - mean) ** 2).sum())
        return total / max(spread, 1e-30)

    def mean(self) -> FloatArray:
        """Return the mean over the rows of what is wanted, as the reader sees it: float64[groups, 1, outputs]."""
        every = np.concatenate([np.clip(wanted, *self.response.flat) for wanted in self.wanted], axis=1)
        return np.asarray(every.mean(axis=1, keepdims=True))

    def matched(self, present: FloatArray, penalised: int) -> FloatArray:
        """Return coefficients scaled, and biases shifted, to give every output the mean and the variance wanted.

        Args:
            present: float64[groups, inputs, outputs].
            penalised: how many inputs are not biases; of those that are every row has one.
        """
        moments, response = Moments(), self.response
        for x, wanted, addend in self.pieces():
            given = response.of(_product(x, present), None)
            moments.add(_by_row(given), _by_row(wanted), None if addend is None else _by_row(addend))
        factor = pooled_scale([moments])
        own, mean = (values.reshape(len(present), 1, -1) for values in (factor, moments.shift(factor)))
        found, moved = present * own, own * response.shift + mean - response.shift
        found[:, penalised:] += moved / response.scale
        return found

    def cross(self, present: FloatArray, coefficients: FloatArray | None) -> FloatArray:
        """Return inputs x (needed - present outputs), float64[groups, inputs, outputs].

        Args:
            present: the coefficients that the ridge pulls to.
            coefficients: those whose flat outputs count as right; None = aim at the wanted values themselves.
        """
        total = np.zeros(present.shape)
        for x, wanted, addend in self.pieces():
            aim = wanted
            if coefficients is not None:
                aim = self.response.projected(self.response.of(_product(x, coefficients), addend), wanted)
            rest = self.response.needed(aim, addend) - _product(x, present)
            for start in range(0, x.shape[1], _BLOCK):
                block = slice(start, start + _BLOCK)
                total += _crossed(x[:, block], rest[:, block])
        return total


def _by_row(values: FloatArray) -> FloatArray:
    """Return [groups, rows, outputs] as [rows, groups x outputs]."""
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def _crossed(x: Single, rest: FloatArray) -> FloatArray:
    """Return x^T rest; in float32, like the inputs, where its numbers hold the sums."""
    large = max(float(np.abs(x).max(initial=0)), 1.0) * max(float(np.abs(rest).max(initial=0)), 1.0)
    dtype = np.float32 if large < _LARGE else np.float64
    return np.asarray(x.transpose(0, 2, 1).astype(dtype, copy=False) @ rest.astype(dtype), np.float64)


def _product(x: Single, coefficients: FloatArray) -> FloatArray:
    """Return x @ coefficients; in float32, like the inputs, which is all that differences of responses need."""
    return np.asarray(x @ coefficients.astype(np.float32), np.float64)


def solve(
    train: Rows, held_out: Rows, present: FloatArray, penalised: int, effort: Effort = FULL
) -> tuple[FloatArray, float, float, float | None]:
    """Return new coefficients, the held-out errors before and after, and the ridge chosen (None: no ridge helped).

    Args:
        train, held_out: rows; without held-out ones the training rows choose.
        present: float64[groups, inputs, outputs], the last inputs may be a bias.
        penalised: how many inputs are not the bias.
        effort: how much is spent.

    What the ridge pulls to are the present coefficients, scaled and shifted per output where that alone lowers the
    held-out error: with inputs gone they give too little of everything, which few rows leave as it is.

    Where a row holds Inf or NaN (what a mask of minus infinity is added to) errors are NaN, and coefficients stay.
    """
    if not (train.finite and held_out.finite):
        return present, math.nan, math.nan, None
    train, held_out = train.joined(), held_out.joined()
    judge = held_out if len(held_out) else train
    mean = judge.mean() if len(judge) > 1 else train.mean()  # one row alone does not vary
    before = start = judge.error(present, mean)
    matched = train.matched(present, penalised)
    if (error := judge.error(matched, mean)) < before:
        present, start = matched, error
    equations, cross = system(train.x, penalised), train.cross(present, None)
    found, rounds, after, best = present, 0, math.inf, effort.ridges[0]
    for ridge in effort.ridges:
        trial = present + equations.solver(ridge)(cross)
        if (error := judge.error(trial, mean)) < after:
            found, after, best = trial, error, ridge
    if train.response.bent:
        solver, trial = equations.solver(best), found
        for number in range(1, effort.rounds + 1):
            trial = present + solver(train.cross(present, trial))
            error = judge.error(trial, mean)
            if not error < (1 - _GAIN) * after:
                break
            found, rounds, after = trial, number, error
    if not after < start:
        return present, before, start, None
    if effort.again:
        both = train.plus(held_out)
        final = system(both.x, penalised).solver(best)
        found = present + final(both.cross(present, None))
        for _ in range(rounds):
            found = present + final(both.cross(present, found))
    return found, before, after, best


def require_images(count: int) -> None:
    """Refuse too few images.

    Raises:
        DataError: fewer than 5.
    """
    if count < FEWEST_IMAGES:
        raise DataError(f"lstsq needs at least {FEWEST_IMAGES} images, there are {count}; give more, or --repair fold")
