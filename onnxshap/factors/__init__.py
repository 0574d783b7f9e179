"""The rank of a layer as units: a kernel of h x w as a column of h x 1 and a row of 1 x w, r channels between them.

Any dense Conv is such a pair of enough channels (its weight is a matrix, of columns by rows), and computes the same; a
1 x 1 Conv, a Gemm and a MatMul with a constant are those whose column and row are one position: two of lower rank.
The channels between are units that linear ops alone touch: a plan cuts them beside the filters, and where it leaves
more of them than pay the layer is one again, as in the file.

- `layers`: which ones. `columns`: what they read, seen through a column of the kernel. `separable`: the pair whose
  first r channels lose least. `pairs`: it in the graph. `bearing`: which layers the model bears as two. `splitting`:
  all of it, from a traced model to one with pairs.

Source: Rigamonti et al. 2013 and Jaderberg et al. 2014 (separable filters), Zhang et al. 2015 (low rank from
responses, beside pruned channels), Izenman 1975 (reduced-rank regression, what is left of it without a kernel);
differs: closed form from the covariance of what is read, ranks and widths from one plan, and a refit of both halves.
"""

from onnxshap.factors.layers import LOW_RANK
from onnxshap.factors.splitting import Factored, LowRank, check_low_rank, factored, notes_on

__all__ = ["LOW_RANK", "Factored", "LowRank", "check_low_rank", "factored", "notes_on"]
