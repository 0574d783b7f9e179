"""The rank of a Conv as units: a kernel of h x w as a column of h x 1 and a row of 1 x w, r channels between them.

Any dense Conv is such a pair of enough channels (its weight is a matrix, of columns by rows), and computes the same.
The channels between are units that linear ops alone touch: a plan cuts them beside the filters, and where it leaves
more of them than pay the Conv is one again, as in the file.

- `layers`: which Convs. `columns`: what they read, seen through a column of the kernel. `separable`: the pair whose
  first r channels lose least. `splitting`: all of it, from a traced model to one with pairs.

Source: Rigamonti et al. 2013 and Jaderberg et al. 2014 (separable filters), Zhang et al. 2015 (low rank from
responses, beside pruned channels); differs: closed form from the covariance of what is read, ranks and widths from one
plan, and a refit of both halves.
"""

from onnxshap.factors.splitting import LOW_RANK, Factored, LowRank, check_low_rank, factored

__all__ = ["LOW_RANK", "Factored", "LowRank", "check_low_rank", "factored"]
