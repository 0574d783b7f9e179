"""What runtimes' optimizers write, and attention as one op."""

from __future__ import annotations

import numpy as np

from tests.drawing.builder import Builder, Op, Value

_MS = "com.microsoft"


def gelus(b: Builder, x: Value) -> Value:
    """Activations as one op, their bias in it now and then."""
    kind = b.one_of(["BiasGelu", "FastGelu", "Gelu", "QuickGelu"])
    inputs = [x.name, *([b.weight(x.shape[-1])] if kind == "BiasGelu" or (kind == "FastGelu" and b.flag()) else [])]
    return b.node(f"{_MS}.{kind}", inputs, x.shape)


def fused_matmul(b: Builder, x: Value) -> Value:
    """A product with a matrix that is stored turned, times a number; or with another tensor."""
    if x.rank > 2 and b.flag():
        other = b.one_of([v for v in b.values if v.shape == x.shape])
        turned = b.integer(0, 1)  # x^T times the other, or x times other^T
        size = x.shape[-1] if turned else x.shape[-2]
        inputs, shape = [x.name, other.name], (*x.shape[:-2], size, size)
        scores = b.node(f"{_MS}.FusedMatMul", inputs, shape, transA=turned, transB=1 - turned, alpha=0.25)
        return b.node("Tanh", [scores.name], scores.shape)
    width, turned = b.integer(1, 8), b.integer(0, 1)
    weight = b.weight(*((width, x.shape[-1]) if turned else (x.shape[-1], width)))
    kind = b.one_of(["FusedMatMul", "TransposeMatMul"])
    return b.node(f"{_MS}.{kind}", [x.name, weight], (*x.shape[:-1], width), transB=turned, alpha=0.5)


def skip_norm(b: Builder, x: Value) -> Value | None:
    """A norm of a sum, which is read on now and then."""
    if x.rank != 3:
        return None
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    width = x.shape[-1]
    if b.flag():
        inputs = [x.name, other.name, b.weight(width)]
        kind = "SkipSimplifiedLayerNormalization"
    else:
        inputs = [x.name, other.name, b.weight(width), b.weight(width), *([b.weight(width)] if b.flag() else [])]
        kind = "SkipLayerNormalization"
    if b.flag():
        return b.node(f"{_MS}.{kind}", inputs, x.shape, epsilon=0.1)
    outputs = b.node_of(f"{_MS}.{kind}", inputs, [x.shape] * 4, absent=(1, 2), epsilon=0.1)
    return b.node("Add", [outputs[0].name, outputs[3].name], x.shape)


def projected(b: Builder, x: Value, width: int) -> Value:
    """A linear layer to a width."""
    return b.node("MatMul", [x.name, b.weight(x.shape[-1], width)], (*x.shape[:-1], width))


def multi_head(b: Builder, x: Value) -> Value:
    """Attention of queries, keys and values, their biases in it or not, angles by places before it."""
    heads, size, inner = b.integer(1, 3), 2 * b.integer(1, 2), b.integer(1, 4)
    q, k, v = projected(b, x, heads * size), projected(b, x, heads * size), projected(b, x, heads * inner)
    if b.flag():
        tables = [b.weight(x.shape[1] + 2, size // 2) for _ in range(2)]
        q = b.node(f"{_MS}.RotaryEmbedding", [q.name, b.constant([0]), *tables], q.shape)
    inputs = [q.name, k.name, v.name, *([b.weight(heads * (2 * size + inner))] if b.flag() else [])]
    return b.node(f"{_MS}.MultiHeadAttention", inputs, v.shape, num_heads=heads)


def fused_attention(b: Builder, x: Value) -> Value:
    """Attention with its projections in it; onnxruntime crashes where their bias is absent."""
    heads, size = b.integer(1, 3), b.integer(1, 3)
    width = heads * size
    inputs = [x.name, b.weight(x.shape[-1], 3 * width), b.weight(3 * width)]
    if b.flag():
        inputs += ["", "", b.weight(1, heads, x.shape[1], x.shape[1])]
    return b.node(f"{_MS}.Attention", inputs, (*x.shape[:-1], width), num_heads=heads)


def own_attention(b: Builder, x: Value) -> Value | None:
    """ONNX's own Attention, on three axes, fewer heads of keys than of queries now and then."""
    if b.opset < 23:
        return None
    few, times, size, inner = b.integer(1, 2), b.integer(1, 2), 2 * b.integer(1, 2), b.integer(1, 4)
    many = few * times
    q, k, v = projected(b, x, many * size), projected(b, x, few * size), projected(b, x, few * inner)
    if b.flag():
        tables = [b.weight(x.shape[1], size // 2) for _ in range(2)]
        if b.batch:
            places = b.constant(np.tile(np.arange(x.shape[1]), (x.shape[0], 1)))
            q = b.node("RotaryEmbedding", [q.name, *tables, places], q.shape, num_heads=many)
    inputs = [q.name, k.name, v.name, *([b.weight(many, x.shape[1], x.shape[1])] if b.flag() else [])]
    shape = (*x.shape[:-1], many * inner)
    return b.node("Attention", inputs, shape, q_num_heads=many, kv_num_heads=few)


def few_bits(b: Builder, x: Value) -> Value:
    """A product with a matrix of 4 or 8 bits."""
    blocks, width, bits = b.integer(1, 3), b.integer(1, 6), b.one_of([4, 8])
    wide = projected(b, x, 16 * blocks)
    coded = b.constant(b.rng.integers(0, 256, (width, blocks, 2 * bits)), np.uint8)
    inputs = [wide.name, coded, b.constant(b.rng.uniform(0.01, 0.02, (width, blocks)), np.float32)]
    if b.flag():
        inputs.append(b.constant(b.rng.integers(0, 256, (width, -(-blocks * bits // 8))), np.uint8))
    return b.node(f"{_MS}.MatMulNBits", inputs, (*x.shape[:-1], width), K=16 * blocks, N=width, bits=bits,
                  block_size=16)  # fmt: skip


def fused_gemm(b: Builder, x: Value) -> Value:
    """A Gemm with its activation, or one whose first matrix is turned."""
    width = b.integer(1, 8)
    if b.flag():
        turned = b.transpose(x, [1, 0])
        inputs = [turned.name, b.weight(x.shape[1], width), b.weight(width)]
        return b.node("Gemm", inputs, (x.shape[0], width), transA=1, beta=0.5)
    inputs = [x.name, b.weight(width, x.shape[1]), b.weight(width)]
    return b.node(f"{_MS}.FusedGemm", inputs, (x.shape[0], width), transB=1, activation="LeakyRelu",
                  activation_alpha=0.2)  # fmt: skip


ANY: tuple[Op, ...] = (gelus, fused_matmul)
SEQUENCES: tuple[Op, ...] = (*ANY, skip_norm, multi_head, multi_head, fused_attention, own_attention, few_bits)
ROWS: tuple[Op, ...] = (*ANY, few_bits, fused_gemm)
