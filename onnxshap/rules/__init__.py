"""What every op does to its axes: one rule per op family, a line or a few each.

A rule is a function of the op and of what can be said about its axes (`labels.Axes`). To teach onnxshap an op, write
its rule in the family's file: nothing else decides what of it can be cut together. An op without a rule, an axis that a
rule does not mention, a rule that refuses (`RuleError`): frozen, with the reason kept for the report.

Of other things other files know op types: `zeros` which ops give zero for zeros, `graph` which have bodies or are
fused, `shapes` which compute sizes and where the images are behind them, `codes` which compute with codes, `repair` and
`methods` what stands between a layer and what reads it, `distill.ops` what torch makes of them.
"""

from __future__ import annotations

from onnxshap.rules import attention, linear, movement, norm, pointwise, pool, quantised, recurrent, reduce, selection
from onnxshap.rules.applying import trace_graph
from onnxshap.rules.registry import RULES, Rule, rule

__all__ = [
    "RULES",
    "Rule",
    "attention",
    "linear",
    "movement",
    "norm",
    "pointwise",
    "pool",
    "quantised",
    "recurrent",
    "reduce",
    "rule",
    "selection",
    "trace_graph",
]
