"""The table from op to rule."""

from __future__ import annotations

from collections.abc import Callable

from onnxshap.labels import Axes, Op

Rule = Callable[[Op, Axes], None]
RULES: dict[str, Rule] = {}
"""Op type (`domain.type` outside the default domain) -> rule."""


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register a rule for op types.

    Raises:
        ValueError: a type has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in types:
            if name in RULES:
                raise ValueError(f"{name} has a rule already")
            RULES[name] = function
        return function

    return register
