"""Names for what is added to a graph: each one that nothing there has.

A file may have any names, those too that a first cut of it wrote; no two tensors of a graph have one name, and no two
nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnx import GraphProto, NodeProto

from onnxshap.graph.structure import graphs_of


class Names:
    """The names that are taken in a graph and in the graphs in its nodes.

    The graph is read once, however many names are asked for. The same wishes in the same order get the same names.

    >>> names = Names(GraphProto(node=[NodeProto(output=["y.bias"])]))
    >>> names.new("z.bias"), names.new("y.bias"), names.new("y.bias"), names.numbered("w.use", 2)
    ('z.bias', 'y.bias.2', 'y.bias.3', 'w.use2')
    """

    def __init__(self, graph: GraphProto, others: Iterable[str] = (), away: Iterable[NodeProto] = ()) -> None:
        """Take a graph; tensors that have names besides, as in graphs around it; and nodes that will be back in it."""
        self._tensors, self._nodes = Counter(others), Counter[str]()
        self._next: dict[str, int] = {}
        for part in (*graphs_of(graph), *graphs_of(GraphProto(node=away))):
            self._count(part, 1)

    def __contains__(self, name: str) -> bool:
        """Return whether a tensor or a node has a name."""
        return self._tensors[name] > 0 or self._nodes[name] > 0

    def new(self, wish: str) -> str:
        """Return a name for a tensor and the node that makes it: the wish, or wish.2, wish.3 ... where it is taken."""
        return self._taken(wish) if wish not in self else self.numbered(f"{wish}.", 2)

    def numbered(self, wish: str, first: int) -> str:
        """Return a name for a tensor and its node: the wish with the first number behind it that makes it new."""
        number = self._next.get(wish, first)
        while (name := f"{wish}{number}") in self:
            number += 1
        self._next[wish] = number + 1
        return self._taken(name)

    def node(self, wish: str) -> str:
        """Return a name for a node alone: it may be that of a tensor, such as the one that the node makes."""
        if not self._nodes[wish]:
            self._nodes[wish] += 1
            return wish
        return self.numbered(f"{wish}.", 2)

    def opened(self, body: GraphProto) -> None:
        """Give back what a body gives itself, without the bodies in it: its nodes are to stand elsewhere."""
        self._count(body, -1)

    def again(self, body: GraphProto) -> None:
        """Count what a body gives itself once more: its nodes are to stand elsewhere more than once."""
        self._count(body, 1)

    def replaced(self, node: NodeProto) -> None:
        """Give back the name of a node in whose place others are to stand, which make what it made."""
        self._nodes[node.name] -= bool(node.name)

    def _taken(self, name: str) -> str:
        self._tensors[name] += 1
        self._nodes[name] += 1
        return name

    def _count(self, graph: GraphProto, times: int) -> None:
        for name in tensors_of(graph):
            self._tensors[name] += times
        for node in graph.node:
            self._nodes[node.name] += times * bool(node.name)


def stored_in(graph: GraphProto) -> list[str]:
    """Return the names of the initializers of a graph."""
    return [*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)]


def tensors_of(graph: GraphProto) -> list[str]:
    """Return the name of every tensor of a graph, without the graphs in its nodes: given, stored or made."""
    made = [name for node in graph.node for name in node.output if name]
    return list(dict.fromkeys([*(i.name for i in graph.input), *stored_in(graph), *made]))
