"""Quantised graphs in QDQ form: DequantizeLinear -> op -> QuantizeLinear, which runtimes fuse into one integer op.

A cut leaves codes as they are, and nothing may come between: what it leaves behind goes into the bias, whose int32
codes are fine enough, or is given up. A refit writes other codes, with scales of their own, in the place of those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from onnx import NodeProto, TensorProto

from onnxshap.graph import is_op
from onnxshap.labels import Site
from onnxshap.shapes import Shaped

_CODES = frozenset((TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16))
INTEGERS = _CODES | {TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64}
_CODING = ("Quantize", "DynamicQuantize", "QLinear", "QGemm", "QAttention")

_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""They lay out what they read, and change no number."""

ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    **{(op, a): z for op in ("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul")
       for a, z in ((0, 2), (3, 5))},
    **{(op, a): z for op in ("ConvInteger", "MatMulInteger") for a, z in ((0, 2), (1, 3))},
    ("MatMulIntegerToFloat", 0): 4,
    ("MatMulIntegerToFloat", 1): 5,
    ("DynamicQuantizeMatMul", 1): 3,
    ("DynamicQuantizeLSTM", 1): 9,
}  # fmt: skip
"""Op and input that holds codes -> the input with their zero point."""
_DECODING = frozenset(op for op, _ in ZERO_POINTS)
"""What computes with codes: its other inputs of their type are zero points."""


def zero_point(shaped: Shaped, node: NodeProto, k: int) -> str:
    """Return the zero point of the codes that a node reads as input `k`, "" where they have none, or are no codes.

    What passes codes on (rows of a table) leaves it to the first op behind it that computes with them.
    """
    kind, pending = shaped.kinds.get(node.input[k]), [(node, k)]
    while pending:
        reader, place = pending.pop(0)
        number = ZERO_POINTS.get((reader.op_type, place))
        if number is not None:
            return reader.input[number] if number < len(reader.input) else ""
        if kind in _CODES and not is_coding(reader) and reader.op_type not in _DECODING:
            made = {o for o in reader.output if o and shaped.kinds.get(o) == kind}
            readers = [
                shaped.graph.nodes[index] for index in sorted({i for o in made for i in shaped.readers.get(o, ())})
            ]
            pending += [(other, j) for other in readers for j, name in enumerate(other.input) if name in made]
    return ""


def is_coding(node: NodeProto) -> bool:
    """Return whether a node rounds activations to codes."""
    return node.op_type.startswith(_CODING)


def dequantize(shaped: Shaped, name: str) -> NodeProto | None:
    """Return the DequantizeLinear that makes a tensor, None where something else does."""
    node = _maker(shaped, name)
    return node if node is not None and is_op(node, "DequantizeLinear") else None


def moves(name: str, maker: Callable[[str], NodeProto | None]) -> list[NodeProto]:
    """Return the ops from a tensor back that do nothing but lay another one out, the last first.

    Args:
        name: the tensor.
        maker: tensor -> the node that makes it, None of what is stored.
    """
    found = list[NodeProto]()
    while (node := maker(name)) is not None and is_op(node, *_MOVES):
        found.append(node)
        name = node.input[0]
    return found


def _decoder(shaped: Shaped, name: str) -> NodeProto | None:
    """Return the DequantizeLinear that makes a tensor or what is laid out as it, None where something else does."""
    moved = moves(name, partial(_maker, shaped))
    return dequantize(shaped, moved[-1].input[0] if moved else name)


def _maker(shaped: Shaped, name: str) -> NodeProto | None:
    index = shaped.producers.get(name)
    return None if index is None else shaped.graph.nodes[index]


def on_codes(shaped: Shaped, site: Site) -> bool:
    """Return whether the weights of a site are codes, or integers as they are."""
    if site.weight is None:
        return False
    name = shaped.graph.nodes[site.node].input[site.weight.input]
    return shaped.kinds.get(name) in INTEGERS or _decoder(shaped, name) is not None


def recodable(shaped: Shaped, site: Site) -> bool:
    """Return whether the weights of a site are codes that other ones can take the place of.

    A DequantizeLinear makes them of what is stored, with one scale, or one a position of an axis; what it gives may be
    laid out.
    """
    if site.weight is None:
        return False
    name = shaped.graph.nodes[site.node].input[site.weight.input]
    source = _decoder(shaped, name)
    if source is None:
        return False
    reads = (*source.input, *(other for node in moves(name, partial(_maker, shaped)) for other in node.input[1:]))
    if not shaped.graph.initializers.keys() >= {other for other in reads if other}:
        return False
    return shaped.kinds.get(source.input[0]) in _CODES and len(shaped.shapes[source.input[1]]) <= 1


def foldable(shaped: Shaped, site: Site) -> bool:
    """Return whether means can be left behind at a site: its op has constant weights, and room for them.

    An op between codes without a bias has none: an Add behind it would keep runtimes from fusing it.
    """
    if site.weight is None:
        return False
    node = shaped.graph.nodes[site.node]
    between = on_codes(shaped, site) and dequantize(shaped, node.input[site.input]) is not None
    if not between or site.weight.bias is not None:
        return True
    readers = (shaped.graph.nodes[index] for o in node.output for index in shaped.readers.get(o, ()))
    return not any(is_op(n, "QuantizeLinear") and n.input[0] in node.output for n in readers)
