"""Chains of movements that permute one axis and nothing else: the channel shuffle of a ShuffleNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import reads
from onnxshap.labels import Tensor, Trace
from onnxshap.labels.fixups import Selection
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import Shape

MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
"""Ops that give every value of their first input, in another shape or order."""
_LONGEST = 8
"""Nodes of a chain, about."""


def permutations(shaped: Shaped) -> Iterator[Selection]:
    """Yield chains Reshape - Transpose - ... - Reshape that permute the positions of one axis and nothing else.

    Taken one by one, the two Reshapes would split the axis into factors and tie whole groups of channels; taken
    together they are a Gather, which any cut can follow.
    """
    graph = shaped.graph.model.graph
    readers = Counter(name for node in graph.node for name in reads(node))
    readers.update(o.name for o in graph.output)
    following = {name: k for k, node in enumerate(graph.node) for name in node.input[:1]}
    taken: set[int] = set()
    for start, node in enumerate(graph.node):
        if start in taken or not is_op(node, "Reshape"):
            continue
        chain = [start]
        while (found := _permutation(shaped, chain)) is None:
            last = graph.node[chain[-1]].output[0]
            after = following.get(last)
            if after is None or readers[last] != 1 or not is_op(graph.node[after], *MOVES) or len(chain) > _LONGEST:
                break
            chain.append(after)
        if found is not None:
            taken.update(chain)
            yield found


def _permutation(shaped: Shaped, chain: Sequence[int]) -> Selection | None:
    """Return what some nodes after each other do, if that is a permutation of one axis."""
    nodes = [shaped.graph.model.graph.node[k] for k in chain]
    names = [nodes[0].input[0], *(n.output[0] for n in nodes)]
    shapes: list[Shape | None] = [shaped.shapes.get(n) for n in names]
    if len(chain) < 2 or None in shapes or shapes[0] != shapes[-1] or not shapes[0] or 0 in shapes[0]:
        return None
    before = np.arange(np.prod(shapes[0]), dtype=np.int64).reshape(shapes[0])
    after = before
    for node, shape in zip(nodes, shapes[1:], strict=True):
        if is_op(node, "Transpose"):
            after = after.transpose(attributes(node).get("perm"))
        else:
            after = after.reshape(shape or ())
    for axis in reversed(range(before.ndim)):
        if (names[0], axis) in shaped.varying:
            continue  # a constant index would fix its size
        first = tuple(slice(None) if a == axis else 0 for a in range(before.ndim))
        step = int(np.prod(before.shape[axis + 1 :]))
        index = after[first] // step
        if index.max() < before.shape[axis] and np.array_equal(before.take(index, axis), after):
            others = tuple(a for a in range(before.ndim) if a != axis)
            return Selection(tuple(chain), names[0], names[-1], axis, index, others)
    return None


def trace_permutation(trace: Trace, tensor: Callable[[str], Tensor | None], chain: Selection) -> None:
    """State that a chain gives the positions of its axis in another order, and all others as they are."""
    source, target = tensor(chain.source), tensor(chain.target)
    assert source is not None
    assert target is not None
    for axis in chain.others:
        trace.tie(trace.axis(source, axis), trace.axis(target, axis))
    trace.tie(trace.axis(source, chain.axis)[chain.index], trace.axis(target, chain.axis))
    trace.fixups.append(chain)
