"""What is reported of a model as it is: what can be cut from it, and what cannot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from onnxshap.graph import writing
from onnxshap.report.kinds import kinds_of
from onnxshap.tracing import Traced

SCHEMA_VERSION = 1
Report = dict[str, Any]
"""A JSON object; its keys are in a fixed order."""


def inspection(traced: Traced, *, model: str) -> Report:
    """Return what can be cut from a model and what cannot; `macs` and `params` of a group are what one unit costs."""
    cost = traced.cost
    whole = traced.alive({})
    macs, params = cost.macs(whole), cost.params(whole)
    kinds = kinds_of(traced.shaped, traced.labels, traced.groups)
    groups = []
    for group, kind in zip(traced.groups, kinds, strict=True):
        keep = np.ones(len(group), np.bool_)
        keep[0] = False
        live = traced.alive({group.name: keep})
        groups.append(
            {
                "name": group.name,
                "kind": kind,
                "units": len(group),
                "macs": macs - cost.macs(live),
                "params": params - cost.params(live),
                "producers": list(group.producers),
                "consumers": list(group.consumers),
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "macs": macs,
        "params": cost.params(),
        "bytes": writing.file_size(traced.source),
        "inputs": {name: list(shape) for name, shape in traced.shaped.inputs.items()},
        "groups": groups,
        "frozen": frozen_axes(traced),
        "notes": [*traced.notes, *([] if groups else [f"nothing can be cut: {traced.why_nothing}"])],
    }


def frozen_axes(traced: Traced) -> list[Report]:
    """Return the axes that weights make and that stay."""
    return [asdict(axis) for axis in traced.frozen]
