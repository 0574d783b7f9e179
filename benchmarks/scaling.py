"""Seconds and memory over the size of a model: trace, plan, cut and the checks of structure, nothing that needs data.

    python benchmarks/scaling.py            prints benchmarks/scaling.md, but for its last row and table
    python benchmarks/scaling.py --quick    the small sizes only
    python benchmarks/scaling.py --huge     also a model beyond 2 GB (5 GB of memory, 4 GB of disk)
    python benchmarks/scaling.py --folder FOLDER     how many models of a folder (`zoo_export.py`) stay within 2.5 times

Every row is a process of its own on one thread; seconds are the processor's. Peak is the process' resident memory,
pages of mapped files included, less what it has after its imports. The runtime's is that of another process, which does
nothing but load the file in onnxruntime and run it once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from tables import made_by, table

SIZES = (100, 300, 1200, 2500, 5000)
QUICK = (100, 300)
WIDTHS = (32, 128, 256)
QUICK_WIDTHS = (32,)


class _Net:
    """A graph under construction; weights go into one file of external data where there is one."""

    def __init__(self, data: Path | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.data = data

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        """Add noise, return its name."""
        name = f"w{len(self.weights)}"
        values = self.rng.standard_normal(shape, np.float32) * np.float32(scale / np.sqrt(np.prod(shape[1:])))
        if self.data is None:
            self.weights.append(onnx.numpy_helper.from_array(values, name))
        else:
            with self.data.open("ab") as file:
                start = file.tell()
                file.write(values.data)
            stored = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            stored.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self.data.name), ("offset", start), ("length", values.nbytes)):
                stored.external_data.add(key=key, value=str(value))
            self.weights.append(stored)
        return name

    def constant(self, *values: int) -> str:
        """Add integers, return their name."""
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, return its output's name."""
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def model(self, shape: list[int | str], last: str, out: list[int | str]) -> ModelProto:
        """Return the model."""
        given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), (last, out)))
        graph = helper.make_graph(self.nodes, "net", [given], [made], self.weights)
        model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model


def residual(nodes: int, width: int = 32) -> ModelProto:
    """Return a residual convolutional net: Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu."""
    net = _Net()

    def norm(x: str) -> str:
        scale, shift, mean = (net.weight(width, scale=0.1) for _ in range(3))
        variance = net.weight(width)
        net.weights[-1].CopyFrom(onnx.numpy_helper.from_array(np.ones(width, np.float32), variance))
        return net("BatchNormalization", x, scale, shift, mean, variance)

    x = net("Relu", net("Conv", "x", net.weight(width, 3, 3, 3), pads=[1] * 4))
    while len(net.nodes) < nodes - 6:
        h = net("Relu", norm(net("Conv", x, net.weight(width, width, 3, 3), pads=[1] * 4)))
        h = norm(net("Conv", h, net.weight(width, width, 3, 3), pads=[1] * 4))
        x = net("Relu", net("Add", h, x))
    y = net("Gemm", net("Flatten", net("GlobalAveragePool", x)), net.weight(10, width), transB=1)
    return net.model(["N", 3, 16, 16], y, ["N", 10])


def transformer(nodes: int, width: int = 64) -> ModelProto:
    """Return a transformer encoder as exporters write it: 27 nodes a block, heads split and merged by Reshape."""
    net, heads, tokens = _Net(), 4, 8

    def normed(x: str) -> str:
        return net("LayerNormalization", x, net.weight(width), net.weight(width), axis=-1)

    def linear(x: str, wide: int, out: int) -> str:
        return net("Add", net("MatMul", x, net.weight(wide, out)), net.weight(out))

    x = linear("x", 16, width)
    while len(net.nodes) < nodes - 26:
        h = normed(x)
        q, k, v = (net("Reshape", linear(h, width, width), net.constant(0, tokens, heads, -1)) for _ in range(3))
        q, v = (net("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 3, 1])), axis=-1)
        merged = net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3])
        x = net("Add", x, linear(net("Reshape", merged, net.constant(0, tokens, width)), width, width))
        hidden = net("Relu", linear(normed(x), width, 4 * width))
        x = net("Add", x, linear(hidden, 4 * width, width))
    y = net("MatMul", net("ReduceMean", x, axes=[1], keepdims=0), net.weight(width, 10))
    return net.model(["N", tokens, 16], y, ["N", 10])


