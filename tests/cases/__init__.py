"""Every op family in small nets, a module a family; importing it collects them all."""

from tests.cases import blocks, coded, exported, fused, linear, movement, pointwise, pool, reductions, selection
from tests.cases.base import CASES, Case

__all__ = [
    "CASES",
    "Case",
    "blocks",
    "coded",
    "exported",
    "fused",
    "linear",
    "movement",
    "pointwise",
    "pool",
    "reductions",
    "selection",
]
