"""What stands at removed positions where that is not zero, but the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from onnxshap.graph.structure import copied
from onnxshap.labels.fixups.edit import Edit, share_left


@dataclass(frozen=True)
class Step:
    """A node that does the same all along an axis that is cut.

    Attributes:
        node: the node.
        inputs: its inputs.
        outputs: its outputs.
        zeros: inputs of it that are zero where a position is removed -> the axes on which these have to be as long as
            they are, for something is summed over them on the way.
    """

    node: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    zeros: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Chain:
    """What makes a tensor of others that are zero where a position is removed, in order."""

    steps: tuple[Step, ...]

    def at_removed(self, edit: Edit, source: str) -> str:
        """Return the name of what `source` holds at a removed position, of length 1 there."""
        names = dict[str, str]()
        for step in self.steps:
            given = {name: names[name] for name in step.inputs if name in names}
            for name, wide in step.zeros.items():
                shape = [int(edit.alive(name, axis).sum()) if axis in wide else 1 for axis in range(edit.rank(name))]
                given[name] = edit.zeros(name, shape)
            names |= edit.twin(step.node, given, step.outputs)
        return names[source]


@dataclass(frozen=True)
class Residue:
    """A sum, mean or norm over axes of `source` counts what stands at removed positions.

    Attributes:
        node: the sum, mean or norm.
        source: what it sums.
        axes: over which axes; one of them is cut.
        chain: what gives `source`.
        mean: whether it divides by the width that the axes had.
        norm: whether it is the root of a sum of squares.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    chain: Chain
    mean: bool
    norm: bool = False

    def apply(self, edit: Edit) -> None:
        """Compute what the chain gives for zero, sum it like the others, and add it as often as it stood there."""
        share = share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node = edit.node(self.node)
        if self.norm:
            node.op_type = "ReduceSumSquare"
        result, made = node.output[0], list[NodeProto]()
        rest = copied(node)
        rest.input[0] = self.chain.at_removed(edit, self.source)
        rest.output[0] = edit.names.new(f"{result}.removed")
        rest.name, node.output[0] = rest.output[0], edit.names.new(f"{result}.of_the_rest")
        gone = 1 - share if self.mean else (1 - share) * edit.alive(self.source, self.axes[0]).size
        parts = []
        for part, factor in ((node, share if self.mean else 1.0), (rest, gone)):
            number = edit.new_constant(f"{part.output[0]}.factor", edit.typed(np.array(factor), result))
            parts.append(edit.names.new(f"{part.output[0]}.scaled"))
            made += [part, helper.make_node("Mul", [part.output[0], number], [parts[-1]], name=parts[-1])]
        whole = edit.names.new(f"{result}.squares") if self.norm else result
        made.append(helper.make_node("Add", parts, [whole], name=edit.names.node(f"{result}.whole")))
        if self.norm:
            made.append(helper.make_node("Sqrt", [whole], [result], name=edit.names.node(f"{result}.norm")))
        edit.replace(self.node, made)
