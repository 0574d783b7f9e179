"""The original, which labels what the cut model learns from: in onnxruntime, or in torch on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxshap.backend import Session
from onnxshap.distill.feeds import all_laid_out, run_session
from onnxshap.distill.torchgraph import TorchGraph


@dataclass(frozen=True)
class OrtTeacher:
    """The original in onnxruntime, which is faster on a processor."""

    session: Session

    def __call__(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return its tensors for some images, on the device of these."""
        return [torch.from_numpy(value) for value in run_session(self.session, feeds)]


@dataclass(frozen=True)
class TorchTeacher:
    """The original in torch, on a device: nothing has to be copied to and fro."""

    graph: TorchGraph
    names: Sequence[str]

    def __call__(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return its tensors for some images, on the device of these."""
        with torch.no_grad():
            return self.graph(all_laid_out(feeds), self.names)
