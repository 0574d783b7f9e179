"""What a plan leaves as it is: the tensors from which a cut model can be computed."""

from __future__ import annotations

from onnxshap.graph.loops import closed
from onnxshap.graph.structure import reads
from onnxshap.labels import Liveness
from onnxshap.tracing import Traced


def border(traced: Traced, live: Liveness) -> list[str]:
    """Return the tensors that a plan leaves as they are and that a node reads whose values or widths it changes."""
    shaped, changed = traced.shaped, set[str]()
    given = {t.name for t in shaped.graph.model.graph.initializer} | set(shaped.constants)
    found: dict[str, None] = {}

    def cut(name: str) -> bool:
        return any(live.cut(name, axis) for axis in range(len(shaped.shapes.get(name, ()))))

    for node in closed(shaped.graph.model).graph.node:
        names = reads(node)
        restated = any(o in shaped.parts for o in node.output)  # sizes, of which a plan may change some
        if restated or any(n in changed or cut(n) for n in names) or any(cut(o) for o in node.output):
            changed.update(node.output)
            found.update(dict.fromkeys(n for n in names if n not in changed and n not in given and not cut(n)))
    return list(found)
