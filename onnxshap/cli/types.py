"""Types of options, and names that are looked up when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click


class ModelPath(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """The path of a model; `-` is what comes on stdin, as elsewhere."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path that was typed."""
        return "/dev/stdin" if value == "-" else str(value)


class OneOf(click.Choice):  # type: ignore[type-arg] # generic since click 8.4
    """One of the library's names, looked up when they are needed."""

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self.case_sensitive = True
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name != "choices":
            raise AttributeError(name)
        self.choices = tuple(self._load())
        return self.choices


class Share(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A share of the whole, as 0.5 or 50%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share that was typed, as 0.5 or 50%; what it may be is up to whom it is given to."""
        if isinstance(value, float):
            return value
        number, percent = value.removesuffix("%"), value.endswith("%")
        try:
            return float(number) / (100 if percent else 1)
        except ValueError:
            self.fail(f"{value!r} is no share; give one like 0.5 or 50%", param, ctx)


class Bytes(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A number of bytes, as 1000000, 512M or 4G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes that were typed, as 512M or 4G."""
        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        powers = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
        try:
            found = int(float(number) * 1024 ** powers[unit])
        except (ValueError, KeyError, OverflowError):
            found = 0
        if found < 1:
            self.fail(f"{value!r} is no size; give bytes, or one like 512M or 4G", param, ctx)
        return found


class InputShape(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """An input's name and its shape, as NAME=1,3,48,192."""

    name = "name=shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[int]]:
        """Return the name and the dims that were typed."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.rpartition("=")
        sizes = [int(size) if size.strip().isdecimal() else 0 for size in text.split(",")]
        if not equals or not name or not all(sizes):
            self.fail(f"{value!r} is no shape; give one like NAME=1,3,48,192", param, ctx)
        return name, sizes


class ShareList(Share):
    """Several shares, as 0.9,0.5 or 90%,50%."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the shares that were typed, split at commas."""
        return tuple(super(ShareList, self).convert(one.strip(), param, ctx) for one in value.split(","))


class FilePath(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A path with one of some suffixes."""

    name = "file"

    def __init__(self, what: str, *suffixes: str) -> None:
        self._what, self._suffixes = what, suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path, if its suffix is one of those."""
        if Path(value).suffix.lower() not in self._suffixes:
            self.fail(f"{value!r}: {self._what} ends in {' or '.join(self._suffixes)}", param, ctx)
        return str(value)


def methods() -> Iterable[str]:
    """Return the names of the methods."""
    from onnxshap.methods import METHODS

    return METHODS


def payoffs() -> Iterable[str]:
    """Return the names of the payoffs."""
    from onnxshap.payoffs import NAMES

    return NAMES


def providers() -> Iterable[str]:
    """Return the names of the providers."""
    from onnxshap.backend import AUTO, PROVIDERS

    return (*PROVIDERS, AUTO)


def baselines() -> Iterable[str]:
    """Return the names of the baselines."""
    from onnxshap.valuing import BASELINES

    return BASELINES


def repairs() -> Iterable[str]:
    """Return the names of the repairs."""
    from onnxshap.plan.options import REPAIRS

    return REPAIRS


def pivot_repairs() -> Iterable[str]:
    """Return the names of the repairs of `pivot`."""
    from onnxshap.pivoting import REPAIRS

    return REPAIRS


def low_ranks() -> Iterable[str]:
    """Return the names of the ways to split layers."""
    from onnxshap.factors import LOW_RANK

    return LOW_RANK


def codecs() -> Iterable[str]:
    """Return the names of the codecs of `unify`."""
    from onnxshap.unification import CODECS

    return CODECS


def bases() -> Iterable[str]:
    """Return the names of the bases."""
    from onnxshap.bases import BASES

    return BASES


def allocations() -> Iterable[str]:
    """Return the names of the allocations."""
    from onnxshap.plan.options import ALLOCATIONS

    return ALLOCATIONS
