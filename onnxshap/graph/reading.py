"""Models in: read, with their large initializers taken out, and checked."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnxshap.arguments import checked
from onnxshap.errors import ModelError, first_line
from onnxshap.graph import weights
from onnxshap.graph.external import external_file
from onnxshap.graph.structure import check_structure
from onnxshap.graph.tensors import is_external, tensors
from onnxshap.graph.writing import put_in


@dataclass(frozen=True)
class Source:
    """A model as it was given, its large initializers taken out.

    Attributes:
        model: the model.
        kept: the large initializers.
        files: the files with external data that it refers to.
        path: its own file, None where it came from none.
    """

    model: ModelProto
    kept: weights.Kept = field(default_factory=weights.Kept)
    files: tuple[Path, ...] = ()
    path: Path | None = None


def read(source: str | Path | bytes | ModelProto | Source) -> Source:
    """Return a checked model whose large initializers are taken out, to be read when they are asked for (`held`).

    Meanwhile the file may be replaced or deleted, but not written to; external data are mapped.

    Raises:
        ModelError: no such file, not readable, truncated, not ONNX, or not well formed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ModelProto):
        return Source(*weights.take_out(_require_graph(source, "the model given")))
    where = "the bytes given" if isinstance(source, bytes) else str(source)
    path = None if isinstance(source, bytes) else Path(source).absolute()
    parsed, inside = _parse(source, where)
    try:
        light, kept = weights.take_out(parsed, path)
        files = {external_file(t, path) for t in tensors(parsed) if _is_in_a_file(t)}
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    del inside  # held until here
    return Source(light, kept, tuple(sorted(files)), path)


@checked
def load(source: str | Path | bytes | ModelProto) -> ModelProto:
    """Return the model of a path, of serialized bytes, or a copy of a ModelProto; external data are read into it.

    Raises:
        ModelError: no such file, not readable, truncated, not ONNX, or not well formed.
    """
    found = read(source)  # holds the values while they are put in
    return put_in(found.model)


def _is_in_a_file(tensor: TensorProto) -> bool:
    return is_external(tensor) and not weights.is_kept(tensor)


def _parse(source: str | Path | bytes, where: str) -> tuple[ModelProto, weights.Kept]:
    """Return a model without its external data and the large initializers in its file, and these."""
    if not where:
        raise ModelError("the model's path is empty; give the path of an .onnx model")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
            model, inside = weights.parse(stream, where)
    except FileNotFoundError as error:
        raise ModelError(f"{where}: no such file; give the path of an .onnx model") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise ModelError(f"{where}: cannot be read ({reason}); give a readable .onnx file") from error
    except DecodeError as error:
        raise ModelError(f"{where}: not an ONNX file, or a truncated one; export or copy it again") from error
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return _require_graph(model, where), inside


def _require_graph(model: ModelProto, where: str) -> ModelProto:
    if not model.graph.node or not model.graph.output or model.ir_version == 0:
        raise ModelError(f"{where}: not an ONNX model (no nodes or no outputs); give an exported .onnx file")
    try:
        check_structure(model)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return model