def dense(layers: int, width: int, data: Path | None = None) -> ModelProto:
    """Return a stack of big MatMuls: nothing but weights."""
    net = _Net(data)
    x = net("Relu", net("MatMul", "x", net.weight(16, width)))
    for _ in range(layers):
        x = net("Relu", net("MatMul", x, net.weight(width, width)))
    return net.model(["N", 16], net("MatMul", x, net.weight(width, 10)), ["N", 10])


def measure(path: Path, *, units: bool = False) -> dict[str, float]:
    """Return seconds a stage, and megabytes, of a model in a file; cut to half of the MACs, or of every group."""
    from onnxshap import graph, shapes
    from onnxshap.backend import OrtBackend
    from onnxshap.graph import writing
    from onnxshap.plan import Budget, Candidate, make_plan
    from onnxshap.rewrite import cut
    from onnxshap.rules import trace_graph
    from onnxshap.tracing import Keep, Traced
    from onnxshap.verify import check_loads

    found: dict[str, float] = {}
    before = _peak()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        found[name] = time.process_time() - start

    backend = OrtBackend(threads=1)
    with stage("read"):
        source = graph.read(path)
        normal = graph.normalise(source.model, source.kept)
    with stage("shapes"):
        shaped = shapes.infer(normal, backend)
    del normal  # as `trace` does
    with stage("labels"):
        traced = Traced(source.model, shaped, trace_graph(shaped), backend, source.files)
    with stage("groups"):
        groups, cost = traced.groups, traced.cost
        covers = traced.covers
    with stage("plan"):
        rng = np.random.default_rng(0)
        candidates = [Candidate(g.name, g.units, rng.random(len(g))) for g in groups]

        def shares(keep: Keep) -> dict[str, float]:
            live = traced.alive(keep)
            return {"macs": cost.macs(live) / cost.macs(), "params": cost.params(live) / cost.params()}

        budget = Budget(units=0.5, multiple_of=1) if units else Budget(macs=0.5, multiple_of=1)
        keep = make_plan(candidates, budget, shares, covers)
    with stage("cut"):
        small = graph.finish(cut(traced, keep), shaped.graph)
    with stage("checks"):
        check_loads(traced, small)
    with stage("save"), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        graph.save(small, Path(folder) / "small.onnx", external=bool(source.files))
    model = writing.file_size(source.model) / 1e6
    return found | {
        "nodes": len(source.model.graph.node), "units": traced.labels.n_units, "model": model,
        "small": writing.file_size(small) / 1e6, "peak": _peak() - before,
    }  # fmt: skip


def bare(path: Path) -> dict[str, float]:
    """Return the megabytes that onnxruntime takes, as it is, to load a model and run it on two samples."""
    import onnxruntime

    before = _peak()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    session.run(None, {"x": np.zeros([size if isinstance(size, int) else 2 for size in shape], np.float32)})
    return {"runtime": _peak() - before}


def _peak() -> float:
    """Return the largest resident memory so far, in megabytes."""
    status = Path("/proc/self/status").read_text()  # getrusage counts the process that started this one too
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


NOTE = """Trace, plan, cut to half of the MACs, and the checks of structure; every row is a process of its \
own. Seconds are the processor's (one thread; the machine was shared). Peak is resident memory, \
pages of mapped files included, less what the process has after its imports. Runtime is the same of a \
process that does nothing but load the file in onnxruntime, with its default settings, and run it once."""
READING = """Seconds: 1,200 nodes take .7 to 1.1 s on a quiet machine, the aim is 2; both kinds of nets take as long a \
node from 88 to 5,003 nodes, so the time grows linearly. About half of it is onnxruntime's: sessions of 100 nodes \
each that tell the shapes, one of the cut model.

Memory: the aim, 2.5 times the model, is met by nets of 27 MB and more with up to 5,003 nodes. Below that it is what \
any process has that opens a model, 18 MB (first row, a file of 3 KB: 12 of them pages of the libraries' code, 9 the \
runtime takes alone too), and at most 2.5 times the model from 8 MB and 1,180 nodes on, 2 to 5 times from .6 to 3 MB: \
never more than 20 MB and 2.5 times the model. It is 14 to 16 KB a node, 6 of these onnxruntime's when it loads the \
cut model, and what a piece of 100 nodes or 64 MB of weights takes to run: the weights stay in the file until somebody \
asks for them. External data are mapped, and their pages counted. To load and run the nets of 1,200 nodes and more in \
its usual way onnxruntime takes 1.1 to 6.5 times as much, but for transformers of 8 and 18 MB. Models of large images \
take more: what is traced is run, two images at a time."""
STAGES = ("read", "shapes", "labels", "groups", "plan", "cut", "checks")


