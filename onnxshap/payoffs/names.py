"""The names of the payoffs that come with the tool."""

NAMES = ("ce", "kl", "mse", "joint", "accuracy")
"""Every name that `choose` knows."""
UNLABELLED = ("kl", "mse", "joint")
"""Those that compare with the original's outputs."""


def unlabelled(payoff: object) -> str | None:
    """Return a payoff that a user named if it needs no labels, else None."""
    return next((name for name in UNLABELLED if payoff == name), None)
