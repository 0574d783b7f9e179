"""A small net, what can be cut of it, and what stays and why; nets around a body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tests.exactness import TOLERANCE, net

INT_MAX = 2**63 - 1
INT_MIN = -(2**63)


@dataclass(frozen=True)
class Case:
    """A net, the sizes of its groups in graph order, and parts of the reasons of what stays.

    Without `rows` its images lie on another axis than the first, are counted in constants, or share codes' range or
    masks.
    """

    name: str
    model: onnx.ModelProto
    sizes: Sequence[int]
    frozen: Sequence[str] = field(default=())
    tolerance: float = TOLERANCE
    rows: bool = True


CASES: list[Case] = []


def case(
    name: str,
    model: onnx.ModelProto,
    sizes: Sequence[int],
    *frozen: str,
    tolerance: float = TOLERANCE,
    rows: bool = True,
) -> None:
    """Add a case."""
    CASES.append(Case(name, model, sizes, frozen, tolerance, rows))


def grid(*positions: Sequence[int]) -> Any:
    """Return the indices of a ScatterND that writes these positions of its first axes."""
    return np.stack(np.meshgrid(*positions, indexing="ij"), axis=-1).tolist()


def conv_net(
    body: str, *, opset: int = 17, ir: int = 8, batch: str = "N", c: int = 8, d: int = 8, **more: Any
) -> onnx.ModelProto:
    """Return conv(3 -> c) as `a`, the body from `a` to `b` with d channels, and conv(d -> 2) as `y`."""
    text = f"""(float[{batch},3,8,8] x) => (float[{batch},2,P,Q] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        {body}
        y = Conv<pads=[1,1,1,1]>(b, w9, b9)
    }}"""
    return net(text, opset=opset, ir=ir, w0=(c, 3, 3, 3), b0=(c,), w9=(2, d, 3, 3), b9=(2,), **more)


def gemm_net(body: str, *, opset: int = 17, c: int = 8, d: int = 8, **more: Any) -> onnx.ModelProto:
    """Return gemm(6 -> c) as `a`, the body from `a` to `b` with d features, and gemm(d -> 3) as `y`."""
    text = f"""(float[N,6] x) => (float[N,3] y) {{
        a = Gemm(x, w0, b0)
        {body}
        y = Gemm(b, w9, b9)
    }}"""
    return net(text, opset=opset, w0=(6, c), b0=(c,), w9=(d, 3), b9=(3,), **more)


def typed(dtype: Any, **shapes: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=shape) / 3).astype(dtype) for name, shape in shapes.items()}


def called_like_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = node.output[0]
    return model


MS = ', "com.microsoft" : 1'
