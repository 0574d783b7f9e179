"""Ridge regression toward present weights, on stored rows, with responses that may be flat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxshap.core import Array, FloatArray
from onnxshap.errors import DataError
from onnxshap.repair.moments import Moments, pooled_scale
from onnxshap.repair.systems import Single, system

_GAIN = 0.01
"""Share of the held-out error by which another round has to lower it."""
FEWEST_IMAGES = 5
"""One of them is held out."""
_BLOCK = 4096
"""Rows of a product of matrices at a time."""
_NUMBERS = 2**16
"""Numbers that are worked on one by one at a time: in float64 they stay in a core's cache from step to step."""
_LARGE = 1e30
"""Products up to which float32 holds sums of them."""
_JOINED = 2**26
"""Bytes of rows that may be there twice for a moment."""
_CHANNELS = 2**22
"""Bytes of float64 that moments are taken of at a time."""
MAX_COEFFICIENTS = 6_000
"""Inputs of a layer, times taps, above which it is fitted on fewer rows than it has inputs: its Gram matrix would not
fit."""
_MOST = 4_000
"""Rows of such a layer."""
_ROUNDING = 1e-12
"""Of what an output is worth squared: a variance of less is what float32 leaves of a constant, which has none."""


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

    def of(self, u: FloatArray, addend: Array | None) -> FloatArray:
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

    def seen(self, t: FloatArray) -> FloatArray:
        """Return t as the reader sees it, in its place."""
        np.clip(t, *self.flat, out=t)
        return t

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
        wanted: floats[groups, rows, outputs] pieces: what the response should be. They are stored as they are given,
            and computed with in float64.
        addend: the same, what is added on the way; empty = nothing.
    """

    response: Response
    x: list[Single] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)
    addend: list[Array] = field(default_factory=list)
    _given: tuple[FloatArray, list[Single]] | None = None

    def add(self, x: Single, wanted: Array, addend: Array | None = None) -> None:
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
        pieces: list[Array] = [*self.x, *self.wanted, *self.addend]
        return all(bool(np.isfinite(piece).all()) for piece in pieces)

    def plus(self, other: Rows) -> Rows:
        """Return the rows of both."""
        made = Rows(self.response, self.x + other.x, self.wanted + other.wanted, self.addend + other.addend)
        if self._given is not None:
            coefficients, found = self._given
            made._given = coefficients, found + other.given(coefficients)
        return made

    def joined(self) -> Rows:
        """Return the rows in one piece, unless they are too many to be there twice: many small products cost more."""
        if len(self.x) < 2 or sum(piece.nbytes for piece in self.x) > _JOINED:
            return self
        addend: list[Array] = [np.concatenate(self.addend, axis=1)] if self.addend else []
        return Rows(self.response, [np.concatenate(self.x, axis=1)], [np.concatenate(self.wanted, axis=1)], addend)

    def pieces(self) -> list[tuple[Single, Array, Array | None]]:
        """Return (x, wanted, addend) pieces."""
        addends: list[Array | None] = list(self.addend) or [None] * len(self.x)
        return list(zip(self.x, self.wanted, addends, strict=True))

    def given(self, coefficients: FloatArray) -> list[Single]:
        """Return x @ coefficients, float32[groups, rows, outputs] pieces; those asked for last are kept."""
        if self._given is None or self._given[0] is not coefficients:
            self._given = coefficients, [_product(x, coefficients) for x in self.x]
        return self._given[1]

    def error(self, coefficients: FloatArray, mean: FloatArray | None = None) -> float:
        """Return the mean squared error of [groups, inputs, outputs] as the reader sees it, over the variance.

        Of what is constant to float32's rounding, over the square of a millionth of it.

        Args:
            coefficients: what gives the outputs.
            mean: float64[groups, 1, outputs], what the variance is about; None = the mean of these rows.
        """
        total, spread, energy, response = 0.0, 0.0, 0.0, self.response
        mean = self.mean() if mean is None else mean
        for x, wanted, addend in self.pieces():
            given = _product(x, coefficients)
            for at in _parts(wanted.shape):
                seen = response.seen(_double(wanted[:, at]))
                wrong = response.seen(response.of(_double(given[:, at]), None if addend is None else addend[:, at]))
                wrong -= seen
                total += float(np.square(wrong, out=wrong).sum())
                spread += float(np.square(np.subtract(seen, mean, out=wrong), out=wrong).sum())
                energy += float(np.square(seen, out=wrong).sum())
        return total / max(spread, _ROUNDING * energy, 1e-30)

    def mean(self) -> FloatArray:
        """Return the mean over the rows of what is wanted, as the reader sees it: float64[groups, 1, outputs]."""
        groups, _, outputs = self.wanted[0].shape
        total = np.zeros((groups, 1, outputs))
        for wanted in self.wanted:
            for at in _parts(wanted.shape):
                part = _double(wanted[:, at])
                total += self.response.seen(part).sum(axis=1, keepdims=True)
        return total / max(1, len(self))

    def matched(self, present: FloatArray, penalised: int) -> FloatArray:
        """Return coefficients scaled, and biases shifted, to give every output the mean and the variance wanted.

        Args:
            present: float64[groups, inputs, outputs].
            penalised: how many inputs are not biases; of those that are every row has one.
        """
        response, factors, shifts = self.response, list[FloatArray](), list[FloatArray]()
        scale, shift = (np.broadcast_to(v, present[:, :1].shape) for v in (response.scale, response.shift))
        for at in _channels(present.shape[2], sum(wanted.size for wanted in self.wanted)):
            part, moments = replace(response, scale=scale[:, :, at], shift=shift[:, :, at]), Moments()
            for given, (_, wanted, addend) in zip(self.given(present), self.pieces(), strict=True):
                moments.add(
                    _by_row(part.of(_double(given[:, :, at]), None)), _by_row(_double(wanted[:, :, at])),
                    None if addend is None else _by_row(_double(addend[:, :, at])),
                )  # fmt: skip
            factors.append(factor := pooled_scale([moments]))
            shifts.append(moments.shift(factor))
        own, mean = (
            np.concatenate([v.reshape(len(present), 1, -1) for v in values], axis=2) for values in (factors, shifts)
        )
        found, moved = np.asarray(present * own), own * response.shift + mean - response.shift
        found[:, penalised:] += moved / response.scale
        return found

    def cross(
        self, present: FloatArray, coefficients: FloatArray | None, before: FloatArray | None = None
    ) -> FloatArray:
        """Return inputs x (needed - present outputs), float64[groups, inputs, outputs].

        Args:
            present: the coefficients that the ridge pulls to.
            coefficients: those whose flat outputs count as right; None = aim at the wanted values themselves.
            before: the same of other rows, to which it is added; in its place.
        """
        total, response = np.zeros(present.shape) if before is None else before, self.response
        for given, (x, wanted, addend) in zip(self.given(present), self.pieces(), strict=True):
            tried = None if coefficients is None else _product(x, coefficients)
            for start in range(0, x.shape[1], _BLOCK):
                at = slice(start, start + _BLOCK)
                rest = np.empty(wanted[:, at].shape)
                for part in _parts(rest.shape, start):
                    aim, added = _double(wanted[:, part]), None if addend is None else _double(addend[:, part])
                    if tried is not None:
                        aim = response.projected(response.of(_double(tried[:, part]), added), aim)
                    own = slice(part.start - start, part.stop - start)
                    np.subtract(response.needed(aim, added), given[:, part], out=rest[:, own])
                total += _crossed(x[:, at], rest)
        return total


def _by_row(values: FloatArray) -> FloatArray:
    """Return [groups, rows, outputs] as [rows, groups x outputs]."""
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def _parts(shape: Sequence[int], first: int = 0) -> Iterator[slice]:
    """Yield pieces of the rows of [groups, rows, outputs] that are worked on at a time; the first has that number."""
    groups, rows, outputs = shape
    step = max(1, _NUMBERS // max(1, groups * outputs))
    for start in range(first, first + rows, step):
        yield slice(start, min(start + step, first + rows))


def _largest(values: Array) -> float:
    """Return the largest absolute value, 0 of none."""
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def _crossed(x: Single, rest: FloatArray) -> FloatArray:
    """Return x^T rest; in float32, like the inputs, where its numbers hold the sums."""
    large = max(_largest(x), 1.0) * max(_largest(rest), 1.0)
    dtype = np.float32 if large < _LARGE else np.float64
    return np.asarray(x.transpose(0, 2, 1).astype(dtype, copy=False) @ rest.astype(dtype), np.float64)


def _product(x: Single, coefficients: FloatArray) -> Single:
    """Return x @ coefficients; in float32, like the inputs, which is all that differences of responses need."""
    return np.asarray(x @ coefficients.astype(np.float32))


def _double(values: Array) -> FloatArray:
    """Return a copy in float64."""
    return np.array(values, np.float64)


def _channels(outputs: int, numbers: int) -> Iterator[slice]:
    """Yield pieces of the outputs' axis, of so many numbers in all, that are taken at a time: no less than two each.

    Sums over rows of one output alone round otherwise.
    """
    count = min(max(1, outputs // 2), -(-8 * numbers // _CHANNELS))
    bounds = np.linspace(0, outputs, max(1, count) + 1).astype(int).tolist()
    yield from (slice(start, end) for start, end in itertools.pairwise(bounds))


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
    judge, mean = _judge(train, held_out)
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
        final = equations.more(train.x, held_out.x).solver(best)
        found = present + final(held_out.cross(present, None, cross))
        both = train.plus(held_out)
        for _ in range(rounds):
            found = present + final(both.cross(present, found))
    return found, before, after, best


def harm(train: Rows, held_out: Rows, exact: FloatArray, rounded: FloatArray) -> float:
    """Return by how much the error grows as coefficients are rounded; arguments as for `solve`."""
    judge, mean = _judge(train, held_out)
    return judge.error(rounded, mean) - judge.error(exact, mean)


def _judge(train: Rows, held_out: Rows) -> tuple[Rows, FloatArray]:
    """Return the rows that tell of an error, and the mean that their variance is about."""
    judge = held_out if len(held_out) else train
    return judge, judge.mean() if len(judge) > 1 else train.mean()  # one row alone does not vary


def require_images(count: int) -> None:
    """Refuse too few images.

    Raises:
        DataError: fewer than 5.
    """
    if count < FEWEST_IMAGES:
        raise DataError(f"lstsq needs at least {FEWEST_IMAGES} images, there are {count}; give more, or --repair fold")
