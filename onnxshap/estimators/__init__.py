"""Methods that play a game: frozen dataclasses whose fields are their hyperparameters, called with (game, rng)."""

from onnxshap.estimators.exact import Exact
from onnxshap.estimators.gradient import Fisher, Taylor
from onnxshap.estimators.loo import LeaveOneOut
from onnxshap.estimators.permutation import Permutation
from onnxshap.estimators.regression import Regression
from onnxshap.estimators.shared import SharedPermutation

__all__ = ["Exact", "Fisher", "LeaveOneOut", "Permutation", "Regression", "SharedPermutation", "Taylor"]
