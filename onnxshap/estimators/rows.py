"""The rows that every estimator is made of: built in blocks, evaluated in large batches, averaged over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol, assert_never, runtime_checkable

import numpy as np

from onnxshap.core import CoalitionMatrix, FloatArray, Game, ImageIndex, IntArray, Values

ROWS_PER_CALL = 4096
FLOATS_PER_CALL = 2**23
"""32 MiB of coalitions: the bound that counts above 2048 units."""

NO_UNITS = Values(np.zeros(0), np.zeros(0))
"""The values of a group without units: nothing to evaluate, so no game is called."""

Reduce = Literal["mean", "mean+2std"]
"""How values per image become one value: their mean, or the mean plus two (population) standard deviations."""


def rows_per_call(n_units: int) -> int:
    """Return the most rows that one call of a game gets."""
    return max(1, min(ROWS_PER_CALL, FLOATS_PER_CALL // max(1, n_units)))


def image_blocks(n_images: int, rows_per_image: int, n_units: int) -> Iterator[slice]:
    """Yield consecutive slices of the images, each as many whole images as fit into one call, at least one."""
    size = max(1, rows_per_call(n_units) // max(1, rows_per_image))
    for start in range(0, n_images, size):
        yield slice(start, min(start + size, n_images))


def evaluate(
    game: Game, images: ImageIndex, coalitions: Callable[[IntArray], CoalitionMatrix], stride: int
) -> FloatArray:
    """Return the payoffs float64[rows] of `coalitions(row numbers)` on `images`, a bounded number of rows at a time.

    Args:
        game: called with at most `rows_per_call` rows.
        images: int64[rows].
        coalitions: row numbers int64[k] -> float32[k, n_units]; only the rows of one call exist at a time.
        stride: rows that belong together (an image, a walk); a call ends on a multiple of it where one fits, so that
            a game that reuses work within a call finds it there.
    """
    limit = rows_per_call(game.n_units)
    size = (limit - limit % max(1, stride)) or limit
    payoffs = np.empty(len(images))
    for start in range(0, len(images), size):
        rows = np.arange(start, min(start + size, len(images)))
        payoffs[rows] = game(images[rows], coalitions(rows))
    return payoffs


def evaluate_each(
    game: Game, images: ImageIndex, count: int, coalitions: Callable[[IntArray], CoalitionMatrix]
) -> FloatArray:
    """Return payoffs float64[images, count]: every image on the same coalitions, numbered 0 .. count - 1."""
    payoffs = evaluate(game, np.repeat(images, count), lambda rows: coalitions(rows % count), stride=count)
    return payoffs.reshape(len(images), count)


def end_payoffs(game: Game, images: ImageIndex) -> tuple[FloatArray, FloatArray]:
    """Return v(all) and v(none), float64[images] each: two rows an image, shared by all of its walks."""
    ends = np.array([[1], [0]], np.float32).repeat(game.n_units, axis=1)
    payoffs = evaluate_each(game, images, 2, lambda rows: ends[rows])
    return payoffs[:, 0], payoffs[:, 1]


@runtime_checkable
class Removes(Protocol):
    """A game that knows a faster way for units that are removed one by one."""

    def removals(self, images: ImageIndex, orders: IntArray, step: float, *, gone: bool, first: int = 0) -> FloatArray:
        """Return what `removals` does."""


def removals(
    game: Game, images: ImageIndex, orders: IntArray, step: float = 1.0, *, gone: bool = True, first: int = 0
) -> FloatArray:
    """Return payoffs float64[walks, m - first]: after each of m removals, in order, but for those before `first`.

    Args:
        game: a `Removes` is asked, for others the coalitions are spelled out.
        images: int64[walks], whose walk it is.
        orders: int64[walks, m], units.
        step: what a removal takes off the unit's mask; 1 removes it.
        gone: removed units stay away (`step` is 1 then); False: each removal is the only one.
        first: removals that come before the first coalition that is evaluated.
    """
    if orders[:, first:].size and isinstance(game, Removes):
        return game.removals(images, orders, step, gone=gone, first=first)
    return coalition_removals(game, images, orders, step, gone=gone, first=first)


def coalition_removals(
    game: Game, images: ImageIndex, orders: IntArray, step: float = 1.0, *, gone: bool = True, first: int = 0
) -> FloatArray:
    """Return what `removals` does, of any game: every row's coalition is spelled out."""
    walks, m = len(orders), orders.shape[1] - first
    assert step == 1 or not gone
    n = game.n_units
    ranks = removal_ranks(orders, n)

    def coalitions(rows: IntArray) -> CoalitionMatrix:
        return removal_masks(ranks[rows // m], first + rows % m, step, gone=gone)

    return evaluate(game, np.repeat(images, m), coalitions, stride=m).reshape(walks, m)


def removal_ranks(orders: IntArray, n_units: int) -> IntArray:
    """Return int64[walks, n_units], the place of every unit in orders [walks, m]; m of those that are not in it."""
    walks, m = orders.shape
    ranks = np.full((walks, n_units), m)
    np.put_along_axis(ranks, orders, np.arange(m)[None], axis=1)
    return ranks


def removal_masks(ranks: IntArray, removed: IntArray, step: float, *, gone: bool) -> CoalitionMatrix:
    """Return the masks float32[rows, n_units] of rows whose last removal is number `removed` of their walk.

    Args:
        ranks: int64[rows, n_units] of their walks, or [1, n_units] of the one they are of.
        removed: int64[rows], from 0.
        step: as in `removals`, and so is `gone`.
    """
    changed = ranks <= removed[:, None] if gone else ranks == removed[:, None]
    return np.where(changed, np.float32(1 - step), np.float32(1))


def single_drops(game: Game, images: ImageIndex, step: float) -> FloatArray:
    """Return (v(1) - v(1 - step e_c)) / step, float64[images, n_units]: n_units + 1 rows an image.

    `step` 1 removes the unit; a small one gives the derivative along its mask.
    """
    n = game.n_units
    full = evaluate_each(game, images, 1, lambda rows: np.ones((len(rows), n), np.float32))
    found = np.empty((len(images), n))
    for block in image_blocks(len(images), n, n):
        orders = np.tile(np.arange(n), (block.stop - block.start, 1))
        found[block] = removals(game, images[block], orders, step, gone=False)
    return (full - found) / step


def draw_orders(rng: np.random.Generator, n_units: int, walks: int, *, antithetic: bool) -> IntArray:
    """Return int64[walks, n_units]: the units in their order of removal, uniform permutations.

    Antithetic: rows 1, 3, 5 ... are rows 0, 2, 4 ... reversed.
    """
    fresh = (walks + 1) // 2 if antithetic else walks
    orders = rng.permuted(np.tile(np.arange(n_units), (fresh, 1)), axis=1)
    if antithetic:
        orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(2 * fresh, n_units)
    return orders[:walks]


def latin_order(key: int, image: int, walk: int, n_units: int) -> IntArray:
    """Return int64[n_units], row image % n_units of a random Latin square of orders; n_units images share a square."""
    square, row = divmod(image, n_units)
    rng = np.random.default_rng([key, square, walk])
    units, places = rng.permutation(n_units), rng.permutation(n_units)
    return np.asarray(units[(row + places) % n_units])


def walk_gains(
    game: Game,
    images: ImageIndex,
    orders: IntArray,
    full: FloatArray,
    empty: FloatArray,
    inner: int,
    first: int = 0,
) -> FloatArray:
    """Return what every unit adds along every walk, float64[walks, n_units]; each row sums to v(all) - v(none).

    A walk removes the units one after the other. From `first` on `inner` coalitions are evaluated, inner * walks rows
    in all; the units that are then left share v(rest) - v(none) equally (with first + inner = n_units - 1 that is the
    last one alone), and so do the first + 1 units before the first row what they are worth.

    Args:
        game: the payoffs.
        images: int64[walks], whose walk it is.
        orders: int64[walks, n_units], the order of removal.
        full: v(all) float64[walks].
        empty: v(none) float64[walks].
        inner: coalitions evaluated per walk, 0 <= inner < n_units - first.
        first: removals before the first of them; 0 where inner is 0.
    """
    walks, n = orders.shape
    payoffs = removals(game, images, orders[:, : first + inner], first=first)
    path = np.column_stack([full, payoffs, empty])
    drops = path[:, :-1] - path[:, 1:]
    shared = np.ones(inner + 1, np.int64)
    shared[0] += first
    shared[-1] += n - shared.sum()
    gains = np.full((walks, n), np.nan)  # a unit that a walk misses stays visible
    np.put_along_axis(gains, orders, np.repeat(drops / shared, shared, axis=1), axis=1)

    # Telescoping: only rounding may be missing, and it is bounded by the payoffs' own magnitudes.
    slack = 64 * np.finfo(np.float64).eps * np.abs(path).sum(axis=1)
    assert (np.abs(gains.sum(axis=1) - (full - empty)) <= slack).all(), "a walk's gains do not sum to v(all) - v(none)"
    return gains


def over_images(
    per_image: FloatArray, evals: int, reduce: Reduce = "mean", kinds: tuple[IntArray, IntArray] | None = None
) -> Values:
    """Return the values of float64[images, n_units]: reduced over images, with the standard error of their mean.

    stderr covers both how images differ and, where every image has draws of its own, the noise of the sampling; 0 with
    one image. With "mean+2std" it is still that of the mean.

    Args:
        per_image: figures of every image.
        evals: rows that they took.
        reduce: over images.
        kinds: of the images, each of which has about its share of them, and of all those that they are drawn from;
            None: they are drawn in no order.
    """
    images = len(per_image)
    assert images > 0, "a game without images has no values"
    phi = per_image.mean(axis=0)
    match reduce:
        case "mean":
            pass
        case "mean+2std":
            phi = phi + 2 * per_image.std(axis=0)
        case _:
            assert_never(reduce)
    stderr = np.sqrt(_variance_of_mean(per_image, kinds)) if images > 1 else np.zeros_like(phi)
    return Values(phi, stderr, evals, spread=per_image.std(axis=0))


def _variance_of_mean(per_image: FloatArray, kinds: tuple[IntArray, IntArray] | None) -> FloatArray:
    """Return the variance of the mean over images, float64[n_units], about that of all images that there might be.

    Images drawn in no order have their variance over their number. Of those with a share of every kind only what
    varies within the kinds is averaged over so few, and how kinds differ over all the images that they are drawn from;
    what the shares lack, for images are whole, counts by how far each kind is from the mean.

    Source: Neyman 1938, double sampling for stratification (Cochran 1977, ch. 12).
    """
    images, whole = len(per_image), per_image.var(axis=0, ddof=1)
    if kinds is None or images >= (of := len(kinds[1])):
        return np.asarray(whole / images)
    within, uneven = np.zeros((2, *whole.shape))
    for places, share in _strata(*kinds):
        part = len(places) / images
        within += part * per_image[places].var(axis=0, ddof=1)
        uneven += (part - share) ** 2 * (per_image[places].mean(axis=0) - per_image.mean(axis=0)) ** 2
    return np.asarray(whole / of + within * (1 / images - 1 / of) + uneven)


def _strata(kinds: IntArray, every: IntArray) -> list[tuple[IntArray, float]]:
    """Return the places of the images of every kind, and its share of all images.

    A kind of which fewer than two images are drawn is joined with the next, at the end with the one before.

    >>> [(at.tolist(), share) for at, share in _strata(np.array([3, 1, 1, 2]), np.array([1, 1, 3, 2, 2, 1, 0, 3]))]
    [([1, 2], 0.5), ([0, 3], 0.5)]
    """
    names, totals = np.unique(every, return_counts=True)
    order = np.argsort(kinds, kind="stable")
    stops = np.searchsorted(kinds[order], names, side="right").tolist()
    found, start, total = list[tuple[IntArray, float]](), 0, 0
    for name, stop, count in zip(names, stops, totals.tolist(), strict=True):
        total += count
        if stop - start >= 2 and (name == names[-1] or len(kinds) - stop >= 2):
            found.append((np.sort(order[start:stop]), total / len(every)))
            start, total = stop, 0
    return found
