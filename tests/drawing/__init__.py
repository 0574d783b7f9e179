"""Random networks out of the registered ops, as hypothesis draws them: shapes, wiring, opset, batch, shared weights.

Only continuous ops: where rounding could decide (Round, ArgMax, QuantizeLinear), two exact answers differ by a step. Of
codes there are nets all of whose numbers are exact, from the model's input on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from onnx import ModelProto, helper

from onnxshap.backend import OrtBackend
from onnxshap.errors import ModelError
from tests.drawing import anywhere, bodies, coded, fused, images, lookups, numbers, reductions, sequences, windows
from tests.drawing.builder import OPSETS, Builder, Op, Value
from tests.drawing.forms import FILES, STORED, free_sizes, sizes_of
from tests.drawing.tape import BYTES, Tape

__all__ = ["nets", "sizes_of"]

_USUAL = (*anywhere.ANY, *bodies.ANY, sequences.squeeze)
_EVERYWHERE = (numbers.ANY, reductions.ANY, lookups.ANY)
OPS: Mapping[int, Sequence[Sequence[Op]]] = {
    4: (*[(*_USUAL, *images.ANY)] * 4, *_EVERYWHERE, windows.IMAGES, fused.ANY),
    3: (*[(*_USUAL, *sequences.SEQUENCES)] * 4, *_EVERYWHERE, windows.SPACE, fused.SEQUENCES),
    2: (*[(*_USUAL, *sequences.ROWS)] * 4, *_EVERYWHERE, fused.ROWS),
}
"""Rank -> families; half of what is drawn is what most nets are made of."""
_LINEAR: dict[int, Callable[[Builder, Value], Value]] = {4: images.conv, 3: anywhere.matmul, 2: sequences.gemm}
"""What makes units and sums them away, put between the others half of the time."""


def first(b: Builder, x: Value) -> Value:
    """A linear layer behind an input, now and then on codes."""
    kinds = (_LINEAR[x.rank], _LINEAR[x.rank], coded.on_codes, coded.by_range) if b.opset >= 13 else (_LINEAR[x.rank],)
    made = kinds[0] if b.integer(0, 3) else b.one_of(kinds)
    if made in kinds[2:]:
        b.stored = STORED[:-1]  # a bias between codes on both sides is rounded to codes, too
    return made(b, x)


def head(b: Builder, x: Value) -> Value:
    """A linear layer to two channels, or the tensor itself: then it stays."""
    if b.integer(0, 9) == 9:
        return b.node("Identity", [x.name], x.shape)
    if x.rank == 4:
        return b.node("Conv", [x.name, b.weight(2, x.shape[1], 1, 1)], (x.shape[0], 2, *x.shape[2:]))
    return b.node("MatMul", [x.name, b.weight(x.shape[-1], 2)], (*x.shape[:-1], 2))


def tokens(b: Builder, rows: int) -> tuple[Value, Value]:
    """Return an input of whole numbers, and rows of a table that they choose."""
    numbered, width = Value("numbers", (rows, 5)), b.integer(2, 8)
    table = b.weight(b.integer(5, 9), width)
    return numbered, b.node("Gather", [table, numbered.name], (rows, 5, width))


@st.composite
def nets(draw: DrawFn, most: int = 10, *, free: bool = False) -> ModelProto:
    """Draw a net of up to `most` ops behind a first linear layer; what nothing reads is an output, behind a head.

    With `free`, sizes of its inputs may be free: it is traced at those of `sizes_of`.
    """
    tape = Tape(iter(draw(st.binary(min_size=BYTES, max_size=BYTES))))
    opset, batch, noise = tape.one_of(OPSETS), tape.one_of([0, 0, 0, 1, 2]), tape.integer(0, 99)
    b = Builder(tape.left, opset, batch, np.random.default_rng(noise), ops=OPS, stored=STORED)
    rows, rank = batch or 2, b.one_of([4, 4, 4, 3, 2])
    size = 4 if rank == 4 else 5
    inputs, whole = [Value("x", (rows, 3, *[size] * (rank - 2)))], []
    if b.integer(0, 3) == 3:
        inputs.append(Value("z", inputs[0].shape))
    b.values.extend(first(b, x) for x in inputs)
    if b.integer(0, 9) == 9:
        numbered, found = tokens(b, rows)
        whole.append(numbered)
        b.values.append(found)
    for _ in range(b.integer(1, most)):
        source = b.one_of(b.values) if b.flag() else b.values[-1]
        made = b.behind(source)
        if made is not None and np.prod(made.shape[1:]) <= 4096 and made.rank in OPS:
            b.values.append(_LINEAR[made.rank](b, made) if b.flag() else made)
    leaves = [v for v in b.values if v.name not in b.used]
    also = [v for v in b.values if v.name in b.used and b.integer(0, 19) == 19]
    model = b.model(inputs, [*(head(b, v) for v in leaves), *also], whole)
    if b.integer(0, 3) == 3:
        b.one_of([*FILES, *([free_sizes] if free else [])])(b, model)
    assume(_runs(model))
    return model


def _runs(model: ModelProto) -> bool:
    """Return whether onnxruntime runs a model: its optimiser merges Pads into pools that may not have them."""
    given = {t.name for t in model.graph.initializer}
    feeds = {}
    for item in (i for i in model.graph.input if i.name not in given):
        kind = helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        sizes = sizes_of(model).get(item.name) or [d.dim_value or None for d in item.type.tensor_type.shape.dim]
        feeds[item.name] = np.zeros([2 if size is None else size for size in sizes], kind)
    try:
        OrtBackend().session(model).run(feeds)
    except ModelError:
        return False
    return True
