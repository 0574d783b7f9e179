"""Random networks out of the registered ops, as hypothesis draws them: shapes, wiring, opset, batch, shared weights.

Only continuous ops: where rounding could decide (Round, ArgMax, QuantizeLinear), two exact answers differ by a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshap.backend import OrtBackend
from onnxshap.core import Array
from onnxshap.errors import ModelError

OPSETS = (11, 13, 17, 18, 21)
INT_MAX = 2**63 - 1


@dataclass(frozen=True)
class Value:
    """A tensor of the net and its shape; the images are on axis 0, always."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """A net under construction; every op draws its own sizes."""

    draw: DrawFn
    opset: int
    batch: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    made: int = 0

    # --- parts ---------------------------------------------------------------------------------------------------

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(values, dtype)
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Return noise of a shape; now and then a weight that is in use already."""
        same = [n for n, v in self.initializers.items() if v.shape == shape and v.dtype == np.float32]
        if same and not positive and self.flag():
            return str(self.one_of(same))
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        values = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.normal(size=shape) / np.sqrt(fan)
        return self.constant(values, np.float32)

    def node(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> Value:
        return self.node_of(kind, inputs, [shape], **attributes)[0]

    def node_of(
        self, kind: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], **attributes: Any
    ) -> list[Value]:
        outputs = [Value(f"t{self.made}_{k}", tuple(map(int, s))) for k, s in enumerate(shapes)]
        self.made += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [o.name for o in outputs], **attributes))
        self.used.update(inputs)
        return outputs

    def with_ints(
        self, kind: str, x: Value, name: str, ints: Sequence[int], shape: Sequence[int], since: int, **more: Any
    ) -> Value:
        """Return a node whose integers are an attribute before opset `since`, an input from then on."""
        if self.opset < since:
            return self.node(kind, [x.name], shape, **{name: list(ints)}, **more)
        return self.node(kind, [x.name, self.constant(ints)], shape, **more)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape with the sizes spelled out, copied (0) or left open (-1)."""
        target = [0 if k < x.rank and x.shape[k] == size and self.flag() else size for k, size in enumerate(shape)]
        target[0] = self.batch or 0
        if self.flag():
            target[self.integer(1, len(target) - 1)] = -1
        return self.node("Reshape", [x.name, self.constant(target)], shape)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return self.node("Transpose", [x.name], [x.shape[p] for p in perm], perm=list(perm))

    def divisor(self, size: int) -> int:
        return int(self.one_of([d for d in range(1, size + 1) if size % d == 0]))

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> ModelProto:
        def info(value: Value) -> onnx.ValueInfoProto:
            shape = (self.batch or "N", *value.shape[1:])
            return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "drawn",
            list(map(info, inputs)),
            list(map(info, outputs)),
            [numpy_helper.from_array(v, n) for n, v in self.initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


Op = Callable[[Builder, Value], "Value | None"]


# --- branches and loops --------------------------------------------------------------------------------------------


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
        made = b.one_of(OPS[inner.rank])(b, inner)
        inner = made if made is not None and np.prod(made.shape[1:]) <= 4096 and made.rank in OPS else inner
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


# --- any rank ------------------------------------------------------------------------------------------------------


def unary(b: Builder, x: Value) -> Value:
    kind = b.one_of(["Relu", "Sigmoid", "Tanh", "Identity", "LeakyRelu", "Abs", "Dropout", "Neg", "Elu"])
    return b.node(kind, [x.name], x.shape)


def scale_or_shift(b: Builder, x: Value) -> Value:
    """A constant broadcast along any axes but the images'."""
    keep = [b.flag() for _ in x.shape[1:]]
    shape = [size if kept else 1 for size, kept in zip(x.shape[1:], keep, strict=True)]
    first = b.integer(0, len(shape))
    inputs = [x.name, b.weight(*shape[first:])]
    if b.flag():
        inputs.reverse()
    return b.node(b.one_of(["Add", "Sub", "Mul", "Max", "Min"]), inputs, x.shape)


def prelu(b: Builder, x: Value) -> Value:
    return b.node("PRelu", [x.name, b.weight(x.shape[1], *[1] * (x.rank - 2))], x.shape)


