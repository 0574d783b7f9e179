"""Reports as files: JSON or a page, whole or not at all; values are read back."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from onnxshap.bases import BASES, Basis
from onnxshap.core import Array, Values
from onnxshap.errors import DataError
from onnxshap.graph import whole_file
from onnxshap.methods import METHODS
from onnxshap.report.inspections import SCHEMA_VERSION, Report
from onnxshap.report.page import page
from onnxshap.scores import Scores


def as_json(report: Report) -> str:
    """Return a report as JSON text: floats as they are, objects and lists of plain values in one line each."""
    return _json(report, "") + "\n"


def _json(value: Any, indent: str) -> str:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(item, dict | list) and item for item in inner):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_json(v, deeper)}" for key, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _json(v, deeper) for v in value) + f"\n{indent}]"


def write_json(report: Report, path: str | Path) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    with json_file(report, path):
        pass


@contextmanager
def json_file(report: Report, path: str | Path) -> Iterator[None]:
    """Write a report as JSON; it appears when the block ends well.

    Raises:
        ModelError: the path cannot be written.
    """
    with _written(as_json(report), path):
        yield


def write_prune_report(report: Report, path: str | Path) -> None:
    """Write the report of a cut, as HTML where the path ends so, else as JSON; whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    with prune_report_file(report, path):
        pass


@contextmanager
def prune_report_file(report: Report, path: str | Path) -> Iterator[None]:
    """Do what `write_prune_report` does; the file appears when the block ends well."""
    with _written(page(report) if Path(path).suffix.lower() == ".html" else as_json(report), path):
        yield


@contextmanager
def _written(text: str, path: str | Path) -> Iterator[None]:
    with whole_file(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        yield


def read_values(path: str | Path) -> Scores:
    """Return the values of a file that `onnxshap score` wrote.

    Raises:
        DataError: the file cannot be read, is no values file, or was damaged.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
        return _scores(found)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a file that `onnxshap score` wrote"
        ) from error
    except (ValueError, OverflowError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else "not JSON, or damaged"
        raise DataError(f"{path}: no values file ({what}); make one with `onnxshap score MODEL --data D`") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}")


def _scores(found: Any) -> Scores:
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (told like any other broken file)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {found.get('schema_version')!r:.40}, this program reads {SCHEMA_VERSION}")
    groups: dict[str, Any] = _field(found, "groups", dict)
    values = {}
    for name, group in groups.items():
        where = f"group {name!r:.80}"
        if not isinstance(group, dict):
            raise ValueError(f"{where} is no object")  # noqa: TRY004
        phi, stderr = _floats(group, "values", where), _floats(group, "stderr", where)
        if len(phi) != len(stderr):
            raise ValueError(f"{where} has {len(phi)} values and {len(stderr)} stderr")
        images, stopped = _field(group, "images", int, where), _field(group, "stopped", str, where)
        spread = None if group.get("spread") is None else _floats(group, "spread", where)
        if spread is not None and len(spread) != len(phi):
            raise ValueError(f"{where} has {len(phi)} values and {len(spread)} spread")
        if min(stderr.min(initial=0), 0 if spread is None else spread.min(initial=0)) < 0:
            raise ValueError(f"{where} has a stderr or a spread below 0")
        values[name] = Values(phi, stderr, _field(group, "evals", int, where), images, stopped, spread)
    method = _one_of(METHODS, _field(found, "method", str), "method")
    payoff = None if found.get("payoff") is None else _field(found, "payoff", str)
    basis = _one_of(BASES, _field(found, "basis", str), "basis") if "basis" in found else "own"
    bases = _bases(_field(found, "bases", dict)) if "bases" in found else {}
    notes = _field(found, "notes", list) if "notes" in found else []
    if not all(isinstance(note, str) for note in notes):
        raise ValueError("it has 'notes' that are no strings")
    if bases and basis == "own":
        raise ValueError("it has 'bases', but its 'basis' is own")
    return Scores(
        values=values,
        method=method,
        payoff=payoff,
        seed=_field(found, "seed", int),
        images=_field(found, "images", int),
        source=_field(found, "source", str),
        model=_field(found, "model_sha256", str),
        notes=tuple(notes),
        basis=basis,
        bases=bases,
    )


def _one_of(known: Collection[str], name: str, what: str) -> str:
    if name not in known:
        raise ValueError(f"its {what!r} is none of {', '.join(known)}")
    return name


def _bases(found: Mapping[str, Any]) -> dict[str, list[Basis]]:
    bases = dict[str, list[Basis]]()
    for name in found:
        where = f"basis of group {name!r:.80}"
        for one in _field(found, name, list, "'bases'"):
            if not isinstance(one, dict):
                raise ValueError(f"{where} is no object")  # noqa: TRY004
            shape = _field(one, "shape", list, where)
            if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
                raise ValueError(f"{where} has 'shape' that is no three sizes")
            matrices = _numbers(_field(one, "float32", str, where), math.prod(shape))
            if matrices is None:
                raise ValueError(f"{where} has 'float32' that are not so many finite numbers")
            bases.setdefault(name, []).append(Basis(_field(one, "places", str, where), matrices.reshape(shape)))
    return bases


def _numbers(text: str, count: int) -> NDArray[np.float32] | None:
    """Return finite numbers from base64, float32[count]; None where it is no such text."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    numbers = np.frombuffer(content, "<f4").astype(np.float32) if len(content) == 4 * count else None
    return numbers if numbers is not None and np.isfinite(numbers).all() else None


_KINDS: dict[type, str] = {dict: "object", list: "list", str: "string", int: "integer"}


def _field(found: Mapping[str, Any], key: str, kind: type, where: str = "it") -> Any:
    value = found.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} lacks {key!r}, or it is no {_KINDS[kind]}")  # noqa: TRY004
    return value


def _floats(found: Mapping[str, Any], key: str, where: str) -> Array:
    items = _field(found, key, list, where)
    if not all(isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items):
        raise ValueError(f"{where} has {key!r} that are no finite numbers")
    return np.array([float(item) for item in items], np.float64)
