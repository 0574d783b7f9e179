"""An ONNX model as a differentiable torch function, by a table from op to function (`ops`).

Needs the extra `onnxshap[distill]`. An op that is not in the table, or not in this form, is an error; so is a model of
which torch gives other outputs than onnxruntime, which is tried before anything is trained (`checking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from onnxshap.core import Array
from onnxshap.distill.ops import OPS, OPSET, OUTPUTS
from onnxshap.distill.spelling import spelt_out
from onnxshap.errors import ModelError, first_line
from onnxshap.graph import array, attributes, is_op, op_of, opset_of
from onnxshap.graph.loops import closed
from onnxshap.graph.normal import constant_value
from onnxshap.graph.structure import order

CPU = torch.device("cpu")
_REFUSALS = (RuntimeError, TypeError, ValueError, LookupError)
"""What torch raises of inputs that it does not take."""


def laid_out(value: Tensor) -> Tensor:
    """Return a tensor, on a CPU channels last in memory where it may be of images: faster there by .1 to .4."""
    images = value.ndim == 4 and value.device == CPU
    return value.contiguous(memory_format=torch.channels_last) if images else value


class TorchGraph:
    """The model as a function of its weights: calling it takes inputs by name and gives tensors by name.

    Raises:
        ModelError: an op is not in the table.
    """

    def __init__(self, model: ModelProto, same: Mapping[str, str] | None = None, device: torch.device = CPU) -> None:
        """Take the initializers over: those of float32 as `weights`, by place in `names`; `same` ones are others.

        All are on one device, and so have to be the inputs.
        """
        nodes = spelt_out(closed(model), OPS)
        places = order(nodes)  # what frees the batch stands at their end
        ordered = nodes if places is None else [nodes[k] for k in places]
        stored = {node.output[0]: constant_value(node) for node in ordered if is_op(node, "Constant")}
        self.nodes: list[NodeProto] = [node for node in ordered if stored.get(node.output[0]) is None]
        for node in self.nodes:
            if op_of(node) not in OPS:
                raise ModelError(
                    f"node {node.name or node.output[0]!r}: distill cannot evaluate {node.op_type}; use --repair lstsq"
                )
        values = {t.name: array(t) for t in model.graph.initializer}
        self._same = {name: other for name, other in (same or {}).items() if values[name].dtype == np.float32}
        self.names = [n for n, value in values.items() if value.dtype == np.float32 and n not in self._same]
        self.weights = [laid_out(torch.from_numpy(values[n].copy()).to(device)).requires_grad_() for n in self.names]
        fixed = {n: v for n, v in values.items() if v.dtype != np.float32}
        fixed |= {n: array(item) for n, item in stored.items() if item is not None}
        self.constants = {n: torch.from_numpy(v.copy()).to(device) for n, v in fixed.items()}
        self._read = {o.name for o in model.graph.output}.union(*(node.input for node in self.nodes))
        beside = {OPSET: opset_of(model)}
        self.attributes = [{**attributes(node), **beside, OUTPUTS: len(node.output)} for node in self.nodes]

    def __call__(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """Return the tensors wanted.

        Raises:
            ModelError: torch does not run an op in the form that it has.
        """
        known: dict[str, Any] = {**self.constants, **dict(zip(self.names, self.weights, strict=True)), **feeds}
        known |= {name: known[other] for name, other in self._same.items()}
        for node, given in zip(self.nodes, self.attributes, strict=True):
            try:
                found = OPS[op_of(node)]([known[n] if n else None for n in node.input], given)
            except _REFUSALS as error:
                raise ModelError(
                    f"node {node.name or node.output[0]!r}: distill cannot evaluate this {node.op_type} "
                    f"({first_line(error)}); use --repair lstsq"
                ) from error
            outputs = found if isinstance(found, tuple) else (found,)
            if not self._read.isdisjoint(node.output[len(outputs) :]):
                raise ModelError(
                    f"node {node.name or node.output[0]!r}: distill cannot evaluate the further outputs of "
                    f"{node.op_type}; use --repair lstsq"
                )
            known.update(zip(node.output, outputs, strict=False))
        return [known[n] for n in wanted]

    def behind_layers(self) -> set[str]:
        """Return the names of the weights that layers read, and nodes behind layers.

        A layer is a node with a weight of two axes or more; what inputs go through before the first is their scales.
        """
        axes = {name: sum(size > 1 for size in w.shape) for name, w in zip(self.names, self.weights, strict=True)}
        found, behind = set[str](), set[str]()
        for node in self.nodes:
            stored = {self._same.get(name, name) for name in node.input} & axes.keys()
            if not behind.isdisjoint(node.input) or any(axes[name] > 1 for name in stored):
                behind.update(node.output)
                found.update(stored)
        return found

    def arrays(self) -> dict[str, Array]:
        """Return the parameters by initializer name."""
        found = {n: w.detach().cpu().numpy().copy() for n, w in zip(self.names, self.weights, strict=True)}
        return found | {name: found[other] for name, other in self._same.items()}
