"""Models out: in the form of the file they came from, which appears whole or not at all.

`finish` undoes what a user would mind of the normal form: equal copies are merged again, lifted bodies are back in
their place, and initializers that were inputs too are so again (in IR < 4 all are).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxshap.arguments import checked
from onnxshap.errors import ModelError
from onnxshap.graph import weights, writing
from onnxshap.graph.addends import merge_addends
from onnxshap.graph.files import place_of, whole_file, whole_files
from onnxshap.graph.lifting import sink
from onnxshap.graph.normal import Graph
from onnxshap.graph.structure import copied, keep_only, outer_names, reads, subgraphs, used_names

PROTOBUF_LIMIT = 2**31 - 2**16
"""Bytes above which a model is stored with external data."""


def finish(model: ModelProto, source: Graph) -> ModelProto:
    """Return an edited model as it is written to a file.

    What was folded into layers goes into the biases they have, equal copies are merged again, of equal constants that
    passes made there is one, unused initializers are gone, the IR version is the input file's.
    """
    done = ModelProto()
    done.CopyFrom(model)
    done.ir_version = source.ir_version
    graph = done.graph
    merge_addends(graph, source.initializers, source.fixed)
    _drop_unread_constants(graph)
    used = used_names(graph)
    keep_only(graph.initializer, lambda item: item.name in used)
    merged = equal_copies(done, source.origin) | _made_alike(graph, source.initializers)
    keep_only(graph.initializer, lambda item: item.name not in merged)
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name in merged:
                node.input[k] = merged[name]
    del graph.value_info[:]
    sink(graph, source.lifted, initializers=done.ir_version >= 4)
    inputs = {i.name for i in graph.input}
    listed = {t.name for t in graph.initializer} if done.ir_version < 4 else source.overridable
    graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in graph.initializer
        if t.name in listed and t.name not in inputs
    )
    return copied(done)


def _drop_unread_constants(graph: GraphProto) -> None:
    """Drop the nodes that compute what nothing reads out of initializers alone: of weights that were stored anew."""
    known = {t.name for t in graph.initializer}
    constant = set[int]()
    for k, node in enumerate(graph.node):
        if node.input and all(name in known for name in node.input) and not any(subgraphs(node)):
            constant.add(k)
            known.update(node.output)
    read = Counter([*(name for node in graph.node for name in reads(node)), *(o.name for o in graph.output)])
    for k in sorted(constant, reverse=True):
        if not any(read[name] for name in graph.node[k].output):
            read.subtract(graph.node[k].input)
            del graph.node[k]


def equal_copies(model: ModelProto, origin: Mapping[str, str]) -> dict[str, str]:
    """Return those copies of initializers that equal an earlier copy -> that one; `origin` is that of `Graph`."""
    found: dict[str, str] = {}
    first: dict[tuple[str, bytes], str] = {}
    copied_ones = set(origin.values())
    for item in model.graph.initializer:
        if (root := origin.get(item.name, item.name)) in copied_ones:
            same = first.setdefault((root, _digest(item)), item.name)
            if same != item.name:
                found[item.name] = same
    return found


def _made_alike(graph: GraphProto, stored: Container[str]) -> dict[str, str]:
    """Return the constants that passes made and that equal an earlier one -> that one: bounds of slices, sizes.

    Args:
        graph: a graph; what bodies in it read, and its outputs, are not looked at.
        stored: initializers of the model that was edited.
    """
    fixed = {o.name for o in graph.output}.union(*(outer_names(g) for node in graph.node for g in subgraphs(node)))
    first, found = dict[bytes, str](), dict[str, str]()
    for item in graph.initializer:
        if item.name not in stored and item.name not in fixed:
            same = first.setdefault(_digest(item), item.name)
            if same != item.name:
                found[item.name] = same
    return found


def _digest(item: TensorProto) -> bytes:
    nameless = copied(item)
    nameless.name = ""
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()


def data_path(path: str | Path) -> Path:
    """Return the path of the external data that belong to an output path."""
    return Path(path).with_name(Path(path).name + ".data")


@checked
def save(model: ModelProto, path: str | Path, *, external: bool = False) -> None:
    """Write a model so that its file appears whole or not at all.

    Args:
        model: the model.
        path: its file; a link stays one, what it points to is replaced.
        external: put large initializers into a file beside it (`data_path`); models beyond 2 GB always do.

    Raises:
        ModelError: the path cannot be written; or it is a link into another folder, and data belong beside the file.
    """
    path = Path(path)
    light, kept = weights.take_out(model)
    if not kept or (not external and writing.file_size(model) < PROTOBUF_LIMIT):
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            writing.write_whole(light, stream)
        return
    place = place_of(path)
    if place.parent != path.parent.resolve():
        raise ModelError(
            f"{path}: is a link into another folder, where the model's data would not be found; give the path that it "
            "points to"
        )
    with whole_files(data_path(place), path) as (data_file, model_file):
        with data_file.open("wb") as stream:
            writing.write_out(light, stream, data_path(place).name)
        model_file.write_bytes(light.SerializeToString(deterministic=True))
    del kept  # held until here
