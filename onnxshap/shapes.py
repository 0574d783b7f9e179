"""The shape of every tensor, and the values of shape arithmetic, by running the model instead of predicting it.

onnxruntime is the judge of what a model does, so it is asked: one run with a `Shape` node behind every tensor, one more
with other sizes in the free dimensions. What is equal in both runs does not depend on them and becomes a constant
(`Shape -> Gather -> Concat` chains before a Reshape, sqrt(head size), ...); what differs keeps following the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.backend import Backend
from onnxshap.constants import constants_of, is_random, store_mixed
from onnxshap.core import Array
from onnxshap.data import InputSpec, random_data
from onnxshap.errors import DataError, ModelError
from onnxshap.folding import Folded, Part, Run, Shape, fold
from onnxshap.graph import Graph, extract, is_op, lift_bodies, take_branches
from onnxshap.lifting import BRANCHES, body, entered, handed, is_enter, is_if, is_loop, is_open, join, liftable
from onnxshap.loops import closed, controls, declare_ranks, depths, sources
from onnxshap.structure import copied, graphs_of, reads, subgraphs
from onnxshap.weights import without_values

_BATCH = 2
_FREE_SIZES = (64, 32, 224, 320, 16)
_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))
"""Element types of bounds, sizes and positions, which exporters that fold no constants compute from constants."""
_PREFIX = "onnxshap.shape."
_CHOOSABLE = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
    )
)
"""Element types of which onnxruntime has a Where."""
_REAL = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
_KNOWN_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {TensorProto.UNDEFINED}


@dataclass(frozen=True)
class Shaped:
    """A normalised graph with the concrete shapes that it is traced at.

    Attributes:
        graph: the graph, its shape arithmetic replaced by constants where it is constant.
        shapes: tensor name -> concrete shape, initializers included; tensors that are no tensors (sequences) lack one,
            and so do those whose sizes differ from iteration to iteration of a loop.
        kinds: tensor name -> ONNX element type.
        inputs: the model's inputs at these shapes.
        free_batch: whether axis 0 of the inputs may have any size.
        constants: names computed from initializers alone.
        varying: (tensor, axis) whose size follows the inputs' free dimensions.
        told: (tensor, axis) whose size is read by arithmetic that is left.
        parts: tensor name -> what is known of a vector of sizes that is computed.
        apart: whether the values of the images decide which branch is taken, so that each has to be run alone.
        batch_axes: input -> the axis of its images, None where it has none; absent: axis 0.
        whole: first output of an If, Loop or Scan that is left -> why no cut goes through it.
        times: tensor in the body of a loop -> how often it was made, for all images at once.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    kinds: Mapping[str, int]
    inputs: Mapping[str, Shape]
    free_batch: bool
    constants: frozenset[str] = field(default_factory=frozenset)
    varying: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    told: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    parts: Mapping[str, Part] = field(default_factory=dict)
    apart: bool = False
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)

    def batch_axis(self, name: str) -> int | None:
        """Return the axis of the images in an input, None where it has none."""
        return self.batch_axes.get(name, 0) if self.inputs[name] else None

    @property
    def alone(self) -> bool:
        """Whether images do not lie along axis 0 of every input: such a model is run with one image at a time."""
        return any(self.batch_axis(name) != 0 for name in self.inputs)

    @property
    def batch(self) -> int:
        """The number of images that the model was traced with."""
        sizes = (s[a] for name, s in self.inputs.items() if (a := self.batch_axis(name)) is not None)
        return next(sizes, 1)

    def count(self, feeds: Mapping[str, Array]) -> int:
        """Return how many images feeds hold."""
        sizes = (v.shape[a] for n, v in feeds.items() if n in self.inputs and (a := self.batch_axis(n)) is not None)
        return next(sizes, 1)

    @cached_property
    def producers(self) -> dict[str, int]:
        """Tensor name -> the index of the node that makes it."""
        return {o: k for k, node in enumerate(self.graph.nodes) for o in node.output if o}


