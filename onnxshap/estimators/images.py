"""Estimators whose figures of one image depend on that image alone: they can be split, merged, stopped and resumed.

`plan` draws everything that is random, `per_image` evaluates any part of the plan on its own, `reduce` turns the
figures of all images into values. Parts may be evaluated anywhere, in any order: the values are the same to the last
bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from onnxshap.core import FloatArray, Game, ImageIndex, IntArray, Values
from onnxshap.errors import BudgetError
from onnxshap.estimators.rows import NO_UNITS, Reduce, over_images


@dataclass(frozen=True)
class Alike:
    """Which images of a game are alike.

    Attributes:
        order: int64[n], all images, neighbours alike, those of one kind in a row.
        kinds: int64[n], the kind of every image.
    """

    order: ImageIndex
    kinds: IntArray


@dataclass(frozen=True)
class Schedule:
    """Which images are played, and how.

    Attributes:
        images: int64[k], in the order in which they are played.
        walks: int64[k], how many draws every image gets; estimators of a fixed cost do not read it.
        rows: int64[k], evaluations every image costs.
        key: what random draws are made from, together with the image's number.
        short: whether `max_evals` left images or draws out.
        alike: what they are spread over, so that of any first ones every kind has about its share; None: they are drawn
            in no order.
    """

    images: ImageIndex
    walks: IntArray
    rows: IntArray
    key: int = 0
    short: bool = False
    alike: Alike | None = None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> Schedule:
        """Return the images from place `start` to before `stop`."""
        at = slice(start, stop)
        return replace(self, images=self.images[at], walks=self.walks[at], rows=self.rows[at])

    @property
    def kinds(self) -> tuple[IntArray, IntArray] | None:
        """The kinds of the images, and of all those that they are drawn from; None where they are drawn in no order."""
        return None if self.alike is None else (self.alike.kinds[self.images], self.alike.kinds)


@dataclass(frozen=True)
class Scope:
    """What a schedule is made for.

    Attributes:
        n_images: of the game.
        n_units: of the game.
        max_evals: rows at most; images, drawn at random, are left out where it does not reach all of them. None: no
            limit.
        alike: which images are: those drawn are spread over the kinds; None: they are drawn in no order.
    """

    n_images: int
    n_units: int
    max_evals: int | None = None
    alike: Alike | None = None


@runtime_checkable
class Sorted(Protocol):
    """A game that knows which of its images are alike."""

    @property
    def alike(self) -> Alike | None:
        """Its images by kind; None where nothing tells."""


@dataclass(frozen=True)
class PerImage(ABC):
    """An estimator that is a mean (or another reduction) over images of figures that each image has on its own."""

    @property
    def decidable(self) -> bool:
        """Whether the standard error over images covers all that a unit's rank is uncertain about."""
        return True

    @property
    def reduction(self) -> Reduce:
        """What is made of the figures over all images."""
        return "mean"

    def __call__(self, game: Game, rng: np.random.Generator) -> Values:
        """Return the values of a game's units, all images at once."""
        if game.n_units == 0:
            return NO_UNITS
        alike = game.alike if isinstance(game, Sorted) else None
        schedule = self.plan(Scope(game.n_images, game.n_units, alike=alike), rng)
        return self.reduce(self.per_image(game, schedule), schedule)

    @abstractmethod
    def plan(self, scope: Scope, rng: np.random.Generator) -> Schedule:
        """Return what to play; `rng` is the only source of randomness.

        Raises:
            BudgetError: `scope.max_evals` does not reach one image.
        """

    @abstractmethod
    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:
        """Return the figures of the scheduled images, float64[images, n_units]; each row depends on its image only."""

    def reduce(self, per_image: FloatArray, schedule: Schedule) -> Values:
        """Return the values that the figures of all images make."""
        return over_images(per_image, int(schedule.rows.sum()), self.reduction, schedule.kinds)


@dataclass(frozen=True)
class FixedCost(PerImage):
    """An estimator that takes the same number of rows for every image."""

    @abstractmethod
    def cost(self, n_units: int) -> int:
        """Return the evaluations that an image takes; raises a BudgetError where there are too many units."""

    def plan(self, scope: Scope, rng: np.random.Generator) -> Schedule:  # noqa: D102
        return fixed_cost(scope, self.cost(scope.n_units), rng)


def fixed_cost(scope: Scope, rows: int, rng: np.random.Generator, key: int = 0) -> Schedule:
    """Return the schedule of an estimator that takes the same number of rows for every image.

    Images are ascending, unless they are spread over kinds.

    Raises:
        BudgetError: `scope.max_evals` is less than one image takes.
    """
    n_images, max_evals, alike = scope.n_images, scope.max_evals, scope.alike
    used = n_images if max_evals is None else min(n_images, max_evals // rows)
    if used < 1:
        raise BudgetError(
            f"max_evals is {max_evals}, less than one image takes ({rows} evaluations); raise it to {rows} or more, "
            f"{n_images * rows} for all {n_images} images",
            rows,
        )
    images = np.arange(n_images) if used == n_images and alike is None else draw_images(n_images, used, rng, alike)
    return Schedule(images, np.ones(used, np.int64), np.full(used, rows), key, used < n_images, alike)


def draw_images(n_images: int, used: int, rng: np.random.Generator, alike: Alike | None) -> ImageIndex:
    """Return int64[used], some of the images, each as likely as any other.

    Without `alike` ascending. With it they are evenly spaced along it, from a random start (a systematic sample: every
    kind of image gets its share), and so are, about, the first 2, 4, 8 ... of them.

    >>> odd = Alike(np.array([0, 2, 4, 6, 1, 3, 5, 7]), np.arange(8) % 2)
    >>> draw_images(8, 4, np.random.default_rng(0), odd)
    array([3, 2, 7, 6])
    """
    if alike is None:
        return np.sort(rng.permutation(n_images)[:used])
    spaced = ((np.arange(used) + rng.random()) * (n_images / used)).astype(np.int64)
    turned = np.roll(np.minimum(spaced, n_images - 1), int(rng.integers(used)))
    return np.asarray(alike.order[turned[_halving(used)]])


def _halving(count: int) -> IntArray:
    """Return 0 .. count - 1 in an order that halves the gaps again and again: 0, 4, 2, 6, 1, 5, 3, 7."""
    found = np.zeros(1, np.int64)
    while len(found) < count:
        found = np.concatenate([2 * found, 2 * found + 1])
    return found[found < count]


def draw_key(rng: np.random.Generator) -> int:
    """Return a number that the draws of all images are made from."""
    return int(rng.integers(2**63))
