"""Which ops give zero for zero: whether a tensor vanishes where a removed unit's weights are gone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxshap.labels import Labels
from onnxshap.shapes import Shaped

ALL = frozenset({"Add", "Concat", "Max", "Min", "Sub", "Sum"})
"""Zero where all of their inputs are."""
ANY = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "Mul"})
"""Zero where one of their factors is, but for a bias (input 2 of Conv, ConvTranspose and Gemm)."""
FIRST = frozenset(
    {
        *(
            "Abs",
            "Asin",
            "Atan",
            "AveragePool",
            "Cast",
            "Ceil",
            "Celu",
            "Div",
            "Elu",
            "Erf",
            "Expand",
            "Flatten",
            "Floor",
        ),
        *(
            "Gather",
            "Gelu",
            "GlobalAveragePool",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "MaxPool",
            "Mish",
            "Neg",
            "PRelu",
        ),
        *("Relu", "Reshape", "Round", "Selu", "Sign", "Sin", "Sinh", "Slice", "Softsign", "Split", "Sqrt", "Squeeze"),
        *("Swish", "Tan", "Tanh", "Transpose", "Unsqueeze"),
    }
)
"""Zero where their first input is."""
_DEPTH = 64


def gives_zero(shaped: Shaped, labels: Labels, name: str, units: NDArray[np.intp], depth: int = 0) -> bool:
    """Return whether a tensor is zero at every position that depends on a unit, once that unit's slices are zero.

    False where that is not known.
    """
    producers = shaped.producers
    if name not in producers:
        return name in shaped.constants and holds(shaped, labels, name, units)
    if depth > _DEPTH:
        return False
    node = shaped.graph.nodes[producers[name]]

    def zero(source: str) -> bool:
        return gives_zero(shaped, labels, source, units, depth + 1)

    if node.op_type in FIRST:
        return zero(node.input[0])
    if node.op_type in ALL:
        holding = [
            i for i in node.input if i and (node.op_type != "Concat" or holds(shaped, labels, i, units, some=True))
        ]
        return bool(holding) and all(zero(i) for i in holding)
    if node.op_type in ANY:
        biases = [i for i in node.input[2:3] if i and node.op_type in ("Conv", "ConvTranspose", "Gemm")]
        return any(zero(i) for i in node.input[:2] if i) and all(zero(i) for i in biases)
    return False


def holds(shaped: Shaped, labels: Labels, name: str, units: NDArray[np.intp], *, some: bool = False) -> bool:
    """Return whether all (or `some`) of the units have positions on one of a tensor's axes."""
    on_axes = [labels.units(name, axis).ravel() for axis in range(len(shaped.shapes.get(name, ())))]
    found = np.isin(units, np.concatenate(on_axes)) if on_axes else np.zeros(len(units), np.bool_)
    return bool(found.any() if some else found.all())
