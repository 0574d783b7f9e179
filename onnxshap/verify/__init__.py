"""The checks that a cut model passes before a file appears: it is valid, it loads, and it equals its masked twin.

What both are made of has to be what the file computes, too. Where a model chooses by what it computes (the largest of
some scores, boxes above a threshold), rounding may tip a tie; then the models are held to each other before every
choice and, with the twin's choices, behind it (`choices`). Where the kernel of a norm rounds more than is allowed of
two models, they are held to each other with norms in double precision (`exactly`).
"""

from onnxshap.verify.checking import check_loads, tolerance, verify, verify_twin
from onnxshap.verify.errors import Verified, compare

__all__ = ["Verified", "check_loads", "compare", "tolerance", "verify", "verify_twin"]
