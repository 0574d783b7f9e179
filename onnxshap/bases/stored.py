"""The bases that a run found, as they are kept beside the values of their units: a later run turns the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Basis:
    """The bases of one bundle of a group's places (`roles.Bundle`).

    Attributes:
        places: sha256 of the constants that they turn, and where.
        matrices: float32[blocks, n, n]: a unit is a row's combination of the file's units.
    """

    places: str
    matrices: NDArray[np.float32]


Bases = Mapping[str, Sequence[Basis]]
"""Group name -> its bases; a group that is not there is as in the file."""


def form_of(model: str, bases: Bases) -> str:
    """Return the sha256 of a form of a model, its own where nothing is in another basis.

    Args:
        model: that of the model in its file.
        bases: what turns it.
    """
    if not bases:
        return model
    found = hashlib.sha256(model.encode())
    for name, some in sorted(bases.items()):
        for one in some:
            found.update(repr((name, one.places, one.matrices.shape)).encode())
            found.update(np.ascontiguousarray(one.matrices, "<f4").data)
    return found.hexdigest()