def join(b: Builder, x: Value) -> Value:
    """Two tensors of one shape; the same twice, if it so happens."""
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    kind = b.one_of(["Add", "Sub", "Mul", "Max", "Mean"])
    out = b.node(kind, [x.name, other.name], x.shape)
    return b.node("Tanh", [out.name], x.shape) if kind == "Mul" else out


def gate(b: Builder, x: Value) -> Value:
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    return b.node("Where", [b.node("Greater", [x.name, other.name], x.shape).name, x.name, other.name], x.shape)


def concat(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    rest = [v for v in b.values if v.rank == x.rank
            and all(s == t for a, (s, t) in enumerate(zip(v.shape, x.shape, strict=True)) if a != axis)]  # fmt: skip
    parts = [x, *(b.one_of(rest) for _ in range(b.integer(0, 2)))]
    width = sum(p.shape[axis] for p in parts)
    if width > 32:
        return None
    shape = [*x.shape[:axis], width, *x.shape[axis + 1 :]]
    return b.node("Concat", [p.name for p in parts], shape, axis=axis - x.rank if b.flag() else axis)


def split(b: Builder, x: Value) -> Value | None:
    """Parts of an axis, given sizes or equal; joined, or all but one dropped."""
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    if width < 2:
        return None
    if width % 2 == 0 and b.flag():
        more = {"num_outputs": 2} if b.opset >= 18 else {}
        shape = [*x.shape[:axis], width // 2, *x.shape[axis + 1 :]]
        left, right = b.node_of("Split", [x.name], [shape, shape], axis=axis, **more)
        return b.node("Mul", [left.name, b.node("Sigmoid", [right.name], shape).name], shape)
    first = b.integer(1, width - 1)
    sizes = [first, width - first]
    shapes = [[*x.shape[:axis], s, *x.shape[axis + 1 :]] for s in sizes]
    if b.opset >= 13:
        parts = b.node_of("Split", [x.name, b.constant(sizes)], shapes, axis=axis)
    else:
        parts = b.node_of("Split", [x.name], shapes, axis=axis, split=sizes)
    b.values.extend(parts)
    return b.node("Concat", [parts[1].name, parts[0].name], x.shape, axis=axis)


def slice_(b: Builder, x: Value) -> Value | None:
    axes = [a for a in range(1, x.rank) if b.flag()] or [x.rank - 1]
    windows: list[tuple[int, int, int]] = []
    shape = list(x.shape)
    for axis in axes:
        width = x.shape[axis]
        first, last = sorted((b.integer(0, width - 1), b.integer(0, width - 1)))
        step = b.one_of([1, 1, 1, 2, -1, -2])
        span = range(first, last + 1, step) if step > 0 else range(last, first - 1, step)
        start, stop = (first, last + 1) if step > 0 else (last, first - 1)
        if step > 0 and b.flag():
            start -= width
        if stop == width and b.flag():
            stop = INT_MAX
        elif stop < 0:
            stop = -INT_MAX
        windows.append((start, stop, step))
        shape[axis] = len(span)
    named = [a - x.rank if b.flag() else a for a in axes]
    starts, ends, steps = zip(*windows, strict=True)
    return b.node("Slice", [x.name, *map(b.constant, (starts, ends, named, steps))], shape)


def gather(b: Builder, x: Value) -> Value:
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    index = [b.integer(-width, width - 1) for _ in range(b.integer(1, width))]
    shape = [*x.shape[:axis], len(index), *x.shape[axis + 1 :]]
    return b.node("Gather", [x.name, b.constant(index)], shape, axis=axis)


def pad(b: Builder, x: Value) -> Value:
    amounts = [[0, 0] if a == 0 or b.flag() else [b.integer(0, 2), b.integer(0, 2)] for a in range(x.rank)]
    pads = [before for before, _ in amounts] + [after for _, after in amounts]
    shape = [size + sum(amount) for size, amount in zip(x.shape, amounts, strict=True)]
    inputs = [x.name, b.constant(pads)]
    if b.flag():
        inputs.append(b.constant(0.5, np.float32))
    return b.node("Pad", inputs, shape)


def softmax(b: Builder, x: Value) -> Value:
    return b.node("Softmax", [x.name], x.shape, axis=b.integer(1, x.rank - 1))


def reduce(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    kept = b.integer(0, 1) if x.rank > 2 else 1
    shape = [*x.shape[:axis], *([1] * kept), *x.shape[axis + 1 :]]
    kind = b.one_of(["ReduceMax", "ReduceMean", "ReduceL2", "ReduceSum"])
    return b.with_ints(kind, x, "axes", [axis], shape, 13 if kind == "ReduceSum" else 18, keepdims=kept)


def matmul(b: Builder, x: Value) -> Value:
    width = b.integer(1, 10)
    shape = (*x.shape[:-1], width)
    product = b.node("MatMul", [x.name, b.weight(x.shape[-1], width)], shape)
    return b.node("Add", [product.name, b.weight(width)], shape) if b.flag() else product


def matmul_left(b: Builder, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    height = b.integer(1, 8)
    return b.node("MatMul", [b.weight(height, x.shape[-2]), x.name], (*x.shape[:-2], height, x.shape[-1]))


def through_factors(b: Builder, x: Value) -> Value:
    """An axis split into factors, something done to them apart, and merged again."""
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    apart = [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]]
    y = b.reshape(x, apart)
    inner: Callable[[Builder, Value], Value] = b.one_of([unary, scale_or_shift, through_transpose])
    y = inner(b, y)
    merged = [*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :]]
    return b.reshape(y, merged)


def reduced_factor(b: Builder, x: Value) -> Value:
    """An axis split into factors, one of them reduced (maxout)."""
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    y = b.reshape(x, [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]])
    gone = axis + b.integer(0, 1)
    shape = [*y.shape[:gone], *y.shape[gone + 1 :]]
    return b.with_ints("ReduceMax", y, "axes", [gone], shape, 18, keepdims=0)


def through_transpose(b: Builder, x: Value) -> Value:
    perm = b.draw(st.permutations(range(1, x.rank)))
    inner: Callable[[Builder, Value], Value] = b.one_of([unary, scale_or_shift, softmax])
    return inner(b, b.transpose(x, [0, *perm]))


def shuffle(b: Builder, x: Value) -> Value:
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    y = b.reshape(x, [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]])
    perm = list(range(y.rank))
    perm[axis : axis + 2] = [axis + 1, axis]
    y = b.transpose(y, perm)
    if b.integer(0, 3) == 0:
        b.values.append(y)
    return b.reshape(y, x.shape)


