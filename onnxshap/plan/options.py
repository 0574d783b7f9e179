"""What may be asked of a cut: repairs, allocations, and what they need."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace

from onnxshap.bases import check_basis
from onnxshap.core import Dataset
from onnxshap.distill.tuning import divided
from onnxshap.errors import BudgetError, OnnxshapError
from onnxshap.factors import check_low_rank
from onnxshap.plan.trials import FEWEST_FITTED, FITTED
from onnxshap.repair import FEWEST_IMAGES
from onnxshap.repair.regression import require_images
from onnxshap.tracing import Traced

REFITS = ("lstsq", "distill")
REPAIRS = (*REFITS, "fold", "none")
ALLOCATIONS = ("curves", "uniform", "iterative")


@dataclass(frozen=True)
class Asked:
    """How a model is to be cut, as far as somebody said so; `api.prune` tells what the fields are. None = what fits."""

    repair: str | None = None
    basis: str | None = None
    allocation: str | None = None
    low_rank: str | None = None
    distill_seconds: float | None = None

    def settled(self, valued: str | None, *, uniform: bool = False) -> Asked:
        """Return it with what follows from it.

        Args:
            valued: the basis of the values that are given, if some are.
            uniform: whether the budget says every width.

        Raises:
            OnnxshapError: a field is unknown, or does not go with another or with these.
            BudgetError: as `check_options`.
        """
        check_options(self.repair, self.allocation, self.distill_seconds)
        check_basis(self.basis, valued)
        check_low_rank(self.low_rank, self.repair, self.allocation, uniform=uniform)
        allocation = "uniform" if uniform else self.allocation
        if self.low_rank is None:
            return replace(self, allocation=allocation)
        return replace(self, repair=self.repair or "lstsq", allocation="curves")


def check_options(repair: str | None, allocation: str | None, tuning_seconds: float | None = None) -> None:
    """Refuse what no model can be cut with.

    Raises:
        OnnxshapError: a name is unknown, or torch is not installed, which distillation needs.
        BudgetError: distillation would have no time, whether it is asked for or not.
    """
    for name, value, known in (("repair", repair, REPAIRS), ("allocation", allocation, ALLOCATIONS)):
        if value is not None and value not in known:
            raise OnnxshapError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
    if tuning_seconds is not None and not 0 < tuning_seconds < float("inf"):
        raise BudgetError(f"--distill-seconds is {tuning_seconds:g}; give a number of seconds above 0")
    if repair == "distill" and importlib.util.find_spec("torch") is None:
        raise OnnxshapError("--repair distill needs torch; pip install 'onnxshap[distill]', or use --repair lstsq")


def check_images(repair: str | None, allocation: str | None, images: int, low_rank: str | None = None) -> None:
    """Refuse to measure curves, refit or distil on too few images; `low_rank` is what asks for curves, if it does.

    Raises:
        OnnxshapError: curves were asked for, and the images are too few to fit on a part of them.
        DataError: a refit was, or distillation, and they are too few for it, or to judge it by a part of them.
    """
    if repair == "lstsq":
        require_images(images)
    if repair == "distill":
        divided(images, 0)
    least = math.ceil(FEWEST_FITTED / FITTED)
    if allocation in ("curves", "iterative") and images < least:
        asked = f"--allocation {allocation}" if low_rank is None else f"--low-rank {low_rank}"
        without = "" if low_rank is None else ", or leave it out"
        raise OnnxshapError(f"{asked} needs at least {least} images; give more data{without}")


def check_repairable(
    free: Traced, data: Dataset, repair: str | None, allocation: str | None, low_rank: str | None
) -> None:
    """Refuse a model, or images, that the repair or the allocation asked for cannot work with.

    Raises:
        OnnxshapError, DataError: as `check_images`.
        ModelError: the model is to be distilled, and torch cannot evaluate it, or it has nothing to tune.
    """
    check_images(repair, allocation, len(data), low_rank)
    if repair == "distill":
        from onnxshap.distill.checking import check_model  # needs torch

        check_model(free, data)


def repair_for(repair: str | None, images: int, *, noise: bool = False) -> str:
    """Return the repair asked for, or what so many images allow: none where they are `noise`, which tells nothing.

    What noise leaves behind is not what images do.
    """
    return repair or ("none" if noise else "lstsq" if images >= FEWEST_IMAGES else "fold")
