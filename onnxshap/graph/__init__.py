"""Models in and out: read, brought to one form, taken apart for evaluation, written again.

- `reading`: files, bytes and protos -> a checked model, its large initializers taken out (`weights`, `wire`),
  those of a file left in it until they are asked for (`held`), those beside it mapped (`external`).
- `normal`: -> a `Graph`, the one form that every pass knows; bodies of If, Loop and Scan are lifted into the main graph
  (`branches`, `lifting`, `loops`, `invariants`), fused ops are split where they hide axes (`fused`).
- `names`: for what passes add.
- `parts`: sub-models that are only evaluated.
- `saving`: -> a file that appears whole or not at all, its bodies sunk again, its constants in it (`writing`).
"""

from onnxshap.graph.files import check_writable, place_of, whole_file, whole_files
from onnxshap.graph.names import Names
from onnxshap.graph.nodes import array, attributes, tensor
from onnxshap.graph.normal import Graph, lift_bodies, normalise, take_branches, with_constants
from onnxshap.graph.parts import extract
from onnxshap.graph.reading import Source, load, read
from onnxshap.graph.saving import data_path, equal_copies, finish, save
from onnxshap.graph.standard import is_op, is_standard, op_of, opset_of

__all__ = [
    "Graph",
    "Names",
    "Source",
    "array",
    "attributes",
    "check_writable",
    "data_path",
    "equal_copies",
    "extract",
    "finish",
    "is_op",
    "is_standard",
    "lift_bodies",
    "load",
    "normalise",
    "op_of",
    "opset_of",
    "place_of",
    "read",
    "save",
    "take_branches",
    "tensor",
    "whole_file",
    "whole_files",
    "with_constants",
]
