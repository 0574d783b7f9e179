"""Modules with loops that torch's exporters keep: by scripting, or by torch's own scan and while_loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop


class Refining(nn.Module):  # type: ignore[misc] # torch is not followed
    """A trunk that is refined by the same layers several times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 10, 3, padding=1)
        self.back = nn.Conv2d(10, 6, 3, padding=1)
        self.squeeze = nn.Linear(6, 8)
        self.excite = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of [images, 3, height, width], refined a quarter of the height times."""
        found = torch.relu(self.stem(x))
        for _ in range(x.shape[2] // 4):
            found = found + self.back(torch.relu(self.wide(found)))
            scale = self.excite(torch.nn.functional.gelu(self.squeeze(found.mean((2, 3)))))
            found = found * torch.sigmoid(scale)[:, :, None, None]
        scores: Tensor = self.head(found.mean((2, 3)))
        return scores


class Looping(nn.Module):  # type: ignore[misc] # torch is not followed
    """A recurrent cell of two layers, over all steps, or four times over their mean."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.wide = nn.Linear(4 + 6, 8)
        self.back = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def step(self, state: Tensor, entry: Tensor) -> Tensor:
        """Return the next state."""
        found: Tensor = torch.tanh(self.back(torch.relu(self.wide(torch.cat([state, entry], 1)))))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of [images, steps, 4]."""
        state = x.new_zeros(x.shape[0], 6)
        if self.kind == "scan":

            def forwards(state: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
                state = self.step(state, entry)
                return state, state.clone()

            state = scan(forwards, state, x, dim=1)[1].mean(1)
        else:
            entry = x.mean(1)
            _, state = while_loop(
                lambda count, state: count < 4,
                lambda count, state: (count + 1, self.step(state, entry)),
                (torch.tensor(0), state),
            )
        scores: Tensor = self.head(state)
        return scores
