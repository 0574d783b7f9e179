"""Runs ONNX models; the only owner of onnxruntime.

A `Backend` makes sessions, a `Session` maps named arrays to arrays. Tests pass a fake with the same one method each.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from onnxshap.arguments import check_fields, listed
from onnxshap.core import Array
from onnxshap.errors import LoadError, ModelError, OnnxshapError, first_line
from onnxshap.graph import is_standard, weights
from onnxshap.graph.functions import without_functions
from onnxshap.graph.loops import closed
from onnxshap.graph.structure import graphs_of, reads, seeded, subgraphs, used_names
from onnxshap.quiet import quiet

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
AUTO = "auto"
"""The provider name that stands for the fastest one that is usable here."""
MEMORY = 2**30
"""Bytes of activations that are kept at a time."""
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda"}
_FALL_BACKS = {"cpu": (), "cuda": ("cpu",), "tensorrt": ("cuda", "cpu")}
"""What runs the nodes that a provider does not know, in order."""
_OPTIONS = {
    # tensor cores round what they multiply to 10 bits, and an exhaustive search for kernels ends differently each time
    "cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
"""Options of providers that make values exact, and the same in every run."""
_CRASHING = "MatmulTransposeFusion"
"""What makes products of stored halves that no kernel of the processor takes: mending them ends the process (1.32)."""
_FATAL = 4
_TOLD = 4
"""Inputs that a message tells of."""
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S*\.(?:cc|h):\d+ (?:[^()]*::~?\w+\([^()]*\) |\S+ (?=[A-Z]))?")
"""Where in its sources onnxruntime gave up: nothing that a user can use."""
_INVALID = re.compile(r'This is an invalid model\. In Node, \("(.*?)", (\w+), ".*?", -?\d+\) : .* , Error (.*)')
"""What it says of a node: all its inputs and outputs with their types, many lines of them, before what is wrong."""
_FOREIGN = re.compile(r"No Op registered for|is not a registered function/op|No opset import for domain")
"""What it says of ops that neither ONNX nor onnxruntime has."""
_NEWER = re.compile(r".*Opset (\d+) is under development.*domain (\S+) is till opset (\d+).*")


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> Sequence[str]:
        """Input names, in order."""

    @property
    def outputs(self) -> Sequence[str]:
        """Output names, in order."""

    @property
    def kinds(self) -> Sequence[int]:
        """ONNX element types of the outputs, 0 where one is no tensor."""

    @property
    def dims(self) -> Sequence[Sequence[int | None]]:
        """The outputs' shapes as far as they follow from those of the inputs, None for what does not."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in order; raises ModelError when the model refuses the feeds."""


class Backend(Protocol):
    """Makes sessions out of models."""

    @property
    def memory(self) -> int:
        """Bytes of activations that may be kept at a time, about."""

    @property
    def on_device(self) -> bool:
        """Whether runs gain from tensors that stay where they run."""

    def session(self, model: onnx.ModelProto, *, optimize: bool = True, frugal: bool = False) -> Session:
        """Return a session; a frugal one takes less memory, for a few percent more time.

        Raises:
            LoadError: the model does not load.
        """

    def resident(self, model: onnx.ModelProto) -> Resident:
        """Return a session whose large inputs stay on the device; raises ModelError when the model does not load."""


class Resident(Protocol):
    """A loaded model, some of whose inputs are fed once and stay on the device."""

    def keep(self, feeds: Mapping[str, Array]) -> None:
        """Copy inputs to the device, where they stay until others of their names are."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in order, given the other inputs; raises ModelError when the model refuses them."""


@contextlib.contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Hide what native code writes to file descriptor 2 (CUDA-less GPU builds complain there, not through logging)."""
    try:
        fd = sys.__stderr__.fileno() if sys.__stderr__ else 2
        saved = os.dup(fd)
    except (OSError, ValueError):
        yield
        return
    with open(os.devnull, "w") as null:  # noqa: PTH123 - os.devnull is no Path on Windows
        os.dup2(null.fileno(), fd)
        try:
            yield
        finally:
            os.dup2(saved, fd)
            os.close(saved)


@functools.cache
def _load_libraries() -> None:
    """Load CUDA and cuDNN from the packages beside onnxruntime (`onnxshap[cuda]`), where they are: it does not look."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        ort.preload_dlls()


def _reason(error: BaseException) -> str:
    """Return the first line of what onnxruntime says, without the places in its sources."""
    text = _CODE.sub("", str(error))
    text = _INVALID.sub(r"node '\1' (\2): \3", text)
    text = _NEWER.sub(r"opset \1 of \2 is newer than \3, the last that it knows", text)
    return first_line(RuntimeError(text))


