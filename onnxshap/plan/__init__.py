"""Budgets and what meets them.

- `choice`: values + costs + budget -> plan. `curves`: what every width of a group costs once repaired; `rounds`: plans
  made in rounds from output to input.
- `cutter`: plan -> cut, verified and repaired model. `search`: the smallest one within a tolerance or a latency.
"""

from onnxshap.plan.choice import (
    Budget,
    Candidate,
    Measure,
    check_reachable,
    fits,
    make_plan,
    plans_at,
    smallest,
    wider_plans,
)
from onnxshap.tracing import Keep

__all__ = [
    "Budget",
    "Candidate",
    "Keep",
    "Measure",
    "check_reachable",
    "fits",
    "make_plan",
    "plans_at",
    "smallest",
    "wider_plans",
]
