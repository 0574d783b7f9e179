"""Models whose innocent tensors have the names that the package would make for what it adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnxruntime as ort
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, helper


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the names of all tensors and nodes of every model that onnxruntime loads meanwhile, in order, once each.

    Names that no loaded model has (of axes) are not heard of.
    """
    found: list[str] = []
    load = ort.InferenceSession

    def loaded(content: bytes, *given: Any, **more: Any) -> ort.InferenceSession:
        found.extend(names_of(ModelProto.FromString(content)))
        return load(content, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "InferenceSession", loaded)
        yield found
    found[:] = dict.fromkeys(found)


def names_of(model: ModelProto) -> list[str]:
    """Return the names of all tensors and nodes."""
    found: list[str] = []
    for graph in graphs(model.graph):
        found += [*(i.name for i in graph.input), *(t.name for t in graph.initializer)]
        found += [name for node in graph.node for name in (*node.output, node.name) if name]
    return list(dict.fromkeys(found))


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def innocent(model: ModelProto) -> list[str]:
    """Return the names of the tensors that may have others: all but inputs, outputs and what is in bodies."""
    fixed = {item.name for item in (*model.graph.input, *model.graph.output)}
    inside = {name for graph in list(graphs(model.graph))[1:] for name in given_in(graph)}
    return [name for name in given_in(model.graph) if name not in fixed and name not in inside]


def given_in(graph: GraphProto) -> list[str]:
    """Return the tensors that a graph stores or makes itself."""
    return [*(t.name for t in graph.initializer), *(name for node in graph.node for name in node.output if name)]


def with_bystanders(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Return a model that hands its first input through tensors of these names, made by nodes of these names, too."""
    made = ModelProto()
    made.CopyFrom(model)
    stored = {t.name for t in model.graph.initializer}
    first = next(i for i in model.graph.input if i.name not in stored)
    source = first.name
    for name in names:
        made.graph.node.append(helper.make_node("Identity", [source], [name], name=name))
        source = name
    made.graph.output.add().CopyFrom(first)
    made.graph.output[-1].name = source
    return made


def renamed(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """Return a model whose tensors have other names, in all of its graphs."""
    made = ModelProto()
    made.CopyFrom(model)

    for graph in graphs(made.graph):
        for stored in graph.initializer:
            stored.name = names.get(stored.name, stored.name)
        for item in (*graph.input, *graph.output, *graph.value_info):
            item.name = names.get(item.name, item.name)
        for node in graph.node:
            for listed in (node.input, node.output):
                listed[:] = [names.get(name, name) for name in listed]
    return made
