"""What may stay of a model, and whether a plan keeps no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxshap.arguments import check_fields, naming
from onnxshap.blocks import BLOCK, PART, full
from onnxshap.errors import BudgetError
from onnxshap.tracing import Keep

Measure = Callable[[Keep], Mapping[str, float]]
"""Plan -> share kept of `macs`, `params` and `bytes`."""
_ROUNDING = 1e-12
"""Of shares, by which a plan may seem to be above a budget that it meets."""
_BLOCKS = 4
"""Full blocks that a group has at least where every group keeps the same share: rounded by an eighth of it, at most."""
FINEST = 3
"""`Budget.finer` of single units."""
_MUCH = 0.9
"""Share of a budget that is used, below which widths are taken in finer steps."""


@dataclass(frozen=True)
class Budget:
    """What may stay; shares are of the whole model, in (0, 1].

    Attributes:
        units: share of every group, no search.
        macs: share of the multiply-accumulates.
        params: share of the parameters.
        bytes: share of the bytes of the constants.
        multiple_of: widths are multiples of it where a group is at least twice as wide, else of its half, and so on;
            None = those that fill a runtime's blocks (`blocks`), or finer ones where that is worth more.
        min_units: no group gets narrower.
        finer: without `multiple_of`, how fine widths are: 0 = full blocks, else steps of 4, 2, 1.
        evenly: whether all groups are to keep about the same share, as they are with `units`: full blocks are for
            those then that have many.
    """

    units: float | None = None
    macs: float | None = None
    params: float | None = None
    multiple_of: int | None = None
    min_units: int = 1
    bytes: float | None = None
    finer: int = 0
    evenly: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        with naming(vars(self)):
            self._check()

    def _check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            BudgetError: a number is out of its range.
        """
        for name in ("units", "macs", "params", "bytes"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise BudgetError(f"--keep-{name} is {share:g}; give the share to keep, above 0 and at most 1")
        if self.multiple_of is not None and self.multiple_of < 1:
            raise BudgetError(f"--multiple-of is {self.multiple_of}; give a width of at least 1")
        if self.min_units < 1:
            raise BudgetError(f"--min-units is {self.min_units}; no group can be emptied, give at least 1")
        if self.finer < 0:
            raise BudgetError(f"finer is {self.finer}; give 0 for full blocks, or more for finer steps")

    @property
    def shares(self) -> dict[str, float]:
        """The shares that need a search."""
        return {name: share for name in ("macs", "params", "bytes") if (share := getattr(self, name)) is not None}

    def widths(self, units: int) -> Sequence[int]:
        """Return the widths that a group may be cut to, ascending, however narrow."""
        if self.multiple_of is not None:
            step = self.multiple_of
            while step > 1 and units < 2 * step:
                step //= 2
            return range(step, units + 1, step)
        evenly = self.evenly or self.units is not None
        if units < BLOCK or (self.finer == 0 and (units >= _BLOCKS * BLOCK or not evenly)):
            return full(units)
        step = max(1, PART >> max(0, self.finer - 1))
        return range(step, units + 1, step)


def check_asked(budget: Budget) -> None:
    """Refuse a budget that asks for nothing.

    Raises:
        BudgetError: it has no share at all.
    """
    if budget.units is None and not budget.shares:
        raise BudgetError("no budget: give --keep-macs, --keep-params, --keep-bytes or --keep-units")


def fits(kept: Mapping[str, float], budget: Budget) -> bool:
    """Return whether the shares that a plan keeps are within a budget."""
    return all(kept[name] <= share + _ROUNDING for name, share in budget.shares.items())


def excess(kept: Mapping[str, float], budget: Budget) -> float:
    """Return by how much the shares that a plan keeps are above those of a budget, summed up."""
    return sum(max(0.0, kept[name] - share - _ROUNDING) for name, share in budget.shares.items())


def tightest(kept: Mapping[str, float], budget: Budget) -> str:
    """Return the share of a budget that a plan uses up most."""
    return max(budget.shares, key=lambda name: kept[name] / budget.shares[name])


def uses_up(kept: Mapping[str, float], budget: Budget) -> bool:
    """Return whether a plan keeps about as much as it may of one share."""
    return any(kept[name] >= _MUCH * share for name, share in budget.shares.items())


def check_kept(kept: Mapping[str, float], budget: Budget) -> None:
    """Refuse a budget that the least plan exceeds.

    Raises:
        BudgetError: a share is above the budget's.
    """
    for name, share in budget.shares.items():
        if kept[name] > share + _ROUNDING:
            least, or_lower = "the smallest allowed plan", "lower --min-units or --multiple-of"
            if budget.units is not None:
                least = f"--keep-units {budget.units:g} beside it, which settles all widths,"
                or_lower = "lower --keep-units"
            raise BudgetError(
                f"--keep-{name} {share:g} cannot be reached: {least} keeps {kept[name]:.3f}; "
                f"ask for more, {or_lower}, or exclude less"
            )
