"""Recurrent ops: what goes in is summed away by constant weights, and so are hidden units, which feed themselves."""

from __future__ import annotations

from onnxshap.labels import Axes, Op, RuleError
from onnxshap.labels.fixups import HeadCount
from onnxshap.rules.registry import rule

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


@rule(*_GATES)
def recurrent(op: Op, ax: Axes) -> None:
    """X [steps, images, in], W [directions, gates, in], R [.., gates, hidden], B, lengths, states [.., images, hidden].

    A hidden unit is the same in all directions. Where it feeds itself it can be masked in the weights alone, which all
    images share.
    """
    if int(op.attributes.get("layout", 0)):
        raise RuleError(f"{op.type} with images first")
    x, w, r = (op.need(k) for k in range(3))
    if not w.constant or not r.constant:
        raise RuleError(f"{op.type} with computed weights")
    gates, images, hidden = _GATES[op.type], ax.images(0, 1), ax.input(2, 2)
    ax.tie(ax.input(0, 2), ax.input(1, 2))
    ax.contract(0, 2)
    ax.contract(2, 2)
    for k, count in ((1, gates), (2, gates), (3, 2 * gates), (7, gates - 1)):
        if op.input(k) is not None:  # W, R, B of both, peepholes
            for gate in ax.input(k, 1).reshape(count, len(hidden)):
                ax.tie(gate, hidden)
    for out, y in enumerate(op.outputs):
        if y is not None:  # Y [steps, directions, images, hidden], then the last states
            ax.tie(ax.output(out, -2), images)
            ax.tie(ax.output(out, -1), hidden)
            ax.make(-1, out)
    keep_steps(op, ax)
    for k in (5, 6):
        if op.input(k) is not None:
            ax.tie(ax.input(k, 1), images)
            ax.tie(ax.input(k, 2), hidden)
    for weights in (w, r):
        ax.macs((x, 0), (x, 1), *((weights, axis) for axis in range(3)))
    ax.fix(HeadCount(op.index, r.name, "hidden_size", 2))


def keep_steps(op: Op, ax: Axes) -> None:
    """State that the steps, axis 0 of what comes in and of all states, stay: an empty one moves the states on, too."""
    steps = [ax.input(0, 0), *([ax.output(0, 0)] if op.outputs and op.outputs[0] is not None else [])]
    ax.cross(0)
    for atoms in steps:
        ax.freeze(atoms, f"{op.type} takes it in steps, one after the other")
