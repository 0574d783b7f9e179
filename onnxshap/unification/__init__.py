"""Micro-structured weight unification: blocks of weights share one magnitude, so that the file compresses better.

The weights of a block, some that lie side by side in the file, keep their signs and get the magnitude

    u = sum(H_jj |w_j|) / sum(H_jj),        H_jj = mean square of the input that w_j multiplies,

which loses sum(H_jj (|w_j| - u)^2): but for correlations of the inputs what the output's mean square error grows by.
Blocks are unified in the order of that loss, weighed by what the outputs lose when the whole layer is unified and by
the weights they make equal, until the compressed file has the size wanted; what changes in the mean of an output goes
into its bias, where there is one. The kernels stay dense and the model computes as much as before: what is gained is
bytes in storage and on the wire, never time.

- `blocks`: what each block would share and lose, which goes first, the model with some of them unified.
- `sizes`: bytes of a model's file, as it is and compressed.
- `job`: all of it, from a file to a file.

Source: Lin et al. 2021 (micro-structured weight unification); differs: blocks along the file instead of 2-D tiles, and
inputs' energies from calibration data instead of retraining.
"""

from onnxshap.unification.job import Unified, unify
from onnxshap.unification.sizes import CODECS, Size

__all__ = ["CODECS", "Size", "Unified", "unify"]
