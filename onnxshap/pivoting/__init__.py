"""Matrix pivoting: Convs become Convs in groups, their channels in the order in which the groups explain most.

Channels change places on every tensor they are on, which changes nothing but the order of sums (`permuting`), so that
little of a Conv's outputs is lost (`convs`) with all but k diagonal blocks of its weights (`arranging`). The blocks
stay: a Conv(group=k) with 1/k of the multiply-accumulates; what the dropped ones gave is made up for by least squares
(`repair`), layer by layer on the new model's own inputs, against what the original gave. A Conv is taken only where its
form in groups runs faster here, measured in turn with the whole one (`splitting`): runtimes are slow on narrow groups;
of those the ones that lose least for what they save (`choosing`).
`attempts` are models that save so much; `job` is all of it, from a file to a verified file.

Source: Sredojevic et al. 2017 (matrix pivoting); differs: no training, refitted weights, measured times.
"""

from onnxshap.pivoting.job import GROUPS, REPAIRS, Pivoted, Split, pivot
from onnxshap.pivoting.splitting import Timed

__all__ = ["GROUPS", "REPAIRS", "Pivoted", "Split", "Timed", "pivot"]
