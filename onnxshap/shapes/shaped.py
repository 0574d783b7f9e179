"""The shape of every tensor, and the values of shape arithmetic, by running the model instead of predicting it.

onnxruntime is the judge of what a model does, so it is asked (`probe`). What is equal in two runs does not depend on
the free dimensions and becomes a constant (`Shape -> Gather -> Concat` chains before a Reshape, sqrt(head size), ...);
what differs keeps following the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from onnx import TensorProto

from onnxshap.backend import Backend
from onnxshap.core import Array
from onnxshap.data import InputSpec
from onnxshap.errors import ModelError
from onnxshap.graph import Graph, lift_bodies, take_branches
from onnxshap.graph.lifting import entered, is_if, is_loop, is_open, join
from onnxshap.graph.loops import declare_ranks
from onnxshap.graph.structure import reads
from onnxshap.shapes.alone import Alone
from onnxshap.shapes.baked import at_batch, fixed_batch, torn_batch, with_batch, written_batches, written_sizes
from onnxshap.shapes.bodies import alike_handed, attempts, decided_by, open_bodies, why_loop_whole, why_whole
from onnxshap.shapes.constants import constants_of, store_mixed
from onnxshap.shapes.folding import Folded, Part, Run, Shape, fold
from onnxshap.shapes.kinds import unknown_kinds, value_kinds
from onnxshap.shapes.probe import ShapeProbe
from onnxshap.shapes.samples import together
from onnxshap.shapes.specs import check_names, input_specs, placed
from onnxshap.shapes.trials import runs

_RANKS = 8
"""Integers of one axis of which there are no more may be the sizes of a tensor."""


@dataclass(frozen=True)
class Shaped:
    """A normalised graph with the concrete shapes that it is traced at.

    Attributes:
        graph: the graph, its shape arithmetic replaced by constants where it is constant.
        shapes: tensor name -> concrete shape, initializers included; tensors that are no tensors (sequences) lack one,
            and so do those whose sizes differ from iteration to iteration of a loop.
        kinds: tensor name -> ONNX element type.
        inputs: the model's inputs at these shapes.
        free_batch: whether it takes any number of images at a time: axis 0 of all inputs is theirs, and free.
        constants: names computed from initializers alone.
        varying: (tensor, axis) whose size follows the inputs' free dimensions.
        told: (tensor, axis) whose size is read by arithmetic that is left.
        parts: tensor name -> what is known of a vector of sizes, or of numbers of positions, that is computed.
        apart: whether the values of the images decide which branch is taken, so that each has to be run alone.
        batch_axes: input -> the axis of its images, None where it has none; absent: axis 0.
        whole: first output of an If, Loop or Scan that is left -> why no cut goes through it.
        times: tensor in the body of a loop -> how often it was made, for all images at once.
        elsewhere: the shapes at other sizes, where others than the batch are free; else empty.
        counted: whether the images of a batch, taken together, tell sizes: rows of other images change what one gives.
        baked: the batch that the file takes alone, though it declares a free one; None where it takes what it declares.
        notes: what the user should know of how the model was taken.
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
    elsewhere: Mapping[str, Shape] = field(default_factory=dict)
    counted: bool = False
    baked: int | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def specs(self) -> Mapping[str, InputSpec]:
        """What the model asks of its inputs."""
        found = placed(input_specs(self.graph.model), self.batch_axes)
        return found if self.baked is None else {n: with_batch(s, self.baked) for n, s in found.items()}

    def batch_axis(self, name: str) -> int | None:
        """Return the axis of the images in an input, None where it has none."""
        return self.batch_axes.get(name, 0) if self.inputs[name] else None

    @property
    def alone(self) -> bool:
        """Whether images do not lie along axis 0 of every input: such a model is traced with one image."""
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
    def declared(self) -> Mapping[str, Sequence[int | None]]:
        """Tensor name -> dims that are declared where it is fed to a part of the model: None = open.

        The lengths of vectors of sizes are said: onnxruntime takes what it knows no rank or length of for empty there.
        """
        open_ = [(None,) * rank for rank in range(1 + max(map(len, self.shapes.values()), default=0))]
        return {n: s if self._sizes(n, s) else open_[len(s)] for n, s in self.shapes.items()}

    @cached_property
    def sized(self) -> Mapping[str, Sequence[int | None]]:
        """The same for parts of the whole model, of which nothing is cut: all sizes that are the same in every run.

        Where they are open onnxruntime guesses some: those of what Attention gives by its queries, if it knows no
        values.
        """
        told = all((name, self.batch_axis(name)) in self.varying for name in self.inputs)
        if self.free_batch and not told:  # no run has told what follows the images
            return self.declared
        return {n: [None if (n, axis) in self.varying else size for axis, size in enumerate(s)]
                for n, s in self.shapes.items()}  # fmt: skip

    def _sizes(self, name: str, shape: Shape) -> bool:
        """Return whether a tensor may hold sizes: a few integers, always as many as far as two runs told."""
        if self.free_batch and not self.varying:
            return False
        few = len(shape) == 0 or (len(shape) == 1 and shape[0] <= _RANKS and (name, 0) not in self.varying)
        return few and self.kinds.get(name) in (TensorProto.INT64, TensorProto.INT32)

    @cached_property
    def reads(self) -> list[list[str]]:
        """What every node reads, as `structure.reads`."""
        return [reads(node) for node in self.graph.nodes]

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Tensor name -> the indices of the nodes that read it, in order."""
        found: dict[str, list[int]] = {}
        for k, names in enumerate(self.reads):
            for name in dict.fromkeys(names):
                found.setdefault(name, []).append(k)
        return found

    @cached_property
    def producers(self) -> dict[str, int]:
        """Tensor name -> the index of the node that makes it."""
        return {o: k for k, node in enumerate(self.graph.nodes) for o in node.output if o}


def infer(
    graph: Graph,
    backend: Backend,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
    batch_axes: Mapping[str, int | None] | None = None,
) -> Shaped:
    """Return the graph with concrete shapes, its constant shape arithmetic folded, its bodies lifted.

    Bodies of nodes are lifted into the main graph as far as the graph runs with them there, at the sizes that it is
    traced at; of If nodes, where there are samples, those alone that a sample takes.

    Args:
        graph: a normalised graph.
        backend: runs it, twice or more often.
        shapes: input name -> shape of one image batch, from the data or the user; None or absent = find one that runs.
        samples: inputs that the model is meant for.
        batch_axes: input -> the axis of its images, None where it has none; default what the model declares.

    Raises:
        ModelError: the model does not run at the shapes given, or at any that were tried.
    """
    specs = input_specs(graph.model)
    if not specs:
        raise ModelError("the model has no inputs, so it computes a constant; export it with its inputs")
    check_names(shapes or {}, specs)
    specs = placed(specs, batch_axes or {})
    seen = _see(graph, specs, backend, shapes or {}, samples)
    if seen.others:
        claims = [torn_batch(seen.graph, specs, backend, seen.first, seen.others, samples)]
    else:
        only = fixed_batch(graph, specs, backend, seen.first, samples)
        twice = None if only is None else _twice(graph, specs, backend, seen.first.inputs, only[0], samples)
        torn = None if twice is None else torn_batch(graph, specs, backend, seen.first, (twice,), samples)
        claims = [torn, only]
    baked = None
    for claim in filter(None, claims):
        fixed = {name: with_batch(spec, claim[0]) for name, spec in specs.items()}
        fed = together(samples, specs, claim[0])
        try:
            seen = _see(graph, fixed, backend, shapes or {}, fed)
        except ModelError:  # what shapes say of it is not so: it runs at other batches alone
            if not seen.others and claim is claims[-1]:
                raise
            continue
        samples, specs, baked = fed, fixed, claim
        break
    done: set[str] = set()
    while open_ := open_bodies(seen.graph, done, samples, backend):
        for chosen in attempts(open_):
            try:
                lifted = _see(lift_bodies(seen.graph, chosen), specs, backend, shapes or {}, samples)
            except ModelError:  # a branch that is not taken does not run at these sizes, or a loop has no shapes
                continue
            if lifted.others or not seen.others:
                seen = lifted
                done.update(chosen)
                break
        else:
            done.add(next(iter(open_)))
    shaped = _shaped(seen, specs, backend)
    return shaped if baked is None else replace(shaped, baked=baked[0], notes=(baked[1],))


@dataclass(frozen=True)
class _Seen:
    """A graph with its shape arithmetic folded, and the runs that told how; `kinds` as in `value_kinds`."""

    graph: Graph
    first: Run
    others: tuple[Run, ...]
    folded: Folded
    kinds: Mapping[str, int | None]


def _twice(
    graph: Graph, specs: Mapping[str, InputSpec], backend: Backend, shapes: Mapping[str, Shape], count: int,
    samples: Sequence[Mapping[str, Array]],
) -> Run | None:  # fmt: skip
    """Return a run at twice as many images as `count`, None where the graph refuses it."""
    probe = ShapeProbe(graph, value_kinds(graph.model), backend, specs, samples[0] if samples else {})
    return probe.attempt({name: at_batch(spec, shapes[name], 2 * count) for name, spec in specs.items()})


def _see(
    graph: Graph, specs: Mapping[str, InputSpec], backend: Backend, shapes: Mapping[str, Sequence[int | None]],
    samples: Sequence[Mapping[str, Array]],
) -> _Seen:  # fmt: skip
    """Return what two runs tell about a graph; raises a ModelError where it does not run."""
    while True:
        graph = store_mixed(graph, backend)
        kinds = value_kinds(graph.model)
        probe = ShapeProbe(graph, kinds, backend, specs, samples[0] if samples else {})
        first, others = runs(probe, specs, shapes, partial(_written, graph))
        folding = fold(graph, first, others, Alone(graph.model, kinds, backend))
        if (simpler := take_branches(folding.graph)) is None:
            unchanged = folding.graph is graph
            return _Seen(
                folding.graph, first, others, folding, kinds if unchanged else value_kinds(folding.graph.model)
            )
        graph = simpler


def _written(graph: Graph) -> tuple[list[int], list[int]]:
    """Return batches and other sizes that may be written into a file."""
    return written_batches(graph), written_sizes(graph)


def _shaped(seen: _Seen, specs: Mapping[str, InputSpec], backend: Backend) -> Shaped:
    """Return the graph with all that is known of its tensors; its lifted If nodes are joined where they can be."""
    graph, first = seen.graph, seen.first
    kinds = {name: kind for name, kind in seen.kinds.items() if kind}
    kinds |= unknown_kinds(graph.model, backend, seen.kinds)
    for item in graph.model.graph.output:
        if not item.type.WhichOneof("value"):
            item.type.tensor_type.elem_type = kinds.get(item.name, TensorProto.FLOAT)
    known = {t.name: tuple(t.dims) for t in graph.model.graph.initializer} | dict(first.shapes)
    known |= seen.folded.shapes
    once = {shape: shape for shape in known.values()}
    known = {name: once[shape] for name, shape in known.items()}  # of equal ones there are many
    others = known | dict((seen.others or (first,))[0].shapes)
    alike = [
        n.output[0] for n in graph.lifted.nodes if graph.opset >= 9 and alike_handed(n, graph, (known, others), kinds)
    ]
    if alike:
        join(graph.model.graph, alike)
    declare_ranks(graph.model.graph, known, kinds)
    free_batch = all(s.batch == 0 and s.shape[0] is None for s in specs.values())
    axes = {name: spec.batch for name, spec in specs.items()}
    varying = seen.folded.doubted.union(*(_varying(first.shapes, run.shapes) for run in seen.others))
    told, parts, constants = seen.folded.told, seen.folded.parts, constants_of(graph.model)
    apart = decided_by(graph, [name for name, spec in specs.items() if spec.batch is not None])
    whole = {node.output[0]: why_whole(node, graph.lifted.nodes) for node in graph.nodes if is_if(node)}
    open_ = entered(graph.nodes)
    whole |= {n.output[0]: why_loop_whole(n) for n in graph.nodes if is_loop(n) and not is_open(n, open_)}
    sized = any((n, k) in varying for n, spec in specs.items() for k in range(len(spec.shape)) if k != spec.batch)
    elsewhere = known | dict(seen.others[-1].shapes) if sized else {}
    return Shaped(
        graph, known, kinds, first.inputs, free_batch, constants, varying, told, parts, apart, axes, whole, first.times,
        elsewhere, seen.folded.by_data,
    )  # fmt: skip


def _varying(one: Mapping[str, Shape], other: Mapping[str, Shape]) -> frozenset[tuple[str, int]]:
    pairs = [
        (name, shape, other[name]) for name, shape in one.items() if name in other and len(other[name]) == len(shape)
    ]
    return frozenset((name, k) for name, a, b in pairs for k in range(len(a)) if a[k] != b[k])
