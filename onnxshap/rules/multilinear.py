"""Which ops are affine in each of the tensors that they read, whatever values these have.

Running an op tells which of its inputs it is affine in, but at the values that it is run on: nothing of a bound that
none of them reaches, of a slope that happens to be 1, of a power too small to be seen. Such ops are not here.
"""

from __future__ import annotations

MULTILINEAR: frozenset[str] = frozenset([
    *("Add", "Attention", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Col2Im", "Concat", "Conv"),
    *("ConvTranspose", "CumSum", "DeformConv", "DepthToSpace", "Div", "Dropout", "Einsum", "Expand", "Flatten"),
    *("Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GridSample", "Identity", "MatMul", "Mean"),
    *("Mul", "Neg", "Pad", "ReduceMean", "ReduceSum", "Reshape", "Resize", "ReverseSequence", "ScatterElements"),
    *("ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose"),
    *("Trilu", "Unsqueeze", "Upsample", "Where"),
    *(f"com.microsoft.{name}" for name in ("FusedMatMul", "GroupQueryAttention", "MultiHeadAttention", "Trilu")),
])  # fmt: skip
"""Affine in what is neither a size nor an index; Div in its first input, attention in its values (queries and keys are
multiplied with each other first), casts between floats."""
