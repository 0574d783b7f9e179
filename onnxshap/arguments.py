"""What users hand to the library, held against the annotations it is written with: one line, not a TypeError within.

Messages are written in the words of the command line, `--eval-data`; who called the library itself is told of its
arguments, `eval_data`: of errors by what it called (`checked`), of notes by who writes them (`worded`).
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, SupportsFloat, SupportsIndex, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from onnxshap.errors import OnnxshapError, shortened

Function = TypeVar("Function", bound=Callable[..., Any])
_OWN_WORDS = frozenset({"labels", "values"})
"""What is refused where it is read, in words that help more."""
_NUMBERS: Mapping[object, tuple[type, Callable[[Any], object]]] = {
    int: (SupportsIndex, operator.index),
    float: (SupportsFloat, float),
}
_OTHERWISE = {
    "untimed": "timed=False",
    "provider": "an OrtBackend of provider",
    "normalize": "onnxshap.data.Images",
    **{f"keep_{share}": f"Budget.{share}" for share in ("macs", "params", "bytes", "units")},
    **{name: f"Budget.{name}" for name in ("multiple_of", "min_units")},
    "journal": "journal",
}
"""What the library has in place of options that are no arguments of what was called."""
_WORDS = {int: "whole number", float: "number", str: "string", Path: "path", NoneType: "None"}
_UNCOUNTED = (NoneType, bytes)


class _UnfitError(Exception):
    """A value is not what an annotation says."""


def checked(function: Function) -> Function:
    """Return a function that refuses arguments of other types than it says.

    Numbers of any library become Python's, a string where a list of them is wanted a list of one. What only looks into
    the values can tell (arrays, data) goes through as it is. Errors tell of its arguments, not of the options of a
    command.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        hints = _hints(function)
        given = {name: fitted(name, value, hints.get(name, Any)) for name, value in kwargs.items()}
        first = [fitted(name, value, hints[name]) for name, value in zip(names, args, strict=False)]
        with naming(names):
            return function(*first, *args[len(first) :], **given)

    return cast("Function", call)


_names: ContextVar[Collection[str] | None] = ContextVar("_names", default=None)
"""Of the arguments that messages tell of: those of what was called first; of the options, where that was a command."""


@contextmanager
def naming(names: Collection[str]) -> Iterator[None]:
    """Tell of arguments of these names, unless who called this settled it: errors within, and what is `worded`."""
    if _names.get() is not None:
        yield
        return
    with _told(names):
        yield


@contextmanager
def telling_options(options: Collection[str] = ()) -> Iterator[None]:
    """Leave the options of the command line in messages: it is a command, with these, that calls the library."""
    with _told(options):
        yield


@contextmanager
def _told(names: Collection[str]) -> Iterator[None]:
    token = _names.set(names)
    try:
        yield
    except OnnxshapError as error:
        error.args = (worded(str(error)),)
        raise
    finally:
        _names.reset(token)


def worded(text: str) -> str:
    """Return a message in the words of who reads it: the library's arguments in place of options, or as it is.

    >>> with naming(["data", "eval_data", "input_shapes"]):
    ...     worded("give --eval-data, or --input-shape x=1,3; ask for less than --keep-macs 0.1")
    'give eval_data, or input_shapes x=1,3; ask for less than Budget.macs 0.1'
    """
    names = _names.get()
    if not names:
        return text

    def argument(option: re.Match[str]) -> str:
        short = option[0].removesuffix("-macs")  # a sweep's
        if any(one.startswith("-") for one in names):
            return short if option[0] not in names and short in names else option[0]
        name = option[1].replace("-", "_")
        alike = (name, f"{name}s", name.removesuffix("_macs"))
        return next((one for one in alike if one in names), _OTHERWISE.get(name, option[0]))

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", argument, text)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names in one line, the many cut short."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_fields(one: object) -> None:
    """Refuse a dataclass whose fields are of other types than it says; numbers become Python's.

    Raises:
        OnnxshapError: a field is.
    """
    kind: Any = type(one)
    hints = _hints(kind)
    for name in vars(one):
        object.__setattr__(one, name, fitted(name, getattr(one, name), hints.get(name, Any)))


def fitted(name: str, value: object, hint: object) -> object:
    """Return an argument as its annotation says it.

    >>> fitted("seed", 3, int), fitted("include", "conv*", Sequence[str])
    (3, ['conv*'])
    >>> fitted("keep_macs", "0.5", float | None)
    Traceback (most recent call last):
    onnxshap.errors.OnnxshapError: keep_macs is '0.5' (str); give a number or None

    Raises:
        OnnxshapError: it cannot be.
    """
    if name in _OWN_WORDS:
        return value
    try:
        return _fit(value, hint)
    except _UnfitError:
        shown = shortened(" ".join(repr(value).split()), 60)
        raise OnnxshapError(f"{name} is {shown} ({type(value).__name__}); give {_words(hint)}") from None


@functools.cache
def _hints(function: Any) -> Mapping[str, Any]:
    return get_type_hints(function)


def _fit(value: Any, hint: Any) -> object:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        for part in parts:
            with suppress(_UnfitError):
                return _fit(value, part)
        raise _UnfitError
    if hint in _NUMBERS:
        return _number(value, *_NUMBERS[hint])
    if kind is Sequence:
        some = [value] if isinstance(value, str) and parts[0] is str else value
        _require(isinstance(some, Collection) and not isinstance(some, str | bytes | Mapping))
        return [_fit(one, parts[0]) for one in some]
    if kind is Mapping:
        _require(isinstance(value, Mapping))
        for one in value.values():
            _fit(one, parts[1])
    elif kind is Callable:
        _require(callable(value))
    elif getattr(hint, "_is_protocol", False):
        _require(all(hasattr(value, name) for name in vars(hint) if name == "__call__" or not name.startswith("_")))
    elif isinstance(hint, type) and hint is not Any:
        _require(isinstance(value, os.PathLike if hint is Path else hint))
    return value


def _number(value: Any, protocol: Any, convert: Callable[[Any], object]) -> object:
    _require(isinstance(value, protocol) and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0)
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise _UnfitError from None


def _require(fits: bool) -> None:
    if not fits:
        raise _UnfitError


def _words(hint: Any, *, several: bool = False) -> str:
    """Return what an annotation wants, for a message: one of it, or several."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        some = [_words(part, several=several) for part in parts if not (part is str and Path in parts)]
        return " or ".join(filter(None, (", ".join(some[:-1]), some[-1])))
    if kind is Sequence:
        of = _words(parts[0], several=True)
        one, more = f"list of {of}", f"lists of {of}"
    elif kind is Mapping:
        of = _words(parts[1], several=True)
        one, more = f"mapping to {of}", f"mappings to {of}"
    elif kind is Callable or "__call__" in vars(hint):
        one, more = "function", "functions"
    elif kind is None and isinstance(hint, type) and hint is not Any:
        one = _WORDS.get(hint) or hint.__name__
        more = one if hint in _UNCOUNTED else f"{one}s"
    else:
        one, more = "array", "arrays"
    if several or hint in _UNCOUNTED:
        return more
    return f"an {one}" if one[0] in "aeiouAEIOU" else f"a {one}"
