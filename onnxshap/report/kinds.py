"""What a user calls the units of a group: channel, hidden unit, head, or size of a head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from onnxshap.groups import Group
from onnxshap.labels import Labels
from onnxshap.shapes import Shaped

KINDS = ("channel", "hidden", "head", "head-dim")


def kinds_of(shaped: Shaped, labels: Labels, groups: Sequence[Group]) -> list[str]:
    """Return the kind of every group: one of `KINDS`.

    Where two computed tensors are multiplied as matrices, leading axes are heads and the last two sizes of a head.
    Other units are channels where a convolution makes them, else hidden.
    """
    found = np.zeros(labels.n_units, np.intp)

    def mark(tensor: str, axis: int, kind: str, slots: slice = slice(None)) -> None:
        units = labels.units(tensor, axis)[:, slots]
        found[units[units >= 0]] = KINDS.index(kind)

    made = [(key, shaped.graph.nodes[labels.trace.producers[key]].op_type) for key in dict.fromkeys(labels.trace.made)]
    for kind, wanted in (("hidden", False), ("channel", True)):
        for key, op in made:
            if ("Conv" in op) == wanted:
                mark(*key, kind)
    for node in shaped.graph.nodes:
        running = [name for name in node.input if name in shaped.shapes and name not in shaped.constants]
        if "Attention" in node.op_type:  # heads and their sizes lie on one axis
            for name in running:
                mark(name, len(shaped.shapes[name]) - 1, "head", slice(0, 1))
                mark(name, len(shaped.shapes[name]) - 1, "head-dim", slice(1, None))
        elif node.op_type.endswith("MatMul") and len(running) == 2:
            for name in running:
                rank = len(shaped.shapes[name])
                for axis in range(rank):
                    mark(name, axis, "head-dim" if axis >= rank - 2 else "head")
    return [KINDS[Counter(found[group.units].tolist()).most_common(1)[0][0]] for group in groups]
