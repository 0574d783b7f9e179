"""What can go wrong, as exceptions; the command line turns each into one line and an exit code.

OnnxshapError           exit code 1
├── ModelError          the model cannot be read, traced, run or written
│   └── LoadError       onnxruntime does not load it, whatever it would be fed
├── DataError           calibration or evaluation data do not fit the model, the payoff or themselves
│   └── ShapeError      outputs have other shapes than the original's on the same data
├── BudgetError         no allowed plan meets the budget, or the sampling budget is too small
└── VerifyError         exit code 3: the cut model is not what the masked model promised; nothing was written
"""

from __future__ import annotations


class OnnxshapError(Exception):
    """Base of everything a user can cause; the message is one line: what, where, what to do."""

    exit_code = 1


class ModelError(OnnxshapError):
    """The model cannot be read, traced, run or written."""


class LoadError(ModelError):
    """Onnxruntime does not load the model, whatever it would be fed."""


class DataError(OnnxshapError):
    """The data do not fit the model, the payoff or themselves."""


class ShapeError(DataError):
    """Outputs have other shapes than the original's on the same data: the two cannot be compared."""


class BudgetError(OnnxshapError):
    """No allowed plan meets the budget, or the sampling budget is too small.

    Attributes:
        least: evaluations that would be enough, where there are too few for a game.
    """

    def __init__(self, message: str, least: int | None = None) -> None:
        super().__init__(message)
        self.least = least


class VerifyError(OnnxshapError):
    """The rewritten model differs from its masked twin, or does not load; nothing was written."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, cut to a readable length; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0] if lines else type(error).__name__, 300)


def one_line(error: BaseException, longest: int | None = None) -> str:
    """Return an error's message on one line, cut to a length, if any; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None else shortened(text, longest)


def told(error: BaseException) -> str:
    """Return an error's type and its message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def shortened(text: str, longest: int) -> str:
    """Return a text cut to a length."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
