"""Other bases for units that linear ops alone touch, so that a cut takes directions instead of channels.

Between what makes some units and what sums them away there may be no nonlinear op: values of attention, queries and
keys, the trunk of an inverted-residual net, factorised layers, a linear code. Such units may be exchanged for any n
independent combinations of them, and the model computes the same: layers that make them get M W, those that read them
W M^-1. Cut to k units, a layer's inputs are then its k best linear functions instead of k channels (`directions`).
Each head has bases of its own.

- `carriers`: where units are. `probing`: which bases a model bears, by running it. `roles`: what goes with what.
- `directions`: the best basis. `turning`: all of it, from a traced model to one in new bases. `stored`: what is kept
  of it beside values.

Source: Jaderberg et al. 2014 and Zhang et al. 2015 (low rank from responses), Ashkboos et al. 2024 (SliceGPT: one
rotation of a trunk); differs: every group that the model is found to bear one in, any invertible basis, weighted by
what reads the units.
"""

from onnxshap.bases.stored import Bases, Basis, form_of
from onnxshap.bases.turning import BASES, Turned, check_basis, turned

__all__ = ["BASES", "Bases", "Basis", "Turned", "check_basis", "form_of", "turned"]