def input_specs(model: ModelProto) -> dict[str, InputSpec]:
    """Return name -> dtype and shape (None where free) of the inputs that have no initializer.

    Raises:
        ModelError: an input is no tensor (a sequence or an optional), or of no type or shape.
    """
    initialized = {t.name for t in model.graph.initializer}
    specs = {}
    for item in model.graph.input:
        if item.name in initialized:
            continue
        if item.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"input {item.name!r} is no tensor; only models with tensor inputs can be pruned")
        kind = item.type.tensor_type
        if kind.elem_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            raise ModelError(f"input {item.name!r} is complex, which onnxruntime does not take; export real numbers")
        if kind.elem_type not in _KNOWN_TYPES:
            raise ModelError(f"input {item.name!r} has no known element type; export the model again")
        if not kind.HasField("shape"):
            raise ModelError(f"input {item.name!r} declares no shape, not even its rank; export the model with shapes")
        dims = kind.shape.dim
        if any(d.WhichOneof("value") == "dim_value" and d.dim_value == 0 for d in dims):
            raise ModelError(
                f"input {item.name!r} has a dimension of size 0; export the model with sizes, or free dims"
            )
        shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in dims)
        specs[item.name] = InputSpec(item.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)
    axes = _batch_axes({i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}, specs)
    return {name: replace(spec, batch=axes[name]) for name, spec in specs.items()}


def _batch_axes(names: Mapping[str, Sequence[str]], specs: Mapping[str, InputSpec]) -> dict[str, int | None]:
    """Return where the images lie in every input, None where they do not.

    Axis 0, if it is free or as long as that of the first input of which it is free; otherwise the axis that is named
    as that one, or where that has no name the only other free one. Inputs that have none of these are whole for an
    image, and a batch is then one image. So are all of them where every size is fixed and axis 0 does not agree
    (the nodes of a graph and its edges).
    """
    ranked = [name for name, spec in specs.items() if spec.shape]
    lengths = {specs[name].shape[0] for name in ranked}
    if len(lengths) > 1 and 1 not in lengths and not any(None in spec.shape for spec in specs.values()):
        return dict.fromkeys(specs)
    first = next((name for name in ranked if specs[name].shape[0] is None), next(iter(ranked), ""))
    size, title = (specs[first].shape[0], names[first][0]) if first else (None, "")
    found: dict[str, int | None] = {}
    for name, spec in specs.items():
        named = [axis for axis, own in enumerate(names[name]) if own == title and spec.shape[axis] == size is None]
        if not spec.shape or size not in (None, 1):
            found[name] = 0 if spec.shape else None
        elif 0 in named or (spec.shape[0] == size and not (named and title)):
            found[name] = 0
        else:
            found[name] = named[0] if len(named) == 1 else None
    return found


def infer(
    graph: Graph,
    backend: Backend,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
) -> Shaped:
    """Return the graph with concrete shapes, its constant shape arithmetic folded, its bodies lifted.

    Bodies of nodes are lifted into the main graph as far as the graph runs with them there, at the sizes that it is
    traced at; of If nodes, where there are samples, those alone that a sample takes.

    Args:
        graph: a normalised graph.
        backend: runs it, twice or more.
        shapes: input name -> shape of one image batch, from the data or the user; None or absent = find one that runs.
        samples: inputs that the model is meant for.

    Raises:
        ModelError: the model does not run at the shapes given, or at any that were tried.
    """
    specs = input_specs(graph.model)
    if not specs:
        raise ModelError("the model has no inputs, so it computes a constant; export it with its inputs")
    if unknown := sorted(set(shapes or {}) - set(specs)):
        raise ModelError(f"a shape is given for {unknown[0]!r}, the model's inputs are {', '.join(map(repr, specs))}")
    seen = _see(graph, backend, shapes or {}, samples)
    done: set[str] = set()
    while open_ := _open_bodies(seen.graph, done, samples, backend):
        for chosen in _attempts(open_):
            try:
                lifted = _see(lift_bodies(seen.graph, chosen), backend, shapes or {}, samples)
            except ModelError:  # a branch that is not taken does not run at these sizes, or a loop has no shapes
                continue
            if lifted.second is not None or seen.second is None:
                seen = lifted
                done.update(chosen)
                break
        else:
            done.add(next(iter(open_)))
    return _shaped(seen, backend)


@dataclass(frozen=True)
class _Seen:
    """A graph with its shape arithmetic folded, and the runs that told how; `kinds` as in `value_kinds`."""

    graph: Graph
    first: Run
    second: Run | None
    folded: Folded
    kinds: Mapping[str, int | None]


