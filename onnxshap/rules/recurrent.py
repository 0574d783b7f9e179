"""Recurrent ops: what goes in is summed away by constant weights; the hidden width feeds itself and stays."""

from __future__ import annotations

from onnxshap.labels import Axes, Op, RuleError
from onnxshap.rules.registry import rule


@rule("GRU", "LSTM", "RNN")
def recurrent(op: Op, ax: Axes) -> None:
    """X [steps, images, in], W [directions, gates, in], R, B, lengths, states [directions, images, hidden]."""
    if int(op.attributes.get("layout", 0)):
        raise RuleError(f"{op.type} with images first")
    if not op.need(1).constant:
        raise RuleError(f"{op.type} with computed weights")
    images = ax.input(0, 1)
    ax.tie(ax.input(0, 2), ax.input(1, 2))
    ax.contract(0, 2)
    for out, y in enumerate(op.outputs):
        if y is not None:  # Y [steps, directions, images, hidden], then the last states
            ax.tie(ax.output(out, -2), images)
            ax.freeze(ax.output(out, -1), f"{op.type} feeds its hidden units back, where nothing can be masked")
    if op.outputs and op.outputs[0] is not None:
        ax.tie(ax.output(0, 0), ax.input(0, 0))
    for k in (5, 6):
        if op.input(k) is not None:
            ax.tie(ax.input(k, 1), images)
