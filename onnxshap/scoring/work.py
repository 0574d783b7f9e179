"""What scoring takes, about: for progress that is told, and time that is shared out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxshap.cost import node_macs
from onnxshap.graph.structure import reads
from onnxshap.groups import Group, node_name
from onnxshap.tracing import Traced

_LEAST = 1e5
"""Multiply-accumulates that take as long as all else that a row needs."""


def row_work(traced: Traced, groups: Sequence[Group]) -> Mapping[str, float]:
    """Return group -> what a row of its game takes: the multiply-accumulates behind its producers, one image."""
    macs = node_macs(traced.shaped, traced.labels).tolist()
    makers: dict[str, int] = {}
    for bit, group in enumerate(groups):
        for name in group.producers:
            makers[name] = makers.get(name, 0) | 1 << bit
    found = [_LEAST] * len(groups)
    reached: dict[str, int] = {}
    for index, node in enumerate(traced.shaped.graph.nodes):
        behind = 0
        for name in reads(node):
            behind |= reached.get(name, 0)
        if behind and macs[index]:
            for bit in range(len(groups)):
                found[bit] += macs[index] * (behind >> bit & 1)
        if behind := behind | makers.get(node_name(traced.shaped, index), 0):
            reached.update(dict.fromkeys(node.output, behind))
    return {group.name: work for group, work in zip(groups, found, strict=True)}