def _see(
    graph: Graph, backend: Backend, shapes: Mapping[str, Sequence[int | None]], samples: Sequence[Mapping[str, Array]]
) -> _Seen:
    """Return what two runs tell about a graph; raises a ModelError where it does not run."""
    specs = input_specs(graph.model)
    while True:
        graph = store_mixed(graph, backend)
        kinds = value_kinds(graph.model)
        first, second = _runs(_Probe(graph, kinds, backend, specs, samples[0] if samples else {}), specs, shapes)
        folding = fold(graph, first, second)
        if (simpler := take_branches(folding.graph)) is None:
            unchanged = folding.graph is graph
            return _Seen(
                folding.graph, first, second, folding, kinds if unchanged else value_kinds(folding.graph.model)
            )
        graph = simpler


def _shaped(seen: _Seen, backend: Backend) -> Shaped:
    """Return the graph with all that is known of its tensors; its lifted If nodes are joined where they can be."""
    graph, first, second = seen.graph, seen.first, seen.second
    kinds = {name: kind for name, kind in seen.kinds.items() if kind}
    kinds |= _unknown_kinds(graph, backend, seen.kinds)
    for item in graph.model.graph.output:
        if not item.type.WhichOneof("value"):
            item.type.tensor_type.elem_type = kinds.get(item.name, TensorProto.FLOAT)
    known = {t.name: tuple(t.dims) for t in graph.model.graph.initializer} | dict(first.shapes)
    known |= seen.folded.shapes
    others = known | dict((second or first).shapes)
    alike = [n.output[0] for n in graph.lifted.nodes if graph.opset >= 9 and _alike(n, graph, (known, others), kinds)]
    if alike:
        join(graph.model.graph, alike)
    declare_ranks(graph.model.graph, known, kinds)
    specs = input_specs(graph.model)
    free_batch = all(s.batch == 0 and s.shape[0] is None for s in specs.values())
    axes = {name: spec.batch for name, spec in specs.items()}
    varying = _varying(first.shapes, second.shapes if second else {})
    told, parts, constants = seen.folded.told, seen.folded.parts, constants_of(graph.model)
    apart = _decided_by(graph, [name for name, spec in specs.items() if spec.batch is not None])
    whole = {node.output[0]: _why_whole(node, graph.lifted.nodes) for node in graph.nodes if is_if(node)}
    open_ = entered(graph.nodes)
    whole |= {n.output[0]: _why_loop_whole(n) for n in graph.nodes if is_loop(n) and not is_open(n, open_)}
    return Shaped(
        graph, known, kinds, first.inputs, free_batch, constants, varying, told, parts, apart, axes, whole, first.times
    )


def _why_whole(node: NodeProto, lifted: Sequence[NodeProto]) -> str:
    """Return why no cut goes through an If."""
    missing = [branch for branch in BRANCHES if branch not in liftable(node)]
    if node.output[0] in {one.output[0] for one in lifted}:
        kept = [branch for branch in BRANCHES if handed(body(node, branch)) is None]
        if not kept:
            return "its branches give tensors of other shapes or types"
    else:
        kept = list(BRANCHES)
    if set(kept) <= set(missing):
        return f"its {kept[0]} draws random numbers or stores sparse ones, and stays whole"
    names = " and ".join(kept)
    return f"its {names} stays whole: not taken by the inputs, or not to be run at these sizes"


def _why_loop_whole(node: NodeProto) -> str:
    """Return why no cut goes through a Loop or Scan."""
    if not liftable(node):
        return "its body draws random numbers, stores sparse ones, or is of an opset before 9, and stays whole"
    return "its body stays whole: it is not run at these sizes, or not as often each time"


def _decided_by(graph: Graph, inputs: Collection[str]) -> bool:
    """Return whether the values of some inputs decide which branch of an If is run, or how often a loop is."""
    nodes = (*graph.nodes, *graph.lifted.nodes)
    open_ = entered(graph.nodes)
    loops = [n for n in nodes if is_open(n, open_)]
    behind = {inner: outers for loop in loops for inner, outers in sources(loop).items()}
    reached = {n.input[0] for n in nodes if is_if(n)}
    reached.update(name for loop in loops for name in controls(loop))
    reached.update(name for n in nodes if is_loop(n) and n not in loops for name in n.input[:2] if n.op_type == "Loop")
    before = 0
    while len(reached) > before:  # what an iteration decides the next one may hand on
        before = len(reached)
        for node in reversed(graph.nodes):
            if is_enter(node):
                reached.update(name for inner in node.output if inner in reached for name in behind[inner])
            elif not reached.isdisjoint(node.output) and not is_op(node, "Shape", "Size"):
                reached.update(reads(node))
    return not reached.isdisjoint(inputs)


