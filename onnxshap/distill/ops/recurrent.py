"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxshap.distill.ops.base import Op, unknown

_GATES: Mapping[str, tuple[Any, list[int]]] = {
    "LSTM": (torch.lstm, [0, 2, 3, 1]), "GRU": (torch.gru, [1, 0, 2]), "RNN": (torch.rnn_tanh, [0])
}  # fmt: skip
"""Recurrent op -> torch's, and the places of torch's gates among ONNX's."""


def _recurrent(kind: str) -> Op:
    run, places = _GATES[kind]

    def gates(value: Tensor) -> Tensor:
        """Return [gates x hidden, ...] in torch's order of gates."""
        return torch.cat([value.chunk(len(places))[k] for k in places])

    def op(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor, ...]:
        padded: list[Any] = [*i] + [None] * (7 - len(i))
        x, w, r, bias, lengths, *states = padded
        odd = {"activations", "activation_alpha", "activation_beta", "clip"} & set(a) or a.get("input_forget", 0)
        reverse = a.get("direction", "forward") == "reverse"
        shorter = lengths is not None and bool((lengths != x.shape[0]).any())
        if odd or shorter or len(i) > 7 or a.get("layout", 0):
            raise unknown(f"{kind} of another form than torch's")
        ways, hidden = r.shape[0], r.shape[2]
        bias = x.new_zeros(ways, 2 * w.shape[1]) if bias is None else bias
        flat = []
        for way in range(ways):
            sides = bias[way].chunk(2)
            flat += [gates(w[way]), gates(r[way]), *(gates(side) for side in sides)]
        start = [x.new_zeros(ways, x.shape[1], hidden) if state is None else state for state in states[:2]]
        if kind == "GRU" and not a.get("linear_before_reset", 0):
            return _gru(x, w, r, bias, start[0], [reverse] if ways == 1 else [False, True])
        given: Any = tuple(start) if kind == "LSTM" else start[0]
        y, *last = run(x.flip(0) if reverse else x, given, flat, True, 1, 0.0, False, ways == 2, False)
        y = y.reshape(*y.shape[:2], ways, hidden).permute(0, 2, 1, 3)
        return (y.flip(0) if reverse else y, *last)

    return op


def _gru(x: Tensor, w: Tensor, r: Tensor, bias: Tensor, start: Tensor, turned: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return what a GRU gives that resets its state before the multiplication, step by step: torch has none."""
    ways, last = [], []
    for way, backwards in enumerate(turned):
        of_input, of_state = bias[way].chunk(2)
        update, reset, new = (x @ w[way].T + of_input).chunk(3, dim=2)
        gates, of_gates = r[way].chunk(3), of_state.chunk(3)
        h, steps = start[way], []
        for k in reversed(range(len(x))) if backwards else range(len(x)):
            z, q = (torch.sigmoid(g[k] + h @ gates[n].T + of_gates[n]) for n, g in enumerate((update, reset)))
            h = (1 - z) * torch.tanh(new[k] + (q * h) @ gates[2].T + of_gates[2]) + z * h
            steps.append(h)
        ways.append(torch.stack(steps[::-1] if backwards else steps))
        last.append(h)
    return torch.stack(ways, dim=1), torch.stack(last)


RECURRENT: Mapping[str, Op] = {kind: _recurrent(kind) for kind in _GATES}
