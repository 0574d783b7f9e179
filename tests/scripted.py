"""A module with a loop that torch's scripting keeps: how often it runs depends on a size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