def _alike(node: NodeProto, graph: Graph, runs: Sequence[Mapping[str, Shape]], kinds: Mapping[str, int]) -> bool:
    """Return whether both bodies of a lifted If hand tensors of one shape and type through, for every output."""
    present = next((n for n in graph.nodes if n.output[0] == node.output[0] and is_op(n, "If")), None)
    sides = [None if present is None else handed(body(present, branch)) for branch in BRANCHES]
    if present is None or sides[0] is None or sides[1] is None:
        return False
    ranks = [len(known.get(present.input[0], ())) for known in runs]
    for yes, no, output in zip(sides[0], sides[1], present.output, strict=True):
        names = [yes, no, *([output] if output else [])]
        if len({kinds.get(name) for name in names}) > 1 or kinds.get(yes) not in _CHOOSABLE:
            return False
        for rank, known in zip(ranks, runs, strict=True):
            if len({known.get(name) for name in names}) > 1 or len(known.get(yes, ())) < rank:
                return False
    return True


def _open_bodies(
    graph: Graph, done: Collection[str], samples: Sequence[Mapping[str, Array]], backend: Backend
) -> dict[str, list[str]]:
    """Return first output -> bodies, of the nodes that may be lifted and were not tried."""
    open_ = entered(graph.nodes)
    left = [n for n in graph.nodes if (is_if(n) or (is_loop(n) and not is_open(n, open_))) and n.output[0] not in done]
    found = {n.output[0]: liftable(n) for n in left}
    choices = [n for n in left if is_if(n)]
    if samples and choices:
        taken = _taken(graph, {n.input[0] for n in choices}, samples, backend)
        for node in choices:
            wanted = {BRANCHES[0] if value else BRANCHES[1] for value in taken[node.input[0]]}
            found[node.output[0]] = [branch for branch in found[node.output[0]] if branch in wanted]
    return {name: bodies for name, bodies in found.items() if bodies}


def _taken(
    graph: Graph, conditions: Collection[str], samples: Sequence[Mapping[str, Array]], backend: Backend
) -> dict[str, set[bool]]:
    """Return the values that conditions have on samples."""
    computed = sorted(name for name in conditions if name not in samples[0])
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.model.graph.input}
    found: dict[str, set[bool]] = {name: set() for name in conditions}
    session = (
        backend.session(extract(graph.model, kinds, dict.fromkeys(computed, TensorProto.BOOL))) if computed else None
    )
    for sample in samples:
        values = dict(sample)
        if session is not None:
            values |= zip(computed, session.run({n: sample[n] for n in session.inputs}), strict=True)
        for name in conditions:  # one value, or one an iteration of the loops around it
            found[name].update(np.ravel(values[name]).astype(np.bool_).tolist())
    return found