def expanded(b: Builder, x: Value) -> Value:
    """A constant spread over an axis and added."""
    axis = b.integer(1, x.rank - 1)
    target = [1] * x.rank
    target[axis] = x.shape[axis]
    source = [1] * x.rank if b.flag() else target
    wide = b.node("Expand", [b.weight(*source), b.constant(target)], target)
    return b.node("Mul", [x.name, wide.name], x.shape)


def filled(b: Builder, x: Value) -> Value:
    wide = b.node("ConstantOfShape", [b.constant([x.shape[1], *[1] * (x.rank - 2)])], [1],
                  value=helper.make_tensor("", TensorProto.FLOAT, [1], [0.7]))  # fmt: skip
    return b.node("Mul", [x.name, wide.name], x.shape)


def product_of_two(b: Builder, x: Value) -> Value | None:
    """A tensor times another one transposed: what both are summed over is made by layers."""
    if x.rank < 3:
        return None
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    turned = b.transpose(other, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
    scores = b.node("MatMul", [x.name, turned.name], (*x.shape[:-1], x.shape[-2]))
    return b.node("Tanh", [scores.name], scores.shape)


def layer_norm(b: Builder, x: Value) -> Value | None:
    if b.opset < 17:
        return None
    axis = b.integer(1, x.rank - 1)
    inputs = [x.name, b.weight(*x.shape[axis:])]
    if b.flag():
        inputs.append(b.weight(*x.shape[axis:]))
    return b.node("LayerNormalization", inputs, x.shape, axis=axis, epsilon=0.1)


def rms_norm(b: Builder, x: Value) -> Value:
    """What exporters write for it, or what runtimes make of that."""
    axis = x.rank - 1 if b.flag() else b.integer(1, x.rank - 1)
    if axis == x.rank - 1 and b.flag():
        inputs = [x.name, b.weight(x.shape[axis])]
        return b.node("SimplifiedLayerNormalization", inputs, x.shape, axis=axis, epsilon=0.1)
    squares = b.node("Mul", [x.name, x.name], x.shape)
    shape = [1 if a == axis else size for a, size in enumerate(x.shape)]
    mean = b.with_ints("ReduceMean", squares, "axes", [axis], shape, 18, keepdims=1)
    above = b.node("Add", [mean.name, b.constant(0.1, np.float32)], shape)
    root = b.node("Sqrt", [above.name], shape)
    return b.node("Div", [x.name, root.name], x.shape)


def standardised(b: Builder, x: Value) -> Value:
    """Mean and deviation over an axis, as exporters write a layer norm where there is no op for it."""
    axis = b.integer(1, x.rank - 1)
    shape = [1 if a == axis else size for a, size in enumerate(x.shape)]
    pooled = x.rank == 3 and axis == 2 and b.flag()

    def mean(of: Value) -> Value:
        if pooled:  # as tf2onnx writes it
            return b.node("GlobalAveragePool", [of.name], shape)
        return b.with_ints("ReduceMean", of, "axes", [axis], shape, 18, keepdims=1)

    centred = b.node("Sub", [x.name, mean(x).name], x.shape)
    squares = b.node("Mul", [centred.name, centred.name], x.shape)
    above = b.node("Add", [mean(squares).name, b.constant(0.1, np.float32)], shape)
    root = b.node("Sqrt", [above.name], shape)
    normal = b.node("Div", [centred.name, root.name], x.shape)
    if b.flag():
        return normal
    return b.node("Mul", [normal.name, b.weight(*x.shape[axis:])], x.shape)


def own_sizes(b: Builder, x: Value) -> Value:
    """Sizes are those that a tensor inside has: a constant is spread, or the tensor is merged and split again."""
    sizes = b.node("Shape", [x.name], [x.rank])
    if b.flag():
        source = [size if b.flag() and a else 1 for a, size in enumerate(x.shape)]
        wide = b.node("Expand", [b.weight(*source), sizes.name], x.shape)
        return b.node("Mul", [x.name, wide.name], x.shape)
    images = b.node("Slice", [sizes.name, b.constant([0]), b.constant([1])], [1])
    target = b.node("Concat", [images.name, b.constant([-1])], [2], axis=0)
    flat = b.node("Reshape", [x.name, target.name], [x.shape[0], int(np.prod(x.shape[1:]))])
    return b.node("Reshape", [flat.name, sizes.name], x.shape)


def tile(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    if np.prod(x.shape[1:]) > 256:
        return None
    times = [2 if a == axis else 1 for a in range(x.rank)]
    shape = [size * count for size, count in zip(x.shape, times, strict=True)]
    return b.node("Tile", [x.name, b.constant(times)], shape)


# --- [images, channels, height, width] ------------------------------------------------------------------------------


def conv(b: Builder, x: Value) -> Value:
    groups = b.divisor(x.shape[1]) if b.flag() else 1
    out = groups * b.integer(1, max(1, 10 // groups))
    k = b.one_of([1, 3]) if min(x.shape[2:]) >= 2 else 1
    inputs = [x.name, b.weight(out, x.shape[1] // groups, k, k)]
    if b.flag():
        inputs.append(b.weight(out))
    shape = (x.shape[0], out, *x.shape[2:])
    return b.node("Conv", inputs, shape, group=groups, pads=[k // 2] * 4)


def conv_transpose(b: Builder, x: Value) -> Value | None:
    if max(x.shape[2:]) > 8:
        return None
    groups = b.divisor(x.shape[1]) if b.flag() else 1
    per = b.integer(1, max(1, 8 // groups))
    inputs = [x.name, b.weight(x.shape[1], per, 2, 2)]
    if b.flag():
        inputs.append(b.weight(groups * per))
    shape = (x.shape[0], groups * per, *(2 * s for s in x.shape[2:]))
    return b.node("ConvTranspose", inputs, shape, group=groups, strides=[2, 2])


def depthwise(b: Builder, x: Value) -> Value:
    times = b.integer(1, 2)
    out = times * x.shape[1]
    shape = (x.shape[0], out, *x.shape[2:])
    return b.node("Conv", [x.name, b.weight(out, 1, 3, 3), b.weight(out)], shape, group=x.shape[1], pads=[1] * 4)


def dealt(b: Builder, x: Value) -> Value:
    """A grouped Conv whose channels are dealt out to all groups of the next (ShuffleNet)."""
    groups = b.one_of([g for g in (1, 2, 3) if x.shape[1] % g == 0])
    first, second = b.integer(2, 3), b.integer(2, 3)
    wide = first * second * b.integer(1, 2) * groups
    y = b.node(
        "Conv", [x.name, b.weight(wide, x.shape[1] // groups, 1, 1)], (x.shape[0], wide, *x.shape[2:]), group=groups
    )
    y = b.one_of([unary, batch_norm, depthwise, scale_or_shift])(b, y)
    wide = y.shape[1]
    apart = b.reshape(y, (y.shape[0], first, wide // first, *y.shape[2:]))
    y = b.reshape(b.transpose(apart, [0, 2, 1, 3, 4]), y.shape)
    out = second * b.integer(1, 3)
    weight = b.weight(out, wide // second, 1, 1)
    return b.node("Conv", [y.name, weight], (y.shape[0], out, *y.shape[2:]), group=second)


def batch_norm(b: Builder, x: Value) -> Value:
    c = x.shape[1]
    inputs = [x.name, b.weight(c), b.weight(c), b.weight(c), b.weight(c, positive=True)]
    return b.node("BatchNormalization", inputs, x.shape)


def instance_norm(b: Builder, x: Value) -> Value:
    return b.node("InstanceNormalization", [x.name, b.weight(x.shape[1]), b.weight(x.shape[1])], x.shape, epsilon=0.1)


def pool(b: Builder, x: Value) -> Value | None:
    if min(x.shape[2:]) < 2:
        return None
    shape = (*x.shape[:2], *(s // 2 for s in x.shape[2:]))
    return b.node(b.one_of(["MaxPool", "AveragePool"]), [x.name], shape, kernel_shape=[2, 2], strides=[2, 2])


def global_pool(b: Builder, x: Value) -> Value:
    return b.node(b.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x.name], (*x.shape[:2], 1, 1))


def resize(b: Builder, x: Value) -> Value | None:
    if max(x.shape[2:]) > 8:
        return None
    scales = b.constant([1, 1, 2, 2], np.float32)
    roi = b.constant([], np.float32) if b.opset < 13 else ""
    return b.node("Resize", [x.name, roi, scales], (*x.shape[:2], *(2 * s for s in x.shape[2:])))


def excite(b: Builder, x: Value) -> Value:
    inner = b.integer(1, 4)
    s = b.node("GlobalAveragePool", [x.name], (*x.shape[:2], 1, 1))
    s = b.node("Conv", [s.name, b.weight(inner, x.shape[1], 1, 1), b.weight(inner)], (x.shape[0], inner, 1, 1))
    s = b.node("Relu", [s.name], s.shape)
    s = b.node("Conv", [s.name, b.weight(x.shape[1], inner, 1, 1)], (*x.shape[:2], 1, 1))
    return b.node("Mul", [x.name, b.node("Sigmoid", [s.name], s.shape).name], x.shape)


def depth_to_space(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if c % 4 or h > 8:
        return None
    return b.node("DepthToSpace", [x.name], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=b.one_of(["DCR", "CRD"]))


def columns_to_image(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if c % 4 or h > 8 or b.opset < 18:
        return None
    step = b.integer(1, 2)
    image = (step * (h - 1) + 2, step * (w - 1) + 2)
    columns = b.reshape(x, (n, c, h * w))
    inputs = [columns.name, b.constant(image), b.constant([2, 2])]
    return b.node("Col2Im", inputs, (n, c // 4, *image), strides=[step, step])


def space_to_depth(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if h % 2 or w % 2 or c > 8:
        return None
    return b.node("SpaceToDepth", [x.name], (n, 4 * c, h // 2, w // 2), blocksize=2)


def group_norm(b: Builder, x: Value) -> Value | None:
    if b.opset < 21:
        return None
    inputs = [x.name, b.weight(x.shape[1]), b.weight(x.shape[1])]
    return b.node("GroupNormalization", inputs, x.shape, num_groups=b.divisor(x.shape[1]), epsilon=0.1)


def squeezed(b: Builder, x: Value) -> Value | None:
    """All axes of size 1 at once, where the images are no such axis."""
    if x.shape[1] == 1 or b.batch != 2:
        return None
    y = global_pool(b, x)
    return b.node("Squeeze", [y.name], x.shape[:2])


def lrn(b: Builder, x: Value) -> Value:
    return b.node("LRN", [x.name], x.shape, size=3)


def to_sequence(b: Builder, x: Value) -> Value:
    """[images, channels, places], or places first."""
    y = b.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))
    return b.transpose(y, [0, 2, 1]) if b.flag() else y


def flatten(b: Builder, x: Value) -> Value | None:
    width = int(np.prod(x.shape[1:]))
    if width > 256:
        return None
    flat = b.node("Flatten", [x.name], (x.shape[0], width)) if b.flag() else b.reshape(x, (x.shape[0], width))
    return gemm(b, flat)


# --- [images, places, features] and [images, features] ---------------------------------------------------------------


def attention(b: Builder, x: Value) -> Value:
    heads, size = b.integer(1, 3), b.integer(1, 4)
    n, t, d = x.shape

    def heads_of(perm: Sequence[int]) -> Value:
        y = b.node("MatMul", [x.name, b.weight(d, heads * size)], (n, t, heads * size))
        return b.transpose(b.reshape(y, (n, t, heads, size)), perm)

    q, k, v = heads_of([0, 2, 1, 3]), heads_of([0, 2, 3, 1]), heads_of([0, 2, 1, 3])
    scores = b.node("MatMul", [q.name, k.name], (n, heads, t, t))
    mixed = b.node("MatMul", [b.node("Softmax", [scores.name], scores.shape, axis=3).name, v.name], q.shape)
    merged = b.reshape(b.transpose(mixed, [0, 2, 1, 3]), (n, t, heads * size))
    return b.node("MatMul", [merged.name, b.weight(heads * size, d)], x.shape)


def recurrent(b: Builder, x: Value) -> Value:
    """All states of an LSTM, GRU or RNN over axis 1, or the last ones."""
    kind, way = b.one_of(["LSTM", "GRU", "RNN"]), b.one_of(["forward", "reverse", "bidirectional"])
    hidden, ways, rows = b.integer(1, 6), 1 + (way == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    turned, gates = b.transpose(x, (1, 0, 2)), rows * hidden
    inputs = [turned.name, b.weight(ways, gates, x.shape[2]), b.weight(ways, gates, hidden)]
    inputs += [b.weight(ways, 2 * gates)] if b.flag() else []
    n, steps_ = x.shape[:2]
    more = {"linear_before_reset": b.integer(0, 1)} if kind == "GRU" else {}
    every, last = b.node_of(
        kind, inputs, [(steps_, ways, n, hidden), (ways, n, hidden)], hidden_size=hidden, direction=way, **more
    )
    if b.flag():
        return b.transpose(last, (1, 0, 2))
    apart = b.transpose(every, (2, 0, 1, 3))
    return b.node("Reshape", [apart.name, b.constant([0, steps_, ways * hidden])], (n, steps_, ways * hidden))


def einsum(b: Builder, x: Value) -> Value:
    if b.opset < 12:
        return matmul(b, x)
    width = b.integer(1, 8)
    return b.node("Einsum", [x.name, b.weight(width, x.shape[2])], (*x.shape[:2], width), equation="btd,od->bto")


def to_image(b: Builder, x: Value) -> Value:
    return b.with_ints("Unsqueeze", x, "axes", [x.rank], (*x.shape, 1), 13)


def squeeze(b: Builder, x: Value) -> Value | None:
    single = [a for a in range(1, x.rank) if x.shape[a] == 1]
    if not single or x.rank < 3:
        return None
    axis = int(b.one_of(single))
    return b.with_ints("Squeeze", x, "axes", [axis], [*x.shape[:axis], *x.shape[axis + 1 :]], 13)


def gemm(b: Builder, x: Value) -> Value:
    width, turned = b.integer(1, 10), b.integer(0, 1)
    weight = b.weight(*((width, x.shape[1]) if turned else (x.shape[1], width)))
    bias = b.one_of([None, (width,), (1, width), (1,), ()])
    inputs = [x.name, weight] if bias is None else [x.name, weight, b.weight(*bias)]
    return b.node("Gemm", inputs, (x.shape[0], width), transB=turned, alpha=b.one_of([1.0, 0.5]))


_ANY: tuple[Op, ...] = (
    *(unary, scale_or_shift, prelu, join, join, gate, concat, concat, split, split, slice_, gather, pad, softmax),
    *(reduce, matmul, matmul_left, through_factors, reduced_factor, through_transpose, shuffle, expanded, filled),
    *(product_of_two, layer_norm, standardised, rms_norm, own_sizes, tile, branches, rounds, steps, counted),
)
OPS: dict[int, tuple[Op, ...]] = {
    4: (
        *_ANY,
        *(
            conv,
            conv,
            conv,
            conv,
            conv_transpose,
            depthwise,
            dealt,
            dealt,
            batch_norm,
            instance_norm,
            pool,
            global_pool,
            resize,
        ),
        *(excite, lrn, to_sequence, flatten, squeeze, depth_to_space, space_to_depth, group_norm, squeezed),
        columns_to_image,
    ),
    3: (*_ANY, matmul, attention, attention, einsum, recurrent, recurrent, to_image, squeeze),
    2: (*_ANY, gemm, gemm, gemm, to_image),
}


_LINEAR: dict[int, Callable[[Builder, Value], Value]] = {4: conv, 3: matmul, 2: gemm}
"""What makes units and sums them away, put between the others half of the time."""


def head(b: Builder, x: Value) -> Value:
    """A linear layer to two channels, or the tensor itself: then it stays."""
    if b.integer(0, 9) == 9:
        return b.node("Identity", [x.name], x.shape)
    if x.rank == 4:
        return b.node("Conv", [x.name, b.weight(2, x.shape[1], 1, 1)], (x.shape[0], 2, *x.shape[2:]))
    return b.node("MatMul", [x.name, b.weight(x.shape[-1], 2)], (*x.shape[:-1], 2))


@st.composite
def nets(draw: DrawFn, most: int = 10) -> ModelProto:
    """Draw a net of up to `most` ops behind a first linear layer; what nothing reads is an output, behind a head."""
    opset = draw(st.sampled_from(OPSETS))
    batch = draw(st.sampled_from([0, 0, 0, 1, 2]))
    b = Builder(draw, opset, batch, np.random.default_rng(draw(st.integers(0, 99))))
    rows, rank = batch or 2, draw(st.sampled_from([4, 4, 4, 3, 2]))
    size = 4 if rank == 4 else 5
    x = Value("x", (rows, 3, *[size] * (rank - 2)))
    b.values.append(_LINEAR[rank](b, x))
    for _ in range(draw(st.integers(1, most))):
        source = b.values[-1] if draw(st.booleans()) else draw(st.sampled_from(b.values))
        made = b.one_of(OPS[source.rank])(b, source) if source.rank in OPS else None
        if made is not None and np.prod(made.shape[1:]) <= 4096 and made.rank in OPS:
            b.values.append(_LINEAR[made.rank](b, made) if draw(st.booleans()) else made)
    leaves = [v for v in b.values if v.name not in b.used]
    outputs = [head(b, v) for v in leaves]
    model = b.model([x], outputs)
    assume(_loads(model))
    return model


def _loads(model: ModelProto) -> bool:
    """Return whether onnxruntime takes a model: its optimiser merges Pads into pools that may not have them."""
    try:
        OrtBackend().session(model)
    except ModelError:
        return False
    return True