def measured(build: Callable[[Path], ModelProto], folder: Path) -> dict[str, float]:
    """Return what processes of their own find of one model."""
    path = folder / "model.onnx"
    path.write_bytes(build(folder).SerializeToString())
    found: dict[str, float] = {}
    for what in ("--one", "--bare"):
        command = [sys.executable, __file__, what, str(path)]
        found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for file in folder.iterdir():
        file.unlink()
    return found


def row(name: str, found: dict[str, float], least: float) -> list[str]:
    """Return the row of one model; `least` is the peak of the smallest, in megabytes."""
    total = sum(found[s] for s in STAGES)
    seconds = [*(found[s] for s in STAGES), total, 1000 * total / found["nodes"]]
    sizes = [found[key] for key in ("model", "small", "runtime", "peak")]
    counts = [str(found[key]) for key in ("nodes", "units")]
    ratios = [peak / found["model"] for peak in (found["peak"], found["peak"] - least)]
    return [name, *counts, *(f"{s:.2f}" for s in seconds), *(f"{s:.0f}" for s in sizes), *(f"{r:.2f}" for r in ratios)]


def within(folder: Path) -> tuple[list[list[str]], list[str]]:
    """Return rows: from some size on, how many models of a folder take no more than so many times that; and names.

    Those are of the models whose cut files are larger than they are.
    """
    found, rows = [], []
    for path in sorted(folder.glob("*.onnx")):
        command = [sys.executable, __file__, "--units", "--one", str(path)]
        one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found.append((one["model"], one["peak"] / one["model"], one["small"] / one["model"], path.stem))
    for least in (0, 5, 10, 20, 50, 100):
        ratios = sorted(ratio for model, ratio, _, _ in found if model >= least)
        if ratios:
            counts = [str(sum(r <= most for r in ratios)) for most in (1.5, 2.5, 5)]
            ends = [f"{np.median(ratios):.2f}", f"{ratios[-1]:.2f}"]
            rows.append([str(least), str(len(ratios)), *counts, *ends])
    return rows, [name for _, _, small, name in found if small > 1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--units", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, units=options.units)))
        return
    if options.bare is not None:
        print(json.dumps(bare(options.bare)))
        return
    if options.folder is not None:
        head = ["MB from", "models", "within 1.5", "within 2.5", "within 5", "median", "most"]
        rows, larger = within(options.folder)
        print(f"Cut files that are larger than the original: {', '.join(larger) or 'none'}.\n\n{table(head, rows)}")
        return
    sizes = QUICK if options.quick else SIZES
    nets: list[tuple[str, Callable[[Path], ModelProto]]] = [("dense, 16 wide", lambda _: dense(1, 16))]
    nets += [("residual", lambda _, n=size: residual(n)) for size in sizes]
    nets += [("transformer", lambda _, n=size: transformer(n)) for size in sizes]
    widths = QUICK_WIDTHS if options.quick else WIDTHS
    nets += [(f"residual, {width} wide", lambda _, w=width: residual(300, w)) for width in widths]
    if not options.quick:
        nets.append(("residual, 64 wide", lambda _: residual(1200, 64)))
        nets.append(("transformer, 160 wide", lambda _: transformer(1200, 160)))
    nets.append(("dense, 4096 wide", lambda _: dense(4, 4096)))
    if not options.quick:
        nets.append(("dense, external", lambda f: dense(6, 4096, f / "model.data")))
    if options.huge:
        nets.append(("dense, beyond 2 GB", lambda f: dense(9, 8192, f / "model.data")))
    with tempfile.TemporaryDirectory() as name:
        found = [measured(build, Path(name)) for _, build in nets]
    rows = [row(name, one, found[0]["peak"]) for (name, _), one in zip(nets, found, strict=True)]
    head = ["net", "nodes", "units", *STAGES, "total s", "ms a node", "model MB", "cut MB", "runtime MB", "peak MB",
            "peak / model", "less the first row's"]  # fmt: skip
    print(f"# Scaling\n\n{made_by('one thread')}\n\n{NOTE}\n\n{table(head, rows)}")
    if not options.quick:
        print(f"\n{READING}")


if __name__ == "__main__":
    main()
