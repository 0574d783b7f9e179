"""The equations of Einsum, as `"bij, bjk -> bik"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def terms_of(attributes: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Return the terms of an Einsum's inputs and that of its output, None where it is left to be implied.

    >>> terms_of({"equation": "bij, bjk -> bik"})
    (['bij', 'bjk'], 'bik')
    """
    left, arrow, right = str(attributes["equation"]).replace(" ", "").partition("->")
    return left.split(","), right if arrow else None
