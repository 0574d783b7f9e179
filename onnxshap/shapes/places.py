"""Which tensors hold numbers of images: what they say of an image is another in another place of a batch."""

from __future__ import annotations

from onnxshap.graph import is_op
from onnxshap.graph.structure import reads
from onnxshap.shapes import Shaped

_LOOKUPS = ("Gather", "GatherElements", "GatherND", "MaxUnpool", "ScatterElements", "ScatterND")
"""Ops that look up by their second input in the other ones: what is found is the image's own again."""
_SIZES = ("Shape", "Size")


def numbered(shaped: Shaped) -> frozenset[str]:
    """Return the tensors that hold numbers counted through all images of a batch, or what is computed of such.

    So are a Range as long as there are images, which point clouds add to the neighbours of every point, and where
    MaxPool finds its maxima.
    """
    found = set[str]()
    for node in shaped.graph.nodes:
        if is_op(node, "Range"):
            name = node.output[0]
            if (name, 0) in shaped.varying and shaped.shapes.get(name) == (shaped.batch,):
                found.add(name)
        elif is_op(node, "MaxPool"):
            found.update(name for name in node.output[1:] if name)
        if is_op(node, *_SIZES) or found.isdisjoint(reads(node)):
            continue
        others = {name for k, name in enumerate(node.input) if name and k != 1}
        looked_up = is_op(node, *_LOOKUPS) and not others <= shaped.constants
        if not looked_up or not found.isdisjoint(others):
            found.update(name for name in node.output if name)
    return frozenset(found)