def _attempts(branches: Mapping[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """Yield what may be lifted at once, best first: all of it, then of the first If alone, both bodies or one."""
    name = next(iter(branches))
    if len(branches) > 1:
        yield dict(branches)
    yield {name: branches[name]}
    if len(branches[name]) > 1:
        yield from ({name: [branch]} for branch in branches[name])


def _unknown_kinds(graph: Graph, backend: Backend, kinds: Mapping[str, int | None]) -> dict[str, int]:
    """Return the element types that ONNX cannot infer, behind ops of other domains, as the runtime sees them."""
    unknown = [o for node in graph.nodes for o in node.output if o and kinds.get(o, 0) == 0]
    if not unknown:
        return {}
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    return dict(zip(unknown, backend.session(model, optimize=False).kinds, strict=True))


def _varying(one: Mapping[str, Shape], other: Mapping[str, Shape]) -> frozenset[tuple[str, int]]:
    pairs = [
        (name, shape, other[name]) for name, shape in one.items() if name in other and len(other[name]) == len(shape)
    ]
    return frozenset((name, k) for name, a, b in pairs for k in range(len(a)) if a[k] != b[k])


def _runs(
    probe: _Probe, specs: Mapping[str, InputSpec], given: Mapping[str, Sequence[int | None]]
) -> tuple[Run, Run | None]:
    """Run at sizes that the model accepts, and at others: the same run where no size is free, None where none run."""
    first = _first_run(probe, specs, given)
    varied = _varied(specs, first.inputs)
    return first, next((run for sizes in varied if (run := probe.attempt(sizes))), None) if varied else first


def _first_run(probe: _Probe, specs: Mapping[str, InputSpec], given: Mapping[str, Sequence[int | None]]) -> Run:
    """Run at the first sizes that the model accepts: the user's, else two images of a usual size."""
    sizes_tried = []
    reason: Exception | None = None
    alone = any(spec.batch != 0 for spec in specs.values())
    for free, batch in itertools.product(_FREE_SIZES, (1,) if alone else (_BATCH, 1)):
        sizes = {
            name: tuple(
                known if known is not None else (batch if axis == spec.batch else free)
                for axis, known in enumerate(_merged(spec, given.get(name)))
            )
            for name, spec in specs.items()
        }
        if sizes in sizes_tried:
            continue
        sizes_tried.append(sizes)
        try:
            return probe.run(sizes)
        except (ModelError, DataError) as error:
            reason = reason or error
    tried = "; ".join(", ".join(f"{k}{list(v)}" for k, v in s.items()) for s in sizes_tried[:3])
    raise ModelError(
        f"the model does not run at {tried}: {reason}; give data that it takes, or --input-shape NAME=1,3,48,192"
    ) from reason


def _merged(spec: InputSpec, given: Sequence[int | None] | None) -> list[int | None]:
    if given is None:
        return list(spec.shape)
    if len(given) != len(spec.shape):
        raise ModelError(
            f"input {spec.name!r} has {len(spec.shape)} dimensions, the shape given {len(given)}: give one size each"
        )
    for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True)):
        if axis != spec.batch and None not in (own, size) and own != size:
            raise ModelError(
                f"input {spec.name!r} has {own} entries on axis {axis}, the shape given {size}: "
                "only free dimensions can be chosen"
            )
    return [
        own if own is not None else (None if axis == spec.batch else size)
        for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True))
    ]


