"""What scoring takes, about: for progress that is told, and time that is shared out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from onnxshap.cost import node_macs
from onnxshap.graph.structure import reads
from onnxshap.groups import Group, node_name
from onnxshap.methods.recon import ROWS
from onnxshap.repair.regression import MAX_COEFFICIENTS
from onnxshap.tracing import Traced

_LEAST = 1e5
"""Multiply-accumulates that take as long as all else that a row needs."""


def row_work(traced: Traced, groups: Sequence[Group], *, summed: bool = False) -> Mapping[str, float]:
    """Return group -> what a row of its game takes: the multiply-accumulates behind its producers, one image.

    Args:
        traced: the model.
        groups: of it.
        summed: leave out the linear ops that sum over a group's units first, in whose place games keep running sums
            (`game/walks`, nearly everywhere).
    """
    macs = node_macs(traced.shaped, traced.labels).tolist()
    makers = Counter[str]()  # sets of groups are the bits of a number
    for bit, group in enumerate(groups):
        makers.update(dict.fromkeys(group.producers, 1 << bit))
    sums = _sums(traced, groups) if summed else {}
    reached, over, behind = dict[str, int](), dict[str, int](), defaultdict[int, float](float)
    for index, node in enumerate(traced.shaped.graph.nodes):
        before = gone = 0
        for name in reads(node):
            before |= reached.get(name, 0)
            gone |= over.get(name, 0)
        first = before & sums.get(index, 0) & ~gone
        behind[before & ~first] += macs[index]
        if after := before | makers[node_name(traced.shaped, index)]:
            reached.update(dict.fromkeys(node.output, after))
        if gone := gone | first:
            over.update(dict.fromkeys(node.output, gone))
    size = (len(groups) + 7) // 8
    work = np.full(len(groups), _LEAST)
    for some, total in behind.items():
        bits = np.frombuffer(some.to_bytes(size, "little"), np.uint8)
        work += total * np.unpackbits(bits, count=len(groups), bitorder="little")
    return {group.name: found for group, found in zip(groups, work.tolist(), strict=True)}


def fit_work(traced: Traced, groups: Sequence[Group], images: int) -> Mapping[str, float]:
    """Return group -> what a unit takes where layers are fitted, not played: multiply-accumulates.

    It is what Gram matrices of the layers that sum over the group take, and its part of a run of the images.
    """
    run = images * traced.cost.macs() / max(1, len(groups))
    found = dict[str, float]()
    for group in groups:
        total = run
        for weight, inputs in traced.fan_ins(group):
            rows = max(ROWS, 3 * inputs)
            total += float(rows) * inputs * (inputs if inputs <= MAX_COEFFICIENTS else 1) * weight.groups
        found[group.name] = total / len(group)
    return found


def _sums(traced: Traced, groups: Sequence[Group]) -> Mapping[int, int]:
    """Return node -> the groups that it sums over, as the bits of a number, where it is linear in their units."""
    bit = np.full(traced.labels.n_units + 1, -1)  # the last place is that of no unit
    for number, group in enumerate(groups):
        bit[group.units] = number
    found = Counter[int]()
    for site in traced.labels.trace.linear:
        if site.weight is not None:
            numbers = np.unique(bit[traced.labels.units(site.tensor, site.axis)])
            found[site.node] |= sum(1 << number for number in numbers[numbers >= 0].tolist())
    return found
