"""What scoring takes, about: for progress that is told, and time that is shared out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from onnxshap.cost import node_macs
from onnxshap.graph.structure import reads
from onnxshap.groups import Group, node_name
from onnxshap.tracing import Traced

_LEAST = 1e5
"""Multiply-accumulates that take as long as all else that a row needs."""


def row_work(traced: Traced, groups: Sequence[Group]) -> Mapping[str, float]:
    """Return group -> what a row of its game takes: the multiply-accumulates behind its producers, one image."""
    macs = node_macs(traced.shaped, traced.labels).tolist()
    makers = Counter[str]()  # sets of groups are the bits of a number
    for bit, group in enumerate(groups):
        makers.update(dict.fromkeys(group.producers, 1 << bit))
    reached, behind = dict[str, int](), defaultdict[int, float](float)
    for index, node in enumerate(traced.shaped.graph.nodes):
        before = 0
        for name in reads(node):
            before |= reached.get(name, 0)
        behind[before] += macs[index]
        if after := before | makers[node_name(traced.shaped, index)]:
            reached.update(dict.fromkeys(node.output, after))
    size = (len(groups) + 7) // 8
    work = np.full(len(groups), _LEAST)
    for some, total in behind.items():
        bits = np.frombuffer(some.to_bytes(size, "little"), np.uint8)
        work += total * np.unpackbits(bits, count=len(groups), bitorder="little")
    return {group.name: found for group, found in zip(groups, work.tolist(), strict=True)}
