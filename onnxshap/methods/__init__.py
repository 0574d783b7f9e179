"""Every `--method` by name: a function from a setting and a group to values. Higher = keep.

shapley             mean over images of the marginal contributions along each image's own permutations
shapley-stratified  the same, every unit once in every place of the walks of n images (Latin squares)
shapley-truncated   the same without coalitions below a tenth of the units
shapley-quick       the same without coalitions above half of the units: for few evaluations, drawn toward the mean
shapley-independent the same without reversed second walks
shapley-regression  fit to coalitions that all images share, corrected for their size: for payoffs that are one number
                    for all images
shapley-mean+2sigma the first, reduced over images as in the paper's experiments
permutation-shared  the first, with the paper's few permutations that all images share (for comparison)
exact               Shapley values by enumeration, up to 16 units a group
loo                 what removing the one unit costs
loo-logit           how far removing the one unit moves the outputs
loo-logit-iterated  the same in seven rounds, each without what went before
taylor, taylor-signed, taylor-sq, fisher
                    first-order estimates of that cost, gradients by float masks
sensitivity         size of the payoff's gradient over a channel's positions
spp                 probabilities to go, moved by rank round after round, so that decisions can be taken back
lean                heaviest paths of operator norms through the whole network; weights alone
recon               error that a refit of the layers behind leaves when the unit goes, greedily from the cheapest on
activation, apoz    mean absolute activation; share of activations above zero
l1, l2              norms of the weights that make the unit, BatchNormalization's scale folded in
random              uniform, seeded
"""

from __future__ import annotations

from onnxshap.estimators import Exact, Fisher, LeaveOneOut, Permutation, Regression, SharedPermutation, Taylor
from onnxshap.methods.base import ByImage, Method, Whole
from onnxshap.methods.lean import lean
from onnxshap.methods.logits import distance, iterated, rows_of_rounds
from onnxshap.methods.recon import recon
from onnxshap.methods.sensitivity import rows_of_probes, sensitivity
from onnxshap.methods.spp import rows_of_pairs, spp
from onnxshap.methods.statistics import activations, norm, random

__all__ = ["GAMELESS", "METHODS", "ByImage", "Method", "Whole"]

METHODS: dict[str, Method] = {
    "shapley": ByImage(Permutation()),
    "shapley-stratified": ByImage(Permutation(stratified=True)),
    "shapley-truncated": ByImage(Permutation(min_share=0.1)),
    "shapley-quick": ByImage(Permutation(max_share=0.5)),
    "shapley-independent": ByImage(Permutation(antithetic=False)),
    "shapley-regression": ByImage(Regression()),
    "shapley-mean+2sigma": ByImage(Permutation(reduction="mean+2std")),
    "permutation-shared": ByImage(SharedPermutation()),
    "exact": ByImage(Exact()),
    "loo": ByImage(LeaveOneOut()),
    "loo-logit": ByImage(LeaveOneOut(), payoff=distance),
    "loo-logit-iterated": Whole(iterated, rows_of_rounds),
    "taylor": ByImage(Taylor("abs"), zero_filled=True),
    "taylor-signed": ByImage(Taylor("signed"), zero_filled=True),
    "taylor-sq": ByImage(Taylor("square"), zero_filled=True),
    "fisher": ByImage(Fisher(), zero_filled=True),
    "sensitivity": Whole(sensitivity, rows_of_probes, plays=True),
    "spp": Whole(spp, rows_of_pairs, plays=True),
    "recon": Whole(recon),
    "lean": Whole(lean),
    "activation": activations("abs"),
    "apoz": activations("positive"),
    "l1": norm(1),
    "l2": norm(2),
    "random": Whole(random),
}
"""Name -> method."""

GAMELESS = frozenset(name for name, method in METHODS.items() if isinstance(method, Whole) and not method.games)
"""Methods that evaluate no rows: an image costs them one run at most, so they take more images."""
