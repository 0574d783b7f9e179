"""Atoms and their relations: which positions of which tensor axes can only be removed together.

Every position of every tensor axis is an *atom*. Rules (`onnxshap.rules`) relate the atoms of one op at a time:

- `tie`       two axes are the same, position by position;
- `freeze`    positions that can never be removed, with a reason in a user's words;
- `contract`  an axis is summed away: here a removed position leaves nothing behind, so here it is masked;
- `product`   a merged axis (heads x head size) is dead where any of its factors is dead.

`axes` has these words, `trace` keeps what they said (pairs of atoms in arrays, `relations`; edits that nodes need once
positions are gone, `fixups`). `resolve` turns the relations into classes (connected components of the ties), and the
classes into *units*, the players of the games. It is order-free: the same relations in any order give the same units.
"""

from onnxshap.labels.axes import Axes, parse_spec
from onnxshap.labels.components import components
from onnxshap.labels.resolve import Labels, Liveness, resolve
from onnxshap.labels.trace import AxisKey, Balance, Frozen, Op, Product, RuleError, Site, Tensor, Trace, Weight

__all__ = [
    "Axes",
    "AxisKey",
    "Balance",
    "Frozen",
    "Labels",
    "Liveness",
    "Op",
    "Product",
    "RuleError",
    "Site",
    "Tensor",
    "Trace",
    "Weight",
    "components",
    "parse_spec",
    "resolve",
]
