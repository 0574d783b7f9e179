"""Games: the payoffs of coalitions of one group's units, image by image."""

from onnxshap.game.group import GroupGame
from onnxshap.game.setting import Setting

__all__ = ["GroupGame", "Setting"]
