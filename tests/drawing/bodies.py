"""Branches and loops, and what the images count."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.drawing.anywhere import gate, join, scale_or_shift, unary
from tests.drawing.builder import Builder, Op, Value


def counted(b: Builder, x: Value) -> Value:
    """A tensor over how many of its entries are large, which the images decide."""
    large = b.node("Greater", [x.name, b.constant(0.5, np.float32)], x.shape)
    places = b.node("NonZero", [large.name], (x.rank, 1))
    sizes = b.node("Shape", [places.name], (2,))
    count = b.node("Gather", [sizes.name, b.constant(1)], ())
    number = b.node("Cast", [count.name], (), to=TensorProto.FLOAT)
    more = b.node("Add", [number.name, b.constant(9.0, np.float32)], ())
    return b.node("Div", [x.name, more.name], x.shape)


def pointwise(b: Builder, x: Value, width: int) -> Value:
    """A linear layer that leaves all but the channels as they are."""
    if x.rank == 4:
        return b.node("Conv", [x.name, b.weight(width, x.shape[1], 1, 1)], (x.shape[0], width, *x.shape[2:]))
    return b.node("MatMul", [x.name, b.weight(x.shape[-1], width)], (*x.shape[:-1], width))


def branches(b: Builder, x: Value) -> Value | None:
    """An If that the images decide, now and then; its bodies read tensors from outside, and each other's weights."""
    if b.integer(0, 2):
        return None
    mean = b.node("ReduceMean", [x.name], (), keepdims=0)
    condition = b.node("Greater", [mean.name, b.constant(b.one_of([-10, 0, 10]), np.float32)], ())
    width, bodies, ends = b.integer(1, 6), [], []
    for name in ("then_branch", "else_branch"):
        outside, b.nodes = b.nodes, []
        inner = pointwise(b, x, b.integer(1, 6)) if b.flag() else x
        inner = b.one_of([unary, scale_or_shift, join, gate])(b, inner) if inner is x else unary(b, inner)
        ends.append(pointwise(b, inner, width))
        info = helper.make_tensor_value_info(ends[-1].name, TensorProto.FLOAT, None)
        bodies.append((name, helper.make_graph(b.nodes, name, [], [info])))
        b.nodes = outside
    return b.node("If", [condition.name], ends[0].shape, **dict(bodies))


def _iteration(b: Builder, state: Value, inner: Value) -> Value:
    """A few ops in the body of a loop, which reads tensors from outside too, and what makes a state of the last."""
    known = list(b.values)
    for _ in range(b.integer(1, 3)):
        b.values.append(inner)
        made = b.behind(inner)
        inner = made if made is not None and np.prod(made.shape[1:]) <= 4096 and made.rank in b.ops else inner
    b.values = known
    on = pointwise(b, inner, state.shape[1 if state.rank == 4 else -1]) if inner.rank == state.rank else state
    # a body that gives what it is given, as it is, makes onnxruntime's Scan give anything
    return on if on.shape == state.shape and on is not state else unary(b, state)


def _open(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None] * value.rank)


def rounds(b: Builder, x: Value) -> Value | None:
    """A Loop, now and then, whose state starts as a tensor."""
    if b.integer(0, 2):
        return None
    number, go, state = f"number{b.made}", f"go{b.made}", Value(f"state{b.made}", x.shape)
    outside, b.nodes = b.nodes, [helper.make_node("Identity", [go], [f"{go}.on"])]
    on = _iteration(b, state, state)
    given = [helper.make_tensor_value_info(number, TensorProto.INT64, ()),
             helper.make_tensor_value_info(go, TensorProto.BOOL, ())]  # fmt: skip
    handed = [helper.make_tensor_value_info(f"{go}.on", TensorProto.BOOL, ()), _open(on)]
    body = helper.make_graph(b.nodes, "body", [*given, _open(state)], handed)
    b.nodes = outside
    inputs = [b.constant(b.integer(1, 3)), b.constant(True, np.bool_), x.name]
    return b.node("Loop", inputs, x.shape, body=body)


def steps(b: Builder, x: Value) -> Value | None:
    """A Scan along axis 1, now and then, from either end; its last state, or what it puts together."""
    if x.rank != 3 or b.opset >= 18 or b.integer(0, 2):
        return None
    first = b.node("ReduceMean", [x.name], (x.shape[0], x.shape[2]), axes=[1], keepdims=0)
    first = pointwise(b, first, b.integer(1, 6))
    state, step = Value(f"state{b.made}", first.shape), Value(f"step{b.made}", (x.shape[0], x.shape[2]))
    outside, b.nodes = b.nodes, []
    inner = b.node("Concat", [state.name, step.name], (x.shape[0], state.shape[1] + x.shape[2]), axis=1)
    on = _iteration(b, state, inner)
    made = unary(b, on)
    body = helper.make_graph(b.nodes, "body", [_open(state), _open(step)], [_open(on), _open(made)])
    b.nodes, backwards = outside, [b.integer(0, 1)]
    found = b.node_of(
        "Scan", [first.name, x.name], [first.shape, (x.shape[0], x.shape[1], *on.shape[1:])], body=body,
        num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=backwards,
        scan_output_directions=backwards,
    )  # fmt: skip
    return found[b.integer(0, 1)]


ANY: tuple[Op, ...] = (branches, rounds, steps, counted)
