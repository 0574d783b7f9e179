"""Sizes of axes by what they are called: exporters write how long one is beside others into its name.

Caches of keys and their mask are `past_sequence_length` and `past_sequence_length + sequence_length` long.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from onnxshap.data import InputSpec

Axis = tuple[str, int]
"""An input, and an axis of it."""
Shape = tuple[int, ...]
_OPS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}
_LONGEST = 200
"""Characters of a name that may be arithmetic."""


def names_in(title: str) -> list[str]:
    """Return the names of the axes that the name of one computes with; none where it is no arithmetic.

    >>> names_in("past + 1"), names_in("past"), names_in("7")
    (['past'], [], [])
    """
    tree = _parsed(title)
    if tree is None or isinstance(tree, ast.Name):
        return []
    found = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not _is_called(tree, node)]
    return list(dict.fromkeys(found))


def size_of(title: str, sizes: Mapping[str, int]) -> int | None:
    """Return how long an axis is whose name is arithmetic on those of others; None where it is none, or below 1.

    >>> size_of("past + length", {"past": 5, "length": 3}), size_of("floor(h/2) - 1", {"h": 9}), size_of("h", {"h": 9})
    (8, 3, None)
    """
    names = names_in(title)
    tree = _parsed(title)
    if tree is None or not names or not all(name in sizes for name in names):
        return None
    found = _value(tree, sizes)
    return found if found is not None and found > 0 else None


def follow(
    specs: Mapping[str, InputSpec], base: Mapping[str, Sequence[int | None]], others: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return shapes whose free axes are as long as their names say, unless the names are not true of other shapes.

    Args:
        specs: tell what the axes of the inputs are called, and which are free.
        base: sizes that are known of the inputs, None those that are not.
        others: the shapes.
    """
    before, after = _named(specs, base), _named(specs, others)
    found = dict(others)
    for name, spec in specs.items():
        for axis, title in enumerate(spec.symbols):
            known = base[name][axis]
            true = known is None or size_of(title, before) == known
            if spec.shape[axis] is None and true and (size := size_of(title, after)) is not None:
                found[name] = (*found[name][:axis], size, *found[name][axis + 1 :])
    return found


def _named(specs: Mapping[str, InputSpec], shapes: Mapping[str, Sequence[int | None]]) -> dict[str, int]:
    """Return name -> size of the first axis that has it, and of those that have none but are computed with."""
    found = dict[str, int]()
    for name, spec in specs.items():
        for title, size in zip(spec.symbols, shapes[name], strict=False):
            if size is not None:
                found.setdefault(title, size)
    return found


@cache
def _parsed(title: str) -> ast.expr | None:
    if not title or len(title) > _LONGEST:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of what would be odd in a program
            return ast.parse(title.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a name may be anything
        return None


def _is_called(tree: ast.expr, name: ast.Name) -> bool:
    return any(isinstance(node, ast.Call) and node.func is name for node in ast.walk(tree))


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int | None:
    """Return what arithmetic gives; None where it is none of whole numbers."""
    match tree:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=value):
            return value if type(value) is int else None
        case ast.Call(func=ast.Name(id="floor"), args=[inner]):
            return _value(inner, sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPS:
            numbers = _value(left, sizes), _value(right, sizes)
            if numbers[0] is None or numbers[1] is None or (numbers[1] == 0 and _OPS[type(op)] is operator.floordiv):
                return None
            return _OPS[type(op)](numbers[0], numbers[1])
    return None
