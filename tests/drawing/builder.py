"""A net under construction: tensors, constants and nodes, as hypothesis draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array
from tests.drawing.tape import Tape

OPSETS = (11, 13, 17, 18, 21, 23)


@dataclass(frozen=True)
class Value:
    """A tensor of the net and its shape; the images are on axis 0, always."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder(Tape):
    """A net under construction; every op draws its own sizes."""

    opset: int
    batch: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    made: int = 0
    ops: Mapping[int, Sequence[Sequence[Op]]] = field(default_factory=dict)
    """Rank -> families of what may stand behind a tensor; every family is drawn as often."""
    stored: Sequence[Callable[[Builder, Array], str]] = ()
    """Other forms of a constant."""

    # --- parts ---------------------------------------------------------------------------------------------------

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(values, dtype)
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Return noise of a shape; now and then a weight that is in use already."""
        same = [n for n, v in self.initializers.items() if v.shape == shape and v.dtype == np.float32]
        if same and not positive and self.flag():
            return str(self.one_of(same))
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        values = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.normal(size=shape) / np.sqrt(fan)
        if positive or not shape or not self.stored or self.integer(0, 9):
            return self.constant(values, np.float32)
        return str(self.one_of(self.stored)(self, values))

    def node(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> Value:
        return self.node_of(kind, inputs, [shape], **attributes)[0]

    def node_of(
        self,
        kind: str,
        inputs: Sequence[str],
        shapes: Sequence[Sequence[int]],
        absent: Sequence[int] = (),
        **attributes: Any,
    ) -> list[Value]:
        """Return the outputs of a node of an op, `domain.type` outside ONNX's own domain; some may be absent."""
        outputs = [Value(f"t{self.made}_{k}", tuple(map(int, s))) for k, s in enumerate(shapes)]
        self.made += 1
        domain, _, op = kind.rpartition(".")
        names = ["" if k in absent else o.name for k, o in enumerate(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        self.used.update(inputs)
        return outputs

    def with_ints(
        self, kind: str, x: Value, name: str, ints: Sequence[int], shape: Sequence[int], since: int, **more: Any
    ) -> Value:
        """Return a node whose integers are an attribute before opset `since`, an input from then on."""
        if self.opset < since:
            return self.node(kind, [x.name], shape, **{name: list(ints)}, **more)
        return self.node(kind, [x.name, self.constant(ints)], shape, **more)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape with the sizes spelled out, copied (0) or left open (-1)."""
        target = [0 if k < x.rank and x.shape[k] == size and self.flag() else size for k, size in enumerate(shape)]
        target[0] = self.batch or 0
        if self.flag():
            target[self.integer(1, len(target) - 1)] = -1
        return self.node("Reshape", [x.name, self.constant(target)], shape)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return self.node("Transpose", [x.name], [x.shape[p] for p in perm], perm=list(perm))

    def behind(self, x: Value) -> Value | None:
        """Return a tensor made of another one by an op of any kind; None where that is not drawn."""
        return self.one_of(self.one_of(self.ops[x.rank]))(self, x) if x.rank in self.ops else None

    def divisor(self, size: int) -> int:
        return int(self.one_of([d for d in range(1, size + 1) if size % d == 0]))

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value], whole: Sequence[Value] = ()) -> ModelProto:
        """Return the net; `whole` inputs are integers."""

        def info(value: Value) -> onnx.ValueInfoProto:
            kind = TensorProto.INT64 if value in whole else TensorProto.FLOAT
            return helper.make_tensor_value_info(value.name, kind, (self.batch or "N", *value.shape[1:]))

        graph = helper.make_graph(
            self.nodes,
            "drawn",
            list(map(info, [*inputs, *whole])),
            list(map(info, outputs)),
            [numpy_helper.from_array(v, n) for n, v in self.initializers.items()],
        )
        domains = {"": self.opset, "com.microsoft": 1}
        imports = [helper.make_opsetid(name, version) for name, version in domains.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 23 else 10)


Op = Callable[[Builder, Value], "Value | None"]
