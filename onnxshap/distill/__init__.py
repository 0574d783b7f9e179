"""Label-free tuning after the refit.

- `tuner`: the tuning, on the graph as torch evaluates it (`torchgraph`, by `ops`; `spelling` says others by these).
- `objective`: what it lowers, by `losses` of the outputs. `schedule`: epochs by the time that there is.
- `checking`: whether torch computes a model as onnxruntime does.
- `feeds`: images as both take them. `mixing`: more images out of few. `teachers`: what labels them.
- `tuning`: what it did.

All but the last need the extra `onnxshap[distill]` (torch) and are imported by those alone who tune.
"""

from onnxshap.distill.tuning import SECONDS, Tuning, divided

__all__ = ["SECONDS", "Tuning", "divided"]