def _varied(specs: Mapping[str, InputSpec], base: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """Return other sizes for the free dimensions: all of them changed, then the batch alone.

    Half as much again where that is a multiple of 32, which strides and windows want (attention over all places of
    an image takes the fourth power of its sides), then twice as much.
    """

    def changed(grow: float) -> dict[str, Shape]:
        return {
            name: tuple(
                size if spec.shape[axis] is not None else (size + 1 if axis == spec.batch else int(size * grow))
                for axis, size in enumerate(base[name])
            )
            for name, spec in specs.items()
        }

    if all(None not in spec.shape for spec in specs.values()):
        return []
    free = {
        base[name][axis]
        for name, spec in specs.items()
        for axis, size in enumerate(spec.shape)
        if size is None and axis != spec.batch
    }
    if not free:
        return [changed(1)]
    return [*([changed(1.5)] if all(size % 64 == 0 for size in free) else []), changed(2), changed(1)]


class _Probe:
    """The model with a `Shape` node behind every tensor, loaded once."""

    def __init__(
        self,
        graph: Graph,
        kinds: Mapping[str, int | None],
        backend: Backend,
        specs: Mapping[str, InputSpec],
        sample: Mapping[str, Array],
    ) -> None:
        self._specs, self._sample = specs, sample
        made = [i.name for i in graph.model.graph.input] + [o for n in graph.nodes for o in n.output if o]
        self._names = [name for name in made if kinds.get(name, TensorProto.UNDEFINED) is not None]
        arithmetic = _shape_arithmetic(graph.model, kinds)
        self._values = [n for n in self._names if n in arithmetic]
        self._depths = depths(graph.nodes)
        self._session = backend.session(_telling(graph.model, self._names, self._values), optimize=False)

    def run(self, sizes: Mapping[str, Shape]) -> Run:
        """Return the shapes at these sizes of the inputs; a ModelError where the model does not run."""
        feeds = {n: noise(n, s.dtype, sizes[n]) for n, s in self._specs.items()}
        feeds |= {n: v for n, v in self._sample.items() if not self._specs[n].shape}
        got = self._outputs(feeds)
        shapes, values, times = dict[str, Shape](), dict[str, Array](), dict[str, int]()
        for number, (name, entries) in enumerate(zip([*self._names, *self._values], got, strict=True)):
            if (depth := self._depths.get(name, 0)) > 0:
                times[name] = int(np.prod(entries.shape[:depth]))
                entries = entries.reshape(times[name], *entries.shape[depth:])
                if not len(entries) or (entries != entries[:1]).any():
                    continue  # none, or another one at every iteration
            value = entries[0] if depth else entries
            if number < len(self._names):
                shapes[name] = tuple(value.tolist())
            else:
                values[name] = value
        return Run(sizes, shapes, values, times)

    def _outputs(self, feeds: dict[str, Array]) -> list[Array]:
        """Return what noise gives, or zeros (indices of a table with few rows), or the sample where it is as large."""
        zeros = {n: np.zeros_like(v) for n, v in feeds.items() if v.dtype.kind in "iu" and n not in self._sample}
        given = {n: v for n, v in self._sample.items() if v.shape == feeds[n].shape}
        attempts = [feeds, *(feeds | others for others in (zeros, given) if others)]
        for others in attempts[:-1]:
            try:
                return self._session.run(others)
            except ModelError:
                continue
        return self._session.run(attempts[-1])

    def attempt(self, sizes: Mapping[str, Shape]) -> Run | None:
        """Return the same, None where the model does not run."""
        try:
            return self.run(sizes)
        except ModelError:
            return None


def _telling(model: ModelProto, names: Sequence[str], values: Sequence[str]) -> ModelProto:
    """Return a model whose outputs are the shapes of some tensors, then the values of some."""
    made = copied(model)
    del made.graph.output[:]
    for name in names:
        made.graph.node.append(helper.make_node("Shape", [name], [_PREFIX + name]))
        made.graph.output.append(helper.make_tensor_value_info(_PREFIX + name, TensorProto.INT64, None))
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    return made


def value_kinds(model: ModelProto) -> dict[str, int | None]:
    """Return name -> element type as inference knows it, None for what is no tensor (a sequence, an optional)."""
    model = closed(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(without_values(model))
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):  # onnxruntime is the judge
        inferred = model
    kinds: dict[str, int | None] = {}
    for graph in reversed(list(graphs_of(inferred.graph))):  # a name of the main graph is that of the main graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            other = value.type.WhichOneof("value") not in (None, "tensor_type")
            kinds[value.name] = None if other else value.type.tensor_type.elem_type
    return {t.name: t.data_type for t in model.graph.initializer} | kinds


def noise(name: str, dtype: np.dtype[Any], shape: Shape, seed: int = 0) -> Array:
    """Return random values for an input, at a shape that is not taken apart into images."""
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if not shape:
        return np.ones((), dtype)
    return random_data({name: InputSpec(name, dtype, shape)}, (*shape, 1)[0], seed).inputs[name].reshape(shape)


def _shape_arithmetic(model: ModelProto, kinds: Mapping[str, int | None]) -> set[str]:
    """Return the tensors computed from shapes and initializers alone: of shapes some, or integers of no weights.

    What is made of a table of weights (positions of a sequence that has some length, resized or not) stays weights.
    """
    tables = {t.name for t in model.graph.initializer if t.data_type in _REAL and len(t.dims) > 1}
    static = {t.name for t in model.graph.initializer}
    weights = {t.name for t in model.graph.initializer if t.data_type not in _INTEGERS and np.prod(t.dims) > 1}
    found: set[str] = set()
    sized: set[str] = set()
    for node in model.graph.node:
        if any(True for _ in subgraphs(node)) or is_random(node) or is_enter(node):
            continue
        inputs = [i for i in node.input if i]
        if not tables.isdisjoint(inputs):
            tables.update(o for o in node.output if kinds.get(o) in _REAL)
            if not sized.isdisjoint(inputs):
                continue
        shape = is_op(node, "Shape", "Size")
        from_shape = shape and inputs[0] not in static
        if from_shape or all(i in static for i in inputs):
            outputs = [o for o in node.output if o]
            static.update(outputs)
            from_shape = from_shape or any(i in sized for i in inputs)
            if from_shape:
                sized.update(outputs)
            integers = weights.isdisjoint(inputs) and all(kinds.get(o) in _INTEGERS for o in outputs)
            if from_shape or shape or integers:
                found.update(outputs)
            elif not weights.isdisjoint(inputs):
                weights.update(outputs)
    return found
