"""The names of the payoffs that come with the tool."""

NAMES = ("ce", "kl", "mse", "joint", "accuracy")
"""Every name that `choose` knows."""
