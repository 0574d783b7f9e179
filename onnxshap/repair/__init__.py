"""Least-squares repair: after the cut, every linear op is refitted to give what it gave before.

Layer by layer from input to output, on the cut model's own inputs (earlier layers repaired already), against the
original model's values (`walks`): ridge regression toward the present weights, closed form, from Gram matrices in
float64 (`linear`, `regression`, `systems`).

- What a layer answers for (`targets`): its output, or, where that goes into a residual sum, the *sum*, which also
  repairs what the skip path lost. Where the activation behind it is flat (below 0 before a ReLU), any value in the flat
  part is as good as the original's, and the fit is free to take it.
- Gates of an LSTM, GRU or RNN are fitted on what comes in and on the original's states (`recurrent`, `cells`).
- The ridge is chosen on held-out images, layer by layer; it pulls to the present weights, scaled and shifted to give
  the means and variances that were (`moments`) where that alone is nearer. A layer whose held-out error nothing lowers
  is left as it is.

Before that, and where there are too few images for it, `fold`: the means of removed channels in the consumers' biases,
then per-channel means and variances made what they were (`matching`, by `moments`).

Source: He et al. 2017 (channel pruning, eq. 3), Hoerl and Kennard 1970, Zhang et al. 2015 (nonlinear responses,
eq. 6-9); differs: ridge toward the present weights, sum targets, sequential on repaired inputs, and the auxiliary
variable is projected on the flat part instead of penalised.
"""

from onnxshap.repair.border import border
from onnxshap.repair.fitting import refit, refit_edited, rematch, rematch_edited
from onnxshap.repair.regression import FEWEST_IMAGES, FULL, QUICK, Effort, Refit
from onnxshap.repair.targets import emptied, unfitted
from onnxshap.repair.walks import batch_size

__all__ = [
    "FEWEST_IMAGES",
    "FULL",
    "QUICK",
    "Effort",
    "Refit",
    "batch_size",
    "border",
    "emptied",
    "refit",
    "refit_edited",
    "rematch",
    "rematch_edited",
    "unfitted",
]