def _nothing() -> onnx.ModelProto:
    """Return the smallest model that a provider can be tried with."""
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> nothing (float[1] x) => (float[1] y) { y = Identity(x) }'
    )


def _loadable(model: onnx.ModelProto, *, in_place: bool) -> tuple[bytes, _Weights]:
    """Return a model as onnxruntime takes it, and its weights.

    Args:
        model: any model, its large initializers taken out.
        in_place: weights are inputs, as far as they can be: constants are copied, inputs are read where they are.
    """
    model = without_functions(model)
    read = used_names(model.graph)  # onnxruntime drops what nothing reads, and then misses it
    taken = {t.name: weights.ticketed(t) for t in model.graph.initializer if weights.is_kept(t) and t.name in read}
    inputs = _computable(model.graph) if in_place else frozenset()
    fed = {name: values for name, values in taken.items() if name in inputs}
    constant = {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values()))
        for name, values in taken.items()
        if name not in fed
    }
    bare = seeded(weights.without_values(model, fed) if fed else model)
    return bare.SerializeToString(), _Weights(constant, fed, halves=_has_halves(model.graph))


def _has_halves(graph: onnx.GraphProto) -> bool:
    """Return whether a graph or a body in it stores halves."""
    stored = (
        t
        for part in graphs_of(graph)
        for t in (*part.initializer, *(a.t for node in part.node for a in node.attribute if a.HasField("t")))
    )
    return any(t.data_type == onnx.TensorProto.FLOAT16 for t in stored)


