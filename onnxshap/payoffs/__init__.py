"""Payoffs: what a model's outputs are worth, as float64[rows], higher is better; `choose` picks one and fits it.

    integer labels              ce     log p(label), in nats
    labels that are all 0 or 1  ce     the same, of two classes that every entry of an output tells apart
    other float labels          mse    minus the relative squared error to the targets
    no labels, class scores     kl     minus KL(original || output), in nats
    no labels, no class scores  mse    minus the relative squared error to the original outputs
    no labels, outputs of both  joint  minus the mean over outputs of what each loses (kl, mse) of what its mean would

What a payoff must know of the original model (which output, logits or probabilities, the scale) is in its fields and
decided once by `choose`. So a row's payoff depends on that row alone, never on the batch it was evaluated in.
"""

from onnxshap.payoffs.builtin import KL, MSE, Accuracy, CrossEntropy, Joint
from onnxshap.payoffs.checked import as_classes
from onnxshap.payoffs.choice import choose, units_of
from onnxshap.payoffs.custom import Custom, OverAll, custom
from onnxshap.payoffs.expected import Expectation
from onnxshap.payoffs.fidelity import Fidelity
from onnxshap.payoffs.names import NAMES, UNLABELLED, unlabelled

__all__ = [
    "KL",
    "MSE",
    "NAMES",
    "UNLABELLED",
    "Accuracy",
    "CrossEntropy",
    "Custom",
    "Expectation",
    "Fidelity",
    "Joint",
    "OverAll",
    "as_classes",
    "choose",
    "custom",
    "units_of",
    "unlabelled",
]
