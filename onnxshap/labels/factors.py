"""Products whose factors are products, and one axis that is split in two ways: brought to the same factors.

torch's old exporter writes the view of unfolded windows as two Reshapes: channels and taps are merged, [24, 3, 3], and
split otherwise, [4, 6, 9]. Both are [4, 6, 3, 3]: then 24 is the product of 4 and 6, and 9 that of 3 and 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import IntArray
from onnxshap.labels.trace import Product


def common_factors(source: Sequence[int], target: Sequence[int]) -> list[int] | None:
    """Return the coarsest list of factors of which both lists of sizes are products of neighbours, None if none is.

    >>> common_factors([6, 4], [2, 12])
    [2, 3, 4]
    >>> common_factors([6, 4], [4, 6]) is None
    True
    """
    ends = sorted({math.prod(sizes[: i + 1]) for sizes in (source, target) for i in range(len(sizes))})
    if any(big % small for small, big in itertools.pairwise(ends)):
        return None
    return [big // small for small, big in itertools.pairwise([1, *ends]) if big > small]


def spans_of(sizes: Sequence[int], factors: Sequence[int]) -> Iterator[range]:
    """Yield which of the factors each size is the product of."""
    stop = 0
    for size in sizes:
        start = stop
        while math.prod(factors[start:stop]) < size:
            stop += 1
        yield range(start, stop)


def refined(products: Sequence[Product], classes: NDArray[np.int32]) -> list[Product]:
    """Return the products with as many factors as they say of each other.

    Factors that are merged axes of other products are replaced by the factors of those: what is dead where A or F is,
    with F dead where B or C is, is dead where A, B or C is. Two products of one axis whose sizes divide each other
    split each other's factors.

    Args:
        products: any, in any order.
        classes: int[atoms], which atoms live or die together.
    """
    stated = sorted(products, key=lambda p: (in_order(p.merged), [in_order(f) for f in p.factors]))
    known = {_content(product, classes) for product in stated}
    while True:
        flat, first = _flattened(stated, classes), dict[bytes, Product]()
        for product in flat:
            other = first.setdefault(_key(product.merged, classes), product)
            if other.merged.shape == product.merged.shape:
                continue
            if more := [p for p in _refinement(other, product) if _content(p, classes) not in known]:
                stated += more
                known.update(_content(p, classes) for p in more)
                break
        else:
            return flat


def in_order(atoms: IntArray) -> bytes:
    """Return what compares as a list of the atoms does."""
    return atoms.astype(">u4").tobytes()


def _flattened(products: Sequence[Product], classes: NDArray[np.int32]) -> list[Product]:
    merged: dict[bytes, Product] = {}
    for product in products:
        merged.setdefault(_key(product.merged, classes), product)

    def flat(product: Product, around: frozenset[bytes]) -> Product:
        factors, free = list[IntArray](), set[int]()
        inside = around | {_key(product.merged, classes)}  # beside a factor of 1 the other is as large: so this ends
        for number, factor in enumerate(product.factors):
            inner = None if (key := _key(factor, classes)) in inside else merged.get(key)
            if inner is None:
                free |= {len(factors)} if number in product.free else set()
                factors.append(factor)
            else:
                part = flat(inner, inside)
                free |= {len(factors) + k for k in part.free}
                factors += part.factors
        shape = [len(f) for f in factors]
        return Product(product.merged.reshape(shape), tuple(factors), product.where, frozenset(free))

    return [flat(product, frozenset()) for product in products]


def _refinement(one: Product, other: Product) -> list[Product]:
    """Return products of factors, with which two products of one axis have the same factors.

    Nothing where their sizes do not divide each other, do so at these sizes alone, or a factor would be one that
    neither has.
    """
    if by_chance(one, other):
        return []
    sizes = common_factors(one.merged.shape, other.merged.shape) or []
    parts = [
        (factor, span, number in product.free)
        for product in (one, other)
        for number, (factor, span) in enumerate(
            zip(product.factors, spans_of(product.merged.shape, sizes) if sizes else (), strict=False)
        )
    ]
    known = {span.start: factor for factor, span, _ in reversed(parts) if len(span) == 1}
    if len(known) < len(sizes):
        return []
    moving = {span.start for _, span, is_free in parts if len(span) == 1 and is_free}
    return [
        Product(
            factor.reshape([sizes[k] for k in span]),
            tuple(known[k] for k in span),
            one.where,
            frozenset(k - span.start for k in span if k in moving),
        )
        for factor, span, _ in parts
        if len(span) > 1
    ]


def by_chance(one: Product, other: Product) -> bool:
    """Return whether the sizes of two products of one axis agree, if they do, at these sizes alone.

    [8, N] and [N, 8] do at two images.
    """
    sizes = common_factors(one.merged.shape, other.merged.shape)
    if sizes is None or not (one.free or other.free):
        return False
    spans = [span for p in (one, other) for span in spans_of(p.merged.shape, sizes)]
    return not follow(spans, [k in p.free for p in (one, other) for k in range(len(p.factors))])


def follow(spans: Sequence[range], free: Sequence[bool]) -> bool:
    """Return whether what has a free size holds a factor each that nothing of a fixed size holds: one that may follow.

    >>> follow([range(1), range(1, 3), range(2), range(2, 3)], [True, False, True, False])  # [N, 12] -> [N * 3, 4]
    True
    >>> follow([range(1), range(1, 2), range(1), range(1, 2)], [True, False, False, True])  # [N, 4] -> [2, 2 * N]
    False
    """
    fixed = {k for span, is_free in zip(spans, free, strict=True) if not is_free for k in span}
    return all(not fixed.issuperset(span) for span, is_free in zip(spans, free, strict=True) if is_free)


def _key(atoms: IntArray, classes: NDArray[np.int32]) -> bytes:
    return classes[atoms].tobytes()


def _content(product: Product, classes: NDArray[np.int32]) -> tuple[bytes, ...]:
    """Return what tells a product from others: what is merged, and of what."""
    return _key(product.merged, classes), *(_key(factor, classes) for factor in product.factors)