def _computable(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors that are read by ops of the default domain alone, and outside of all bodies.

    There any input may be computed, as the standard has it; kernels of other domains may insist on constants.
    """
    plain, others = set[str](), {o.name for o in graph.output}
    for node in graph.node:
        standard = is_standard(node) and not any(subgraphs(node))
        (plain if standard else others).update(reads(node))
    return frozenset(plain - others)


def _element_type(text: str) -> int:
    """Return the ONNX element type of onnxruntime's `tensor(float)`, 0 of anything else.

    >>> _element_type("tensor(uint8)") == onnx.TensorProto.UINT8
    True
    """
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    return dict(onnx.TensorProto.DataType.items()).get(name, 0) if text.startswith("tensor(") else 0


def _refused(feeds: Mapping[str, Array], error: Exception) -> ModelError:
    if not feeds:
        return ModelError(f"what the model computes of constants cannot be run: {_reason(error)}; export it again")
    shapes = listed([f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items()], _TOLD)
    return ModelError(f"the model refused to run on {shapes}: {_reason(error)}")


@dataclass(frozen=True)
class _Weights:
    """How a session gets the weights that were taken out of its model: as constants, or fed with every run.

    Attributes:
        constant, fed: those.
        halves: whether the model stores some in half precision.
    """

    constant: Mapping[str, ort.OrtValue]
    fed: Mapping[str, weights.Ticketed]
    halves: bool = False

    @functools.cached_property
    def feeds(self) -> dict[str, Array]:
        """Name -> values of those that are fed; onnxruntime reads them where they are."""
        return {name: np.ascontiguousarray(values()) for name, values in self.fed.items()}


@dataclass(frozen=True)
class _OrtSession:
    inner: ort.InferenceSession
    held: _Weights
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple(_element_type(o.type) for o in self.inner.get_outputs())

    @property
    def dims(self) -> tuple[tuple[int | None, ...], ...]:
        return tuple(tuple(d if isinstance(d, int) else None for d in o.shape) for o in self.inner.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return list(self.inner.run(None, {**feeds, **self.held.feeds}))
        except Exception as error:
            raise _refused(feeds, error) from error


@dataclass
class _OrtResident:
    inner: ort.InferenceSession
    held: _Weights
    device: str
    kept: dict[str, ort.OrtValue] = field(default_factory=dict)

    def keep(self, feeds: Mapping[str, Array]) -> None:
        for name, value in feeds.items():
            self.kept.pop(name, None)  # let go of before the next is made
            self.kept[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self.device, 0)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        binding = self.inner.io_binding()
        try:
            for name, kept in self.kept.items():
                binding.bind_ortvalue_input(name, kept)
            for name, value in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for output in self.inner.get_outputs():
                binding.bind_output(output.name, "cpu")
            self.inner.run_with_iobinding(binding)
            return list(binding.copy_outputs_to_cpu())
        except Exception as error:
            raise _refused(feeds, error) from error


@dataclass(frozen=True)
class OrtBackend:
    """onnxruntime on one provider.

    Attributes:
        provider: cpu, cuda or tensorrt. A provider that silently falls back to another one is an error.
        threads: intra-op threads; 0 = all cores.
        memory: bytes of activations that may be kept at a time, about.
    """

    provider: str = "cpu"
    threads: int = 0
    memory: int = MEMORY

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            OnnxshapError: a field is of another type, or out of its range.
        """
        check_fields(self)
        if self.threads < 0 or self.memory < 0:
            raise OnnxshapError(f"threads is {self.threads}, memory {self.memory}; give 0 or more of both")

    @classmethod
    def fastest(cls, threads: int = 0, memory: int = MEMORY) -> OrtBackend:
        """Return the backend of the first provider that really runs here: cuda, else the CPU.

        TensorRT, which builds an engine for every shape of every session, has to be asked for by name.
        """
        tried = cls("cuda", threads, memory)
        try:
            tried.session(_nothing())
        except OnnxshapError:
            return replace(tried, provider="cpu")
        return tried

    @property
    def on_device(self) -> bool:
        """Whether runs gain from tensors that stay where they run: not where that is the processor."""
        return self._device != "cpu"

    @property
    def _device(self) -> str:
        return _DEVICES.get(self.provider, "cpu")

    def resident(self, model: onnx.ModelProto) -> _OrtResident:
        """Return a session whose large inputs stay on the device; raises as `session`."""
        content, held = _loadable(closed(model), in_place=False)
        return _OrtResident(self._inner(content, held, optimize=True), held, self._device)

    def session(self, model: onnx.ModelProto, *, optimize: bool = True, frugal: bool = False) -> _OrtSession:
        """Return a session on the wanted provider.

        Raises:
            LoadError: the model does not load.
            OnnxshapError: the provider is unknown, or not the one that onnxruntime really uses.
        """
        # optimised, or on a device, a copy of the weights is what is wanted
        content, held = _loadable(closed(model), in_place=not optimize and not self.on_device)
        del model  # the last one, often: onnxruntime makes its own of it
        inner = self._inner(content, held, optimize, frugal)
        inputs = tuple(i.name for i in inner.get_inputs() if i.name not in held.fed)
        return _OrtSession(inner, held, inputs, tuple(o.name for o in inner.get_outputs()))

    def _inner(self, content: bytes, held: _Weights, optimize: bool, frugal: bool = False) -> ort.InferenceSession:
        if self.provider not in PROVIDERS:
            raise OnnxshapError(f"provider {self.provider!r} is unknown; choose one of {', '.join(PROVIDERS)}")
        wanted = PROVIDERS[self.provider]
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL  # errors are raised, not printed
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # idle threads that spin would take the cores from numpy's, which works between the runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if (frugal and not self.on_device) or not optimize:
            # from the second run on it takes one piece more for all tensors, beside those that the first one took
            options.enable_mem_pattern = False
        if not optimize:  # run once or twice: a second copy of the weights would not pay
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # Shape nodes first: they let tensors go
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimize else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        unsafe = [_CRASHING] if held.halves and not self.on_device else []
        chain = (self.provider, *_FALL_BACKS[self.provider])
        providers = [(PROVIDERS[name], _OPTIONS.get(name, {})) for name in chain]
        if held.constant:
            options.add_external_initializers(list(held.constant), list(held.constant.values()))
        try:
            with quiet(), _native_stderr_silenced():  # it prints what it falls back to
                if self.provider != "cpu":
                    _load_libraries()
                session = ort.InferenceSession(content, options, providers=providers, disabled_optimizers=unsafe)
        except Exception as error:
            reason = _reason(error).rstrip(".")
            foreign = _FOREIGN.search(reason)
            wanted_form = "without ops of other tools" if foreign else "with ops and versions that it has"
            raise LoadError(
                f"onnxruntime {ort.__version__} cannot load the model: {reason}; export it again, {wanted_form}"
            ) from error
        if session.get_providers()[0] != wanted:
            raise OnnxshapError(
                f"provider {self.provider} is not usable here (onnxruntime fell back to "
                f"{session.get_providers()[0]}); install its runtime or pass --provider cpu"
            )
        return session


def beside(backend: Backend) -> Backend:
    """Return the processor beside a device that is known to run; the backend itself where it is no device.

    Raises:
        OnnxshapError: the device is not usable.
    """
    if not (isinstance(backend, OrtBackend) and backend.on_device):
        return backend
    backend.session(_nothing())
    return replace(backend, provider="cpu")


def threads_of(backend: Backend) -> int:
    """Return how many threads may be used, 0 for all cores, as of a backend of another kind."""
    return backend.threads if isinstance(backend, OrtBackend) else 0


def provider_of(backend: Backend) -> str:
    """Return the name of the provider that runs, "" of a backend of another kind."""
    return backend.provider if isinstance(backend, OrtBackend) else ""
