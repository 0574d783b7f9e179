"""Label-free tuning after the refit: `tuner`, on the graph as torch evaluates it (`torchgraph`).

Both need the extra `onnxshap[distill]` (torch) and are imported by those alone who tune; `tuning`, what it did, by all.
"""

from onnxshap.distill.tuning import SECONDS, Tuning, divided

__all__ = ["SECONDS", "Tuning", "divided"]
