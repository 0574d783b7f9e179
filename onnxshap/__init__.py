"""onnxshap: makes an exported ONNX model smaller and faster without its training code.

>>> import onnxshap
>>> sorted(onnxshap.METHODS)[:3]
['activation', 'apoz', 'exact']
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshap.api import Pruned, prune, score
    from onnxshap.backend import OrtBackend
    from onnxshap.calibrate import site_means
    from onnxshap.comparing import compare
    from onnxshap.core import Dataset, Values
    from onnxshap.errors import BudgetError, DataError, ModelError, OnnxshapError, VerifyError
    from onnxshap.graph import load, save
    from onnxshap.groups import Group
    from onnxshap.masking import insert_masks, mask_name
    from onnxshap.methods import METHODS
    from onnxshap.pivoting import Pivoted, pivot
    from onnxshap.plan import Budget, make_plan
    from onnxshap.rewrite import drop_units
    from onnxshap.scores import Scores
    from onnxshap.slices import removed_slices
    from onnxshap.sweeping import Sweep, sweep
    from onnxshap.tracing import Traced, trace
    from onnxshap.unification import Unified, unify

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Budget",
    "BudgetError",
    "DataError",
    "Dataset",
    "Group",
    "ModelError",
    "OnnxshapError",
    "OrtBackend",
    "Pivoted",
    "Pruned",
    "Scores",
    "Sweep",
    "Traced",
    "Unified",
    "Values",
    "VerifyError",
    "compare",
    "drop_units",
    "insert_masks",
    "load",
    "make_plan",
    "mask_name",
    "pivot",
    "prune",
    "removed_slices",
    "save",
    "score",
    "site_means",
    "sweep",
    "trace",
    "unify",
]

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import the library on first use: the command line's --help and completion need none of it."""
        if name in __all__:
            import importlib

            for home in (
                "errors",
                "api",
                "calibrate",
                "comparing",
                "graph",
                "masking",
                "methods",
                "pivoting",
                "plan",
                "rewrite",
                "scores",
                "slices",
                "sweeping",
                "tracing",
                "unification",
            ):
                module = importlib.import_module(f"onnxshap.{home}")
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
