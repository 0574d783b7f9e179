"""Loop and Scan nodes whose bodies stand beside them: what goes in and out is the same inside and outside.

Positions of a state are the same ones at every iteration, before and after them: it is as if the loop were written out,
all iterations with the same weights. What is left frozen: the axis along which the iterations lie, and what tells how
often the body runs.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import NodeProto

from onnxshap.graph.lifting import body
from onnxshap.graph.loops import Passage, controls, handed_on, passages
from onnxshap.labels import Tensor, Trace
from onnxshap.labels.fixups import Declared


def trace_loop(trace: Trace, tensor: Callable[[str], Tensor | None], index: int, node: NodeProto) -> None:
    """State the relations of a Loop or Scan whose body stands beside it.

    Args:
        trace: gets them.
        tensor: name -> the tensor, None where it has no fixed shape.
        index: of the node.
        node: the Loop or Scan.
    """
    for name in controls(node):
        if (control := tensor(name)) is not None:
            trace.freeze_whole(control, "Loop counts its iterations by it")
    for passage in passages(node):
        _pass(trace, tensor(passage.inner), tensor(passage.outer), passage, node.op_type)
    trace.fixups.append(Declared(index, tuple(i.name for i in body(node).input), tuple(handed_on(node))))


def _pass(trace: Trace, inner: Tensor | None, outer: Tensor | None, passage: Passage, op: str) -> None:
    """Tie the axes of a passage, or freeze them where they are not the same."""
    sides = [side for side in (inner, outer) if side is not None]
    left = [] if outer is None else list(range(outer.rank))
    if outer is not None and passage.axis is not None:
        trace.freeze(trace.axis(outer, passage.axis), f"{op} has its iterations on it")
        del left[passage.axis]
    if inner is None or outer is None or inner.shape != tuple(outer.shape[axis] for axis in left):
        for side in sides:
            trace.freeze_whole(side, f"{op} hands it on from iteration to iteration, of other sizes each time")
        return
    for k, axis in enumerate(left):
        trace.tie(trace.axis(inner, k), trace.axis(outer, axis))
