"""A model file is read as protobuf reads it, however its fields are written, and its weights are never in it twice."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshap import graph
from onnxshap.errors import ModelError
from onnxshap.graph import weights, writing
from onnxshap.graph.wire import GRAPH, INITIALIZER, RAW_DATA, header, parse, varint
from tests.exactness import net


def model() -> ModelProto:
    """A model with a large and a small initializer, and a name behind every one."""
    made = net("(float[N,40] x) => (float[N,3] y) {\n h = MatMul(x, w)\n y = MatMul(h, v)\n}", w=(40, 64), v=(64, 3))
    made.graph.initializer[0].doc_string = "the first one"
    return made


def stored(name: str, *parts: bytes) -> bytes:
    """An initializer as a field of a graph, its fields in an order of one's own."""
    bare = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(40, 64)).SerializeToString()
    content = b"".join(parts).replace(b"BARE", bare)
    return header(INITIALIZER, len(content)) + content


def raw(number: float) -> bytes:
    """40 x 64 equal values as a field of a tensor."""
    values = np.full((40, 64), number, np.float32).tobytes()
    return header(RAW_DATA, len(values)) + values


def with_graph(*parts: bytes) -> bytes:
    """The model, its graph continued in a second field: messages are merged."""
    content = b"".join(parts)
    return model().SerializeToString() + header(GRAPH, len(content)) + content


WRITTEN: dict[str, Callable[[], bytes]] = {
    "as usual": lambda: model().SerializeToString(),
    "a graph in two parts": lambda: with_graph(stored("a", b"BARE", raw(1.0))),
    "values first": lambda: with_graph(stored("a", raw(1.0), b"BARE")),
    "values twice": lambda: with_graph(stored("a", raw(1.0), b"BARE", raw(2.0))),
    "values twice, then none": lambda: with_graph(stored("a", raw(1.0), b"BARE" * 500, header(RAW_DATA, 0))),
    "too few values": lambda: with_graph(stored("a", b"BARE", header(RAW_DATA, 5000) + bytes(5000))),
    "fields that nobody knows": lambda: with_graph(stored("a", b"BARE", varint(99 << 3) + varint(2**40), raw(3.0)))
    + varint(98 << 3 | 1) + bytes(8) + varint(97 << 3 | 5) + bytes(4),
    "groups": lambda: model().SerializeToString() + varint(99 << 3 | 3) + varint(99 << 3 | 4),
    "nothing": lambda: b"",
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_files_are_read_as_protobuf_reads_them(written: Callable[[], bytes]) -> None:
    content = written()
    light, kept = weights.parse(io.BytesIO(content))
    assert writing.put_in(light) == ModelProto.FromString(content)
    del kept


def test_large_values_are_left_out_and_found() -> None:
    content = model().SerializeToString()
    light, found = parse(io.BytesIO(content), weights.LARGE)
    assert [t.name for t in light.graph.initializer if t.raw_data] == ["v"]
    assert found.keys() == {0}
    assert content[found[0].start : found[0].stop] == numpy_helper.to_array(model().graph.initializer[0]).tobytes()


def test_a_file_that_ends_too_early_is_no_model() -> None:
    content = model().SerializeToString()
    for end in (1, 10, 60, len(content) // 2, len(content) - 1):
        with pytest.raises(DecodeError):
            parse(io.BytesIO(content[:end]), weights.LARGE)


def test_a_number_without_an_end_is_no_model() -> None:
    with pytest.raises(DecodeError):
        parse(io.BytesIO(b"\x80" * 10**6), weights.LARGE)


def test_other_types_stay_as_they_are_stored() -> None:
    made = model()
    half = helper.make_tensor("b", TensorProto.BFLOAT16, [4096], bytes(range(256)) * 32, raw=True)
    made.graph.initializer.append(half)
    source = graph.read(made.SerializeToString())
    assert source.model.graph.initializer[-1] == half


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_read_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    writer = threading.Thread(target=(tmp_path / "m.onnx").write_bytes, args=(model().SerializeToString(),))
    writer.start()
    assert graph.load(tmp_path / "m.onnx") == model()
    writer.join()


def test_tickets_of_others_are_refused() -> None:
    made = model()
    item = made.graph.initializer[0]
    item.ClearField("raw_data")
    item.data_location = TensorProto.EXTERNAL
    item.external_data.add(key="location", value="onnxshap.kept.0")
    with pytest.raises(ModelError, match="reserved name"):
        graph.read(made.SerializeToString())
