"""Arrays, mappings, tuples, and functions that return them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxshap.arguments import check_fields
from onnxshap.core import Dataset
from onnxshap.data.spec import InputSpec, only_input
from onnxshap.errors import DataError, told

LABEL_NAMES = ("labels", "y")
"""Array names that hold the targets, unless the model has an input of that name."""
INPUT_NAMES = ("x", "X", "images", "data", "input", "arr_0")
"""Array names that a single-input model takes for its input; the last is what np.savez calls an array without one."""


def from_object(value: Any, specs: Mapping[str, InputSpec], where: str) -> Dataset:
    """Return what a user handed over as a data set, unchecked."""
    if isinstance(value, Dataset):
        check_fields(value)
        return value if value.source != "memory" else replace(value, source=where)
    if isinstance(value, tuple):
        if len(value) != 2:
            raise DataError(f"{where}: a tuple of {len(value)}: give (inputs, labels)")
        inputs, labels = value
        if labels is None:
            return from_object(inputs, specs, where)
        if isinstance(inputs, Mapping):
            return Dataset(_rename(dict(inputs), specs), labels, where)
        return Dataset({only_input(specs, where, "one array").name: inputs}, labels, where)
    if isinstance(value, Mapping):
        arrays = dict(value)
        found = next((name for name in LABEL_NAMES if name in arrays and name not in specs), None)
        targets = None if found is None else arrays.pop(found)
        return Dataset(_rename(arrays, specs), targets, where)
    if isinstance(value, (list, np.ndarray)) or hasattr(value, "__array__"):
        return Dataset({only_input(specs, where, "one array").name: value}, None, where)
    raise DataError(
        f"{where}: {type(value).__name__} is no data set: "
        "give a Dataset, a mapping of arrays, (inputs, labels) or an array"
    )


def _rename(arrays: dict[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """Return the arrays, a lone one with a common name renamed to the model's lone input."""
    if len(specs) == len(arrays) == 1 and next(iter(arrays)) in INPUT_NAMES:
        return dict(zip(specs, arrays.values(), strict=True))
    return arrays


def from_function(source: str) -> Any:
    """Return what "module:function" returns."""
    module_name, _, function_name = source.partition(":")
    with _working_directory_on_path():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{source}: {module_name!r} cannot be imported ({told(error)}): "
                "run where the module lies, or install it, and see that it imports"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise DataError(f"{source}: module {module_name!r} has no function {function_name!r}: define it there")
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{source}: the function failed ({told(error)}): it is called without arguments, mend it there"
            ) from error


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Let imports find the working directory, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the module may be younger than the last look into the directory
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
