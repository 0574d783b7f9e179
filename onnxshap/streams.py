"""The streams of random numbers that a run draws from, all of them told apart by its seed and a number.

A number once given stays: seeds that users have noted give what they gave.
"""

from __future__ import annotations

import numpy as np

SAMPLE = 1
"""Which images score, in which order."""
GROUP = 2
"""The coalitions of a group, which is told by its place."""
REFIT_IMAGES = 3
"""Which images a refit holds out."""
REFIT_ROWS = 4
"""Which positions of a layer are rows of its regression, told by the layer and the chunk of images."""
TRIALS = 5
"""Which images the curves are fitted on, which judge them."""
HELD_OUT = 6
"""Which images are held out to judge a job by."""
TUNING_IMAGES = 7
"""Which images distillation holds out."""
TUNING = 8
"""The order of the images that distillation tunes on, and what is done to them."""
ORDER = 9
"""The rows by which it is told what units left make up for, told by the group's place."""
# These have the numbers of distillation's, with which they never run in one job.
ARRANGEMENT = 7
"""Where a search for places of channels starts."""
SPLITTING = 8
"""What a search for places of channels, for the Convs chosen, tries."""


def stream(seed: int, number: int, *place: int) -> np.random.Generator:
    """Return the numbers of a stream; of which part of it, if it has parts."""
    return np.random.default_rng([seed, number, *place])
