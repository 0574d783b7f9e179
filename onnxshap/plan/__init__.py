"""Budgets and what meets them.

- `choice`: values + costs + budget -> plan, by `allocation` of the budget to the `widths` of groups.
- `curves`: what every width of a group loses once repaired, by `trials`.
- `rounds`: values and curves again, of a model cut part of the way.
- `cutter`: plan -> cut, verified and repaired model, as the `options` say.
- `search`: the smallest one that loses no more than it may (`judging`); `latency`: the widest that is fast enough.
"""

from onnxshap.plan.budget import Budget, Measure, fits
from onnxshap.plan.choice import check_reachable, make_plan, plans_at, smallest, wider_plans
from onnxshap.plan.widths import Candidate, unvalued

__all__ = [
    "Budget",
    "Candidate",
    "Measure",
    "check_reachable",
    "fits",
    "make_plan",
    "plans_at",
    "smallest",
    "unvalued",
    "wider_plans",
]
