"""What methods have in common: their signature, and figures of axes as figures of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxshap.core import FloatArray, ImageIndex, Payoff, Values
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import Alike, PerImage, Scope
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.methods.overall import OverallGame
from onnxshap.payoffs import OverAll

Tell = Callable[[float], None]
"""Told how much of a group is done, 0 to 1."""


def untold(share: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ByImage:
    """A method that plays a game image by image: its work can be split, stopped early and resumed.

    Attributes:
        estimator: plays the group's game.
        zero_filled: removed units leave nothing in the game, whatever the baseline (gradients are of the masks alone).
        payoff: what it plays for; None = the setting's.
    """

    estimator: PerImage
    zero_filled: bool = False
    payoff: Callable[[Setting], Payoff] | None = None

    def game(self, setting: Setting, group: Group) -> GroupGame | OverallGame:
        """Return the game, its sessions open."""
        chosen = replace(setting, means={}) if self.zero_filled else setting
        if self.payoff is not None:
            chosen = replace(chosen, payoff=self.payoff(setting))
        return OverallGame(chosen, group) if isinstance(chosen.payoff, OverAll) else GroupGame(chosen, group)

    def images(self, setting: Setting) -> int:
        """Return how many images its game has: one where the payoff is of all of them together."""
        return 1 if self.payoff is None and isinstance(setting.payoff, OverAll) else len(setting.data)

    def alike(self, setting: Setting) -> Alike | None:
        """Return the images of its game by kind; None where nothing tells."""
        return setting.alike if self.images(setting) == len(setting.data) else None

    def __call__(
        self, setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None = None
    ) -> Values:
        """Return the values of a group at once, as `scoring` puts them together of blocks of images."""
        schedule = self.estimator.plan(Scope(self.images(setting), len(group), max_evals, self.alike(setting)), rng)
        return self.estimator.reduce(self.estimator.per_image(self.game(setting, group), schedule), schedule)


@dataclass(frozen=True)
class Whole:
    """A method that needs all images of a group together.

    Attributes:
        function: setting, group, randomness, numbers of the images, whom to tell -> values.
        rows: units of a group -> rows that it evaluates an image, at most; None = none, it costs one run an image at
            most, and takes all of them.
        plays: whether it plays for the setting's payoff, which then has to be one of single images.
    """

    function: Callable[[Setting, Group, np.random.Generator, ImageIndex, Tell], Values]
    rows: Callable[[int], int] | None = None
    plays: bool = False

    @property
    def games(self) -> bool:
        """Whether it evaluates rows."""
        return self.rows is not None

    def images(self, setting: Setting, n_units: int, max_evals: int | None) -> int:
        """Return how many images it takes.

        Raises:
            BudgetError: `max_evals` does not reach one.
        """
        whole, rows = len(setting.data), 0 if self.rows is None else self.rows(n_units)
        if max_evals is None or max_evals >= rows * whole:
            return whole
        if max_evals < rows:
            raise BudgetError(f"max_evals is {max_evals}, less than one image takes ({rows}); raise it", rows)
        return max_evals // rows

    def __call__(
        self, setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None = None,
        tell: Tell = untold,
    ) -> Values:  # fmt: skip
        """Return the values of a group; images, drawn at random, are left out where `max_evals` does not reach all."""
        whole, used = len(setting.data), self.images(setting, len(group), max_evals)
        images = np.arange(whole) if used == whole else np.sort(rng.permutation(whole)[:used])
        return self.function(setting, group, rng, images, tell)


Method = ByImage | Whole


def sites_of(setting: Setting, group: Group) -> list[Site]:
    """Return the places where units of a group are summed away and where there is something of the images to see."""
    return [site for site in setting.traced.sites([group]) if not site.stored]


def per_unit(setting: Setting, group: Group, found: dict[tuple[str, int], FloatArray]) -> Values:
    """Return the mean over all positions of each unit, of figures of some axes."""
    totals, counts = np.zeros(setting.traced.labels.n_units), np.zeros(setting.traced.labels.n_units)
    for (tensor, axis), figures in found.items():
        units = setting.traced.labels.units(tensor, axis)
        for slot in range(units.shape[1]):
            real = units[:, slot] >= 0
            np.add.at(totals, units[real, slot], figures[real])
            np.add.at(counts, units[real, slot], 1)
    means = totals[group.units] / np.maximum(counts[group.units], 1)
    return Values(means, np.zeros(len(group)))
