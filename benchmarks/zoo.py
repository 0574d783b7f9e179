"""Cuts half of every group of every model of a folder and checks the result: coverage and exactness.

    python benchmarks/zoo_export.py FOLDER                     # writes the models
    python benchmarks/zoo.py FOLDER [--share 0.5] [--seed 0] [--match 'own.*'] [--rows FILE.jsonl]

For every file: whether the batch is free, or can be freed for scoring; whether the cut file runs with the right shapes;
its largest difference from the masked model and from the original with the removed slices zeroed, over the largest
output (zeros left behind, random choice); that of three images with a coalition each from the same one by one (`-`:
they cannot go together); where other dims than the batch are free, at how many of eight other sizes the original runs,
and the largest difference of the cut file from the zeroed one there; MACs and parameters kept; the share of the weight
tensors (rank >= 2, read by Conv, ConvTranspose, Gemm, MatMul, Einsum or a recurrent op) that lost slices, and why the
others stay; seconds for trace, plan, cut. Then one line for each kind of net: `convolutional` has most of its MACs in
Conv and multiplies no two computed tensors, `attention` does multiply some, the others are `linear`; `the peers' 35`
are the architectures on which other pruners were measured (`PEERS`). `--rows` keeps what was measured, a later run goes
on behind it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

import onnxshap
from onnxshap.calibrate import free_batch
from onnxshap.masking import mask_name
from onnxshap.plan import Candidate
from onnxshap.shapes import input_specs, noise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.exactness import check_rows
from tests.zeroing import relative_error, run, zeroed

CONV = ("Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv")
LINEAR = (*CONV, "Gemm", "MatMul", "MatMulInteger", "Einsum", "LSTM", "GRU", "RNN")
EXACT = 1e-4
PEERS = (
    *("ptcv.bn_vgg16", "ptcv.resnet18", "ptcv.resnet50", "ptcv.preresnet18", "ptcv.resnext50_32x4d", "ptcv.seresnet50"),
    *("ptcv.densenet121", "ptcv.mobilenet_w1", "ptcv.mobilenetv2_w1", "ptcv.mobilenetv3_large_w1", "ptcv.ghostnet"),
    *("ptcv.shufflenetv2_w1", "ptcv.shufflenet_g3_w1", "ptcv.squeezenet_v1_1", "ptcv.inceptionv3", "ptcv.dpn68"),
    *("ptcv.efficientnet_b0", "ptcv.regnetx002", "ptcv.dla34", "ptcv.hrnet_w18_small_v1", "ptcv.xception"),
    *("ptcv.nasnet_4a1056", "ptcv.unet_cityscapes", "ptcv.deeplabv3_resnetd50b_voc", "ptcv.centernet_resnet18_voc"),
    *("ptcv.proxylessnas_mobile", "timm.vit_tiny_patch16_224", "timm.swin_tiny_patch4_window7_224", "hf.segformer"),
    *("timm.convnext_atto", "timm.mobilenetv4_conv_small", "timm.repvit_m0_9", "own.yolov5n", "hf.bert", "hf.llama"),
)
"""The 35 architectures on which peers were measured."""


def random_plan(traced: onnxshap.Traced, share: float, seed: int) -> Mapping[str, NDArray[np.bool_]]:
    """Return a plan that keeps a random share of every group."""
    rng = np.random.default_rng(seed)
    candidates = [Candidate(g.name, g.units, rng.random(len(g))) for g in traced.groups]
    return onnxshap.make_plan(candidates, onnxshap.Budget(units=share, multiple_of=1), lambda keep: {}, traced.covers)


def touched(traced: onnxshap.Traced, keep: Mapping[str, NDArray[np.bool_]]) -> tuple[int, Counter[str]]:
    """Return of how many weight tensors some slices go, and why the others stay."""
    live, cut, stay = traced.alive(keep), 0, Counter[str]()
    for node in traced.shaped.graph.nodes:
        if node.op_type not in LINEAR:
            continue
        for name in node.input[:3] if node.op_type in ("LSTM", "GRU", "RNN") else node.input[:2]:
            shape = traced.shaped.shapes.get(name, ())
            if name not in traced.shaped.constants or len(shape) < 2:
                continue
            if any(live.cut(name, axis) for axis in range(len(shape))):
                cut += 1
            else:
                stay[_why(traced, name, shape)] += 1
    return cut, stay


def _why(traced: onnxshap.Traced, name: str, shape: tuple[int, ...]) -> str:
    """Return the reasons that stand at a weight's first two axes, the longest of them."""
    found = []
    for axis in range(len(shape)):
        classes = traced.labels.axis(name, axis)
        if shape[axis] > 1 and classes is not None:
            found.append(traced.labels.reasons.get(int(classes[0]), "nothing that can be cut makes it"))
    return " / ".join(found[:2]) or "it has no axis to cut"


def at_other_sizes(
    source: onnx.ModelProto, traced: onnxshap.Traced, small: onnx.ModelProto, redone: onnx.ModelProto, seed: int
) -> tuple[int, float] | None:
    """Return at how many other sizes of the free dims the original runs, and how far the cut is from the zeroed there.

    From two fifths of the traced sizes to one and a half times as much, multiples of up to 32; axes that are called the
    same get the same. None where no size is free but the batch.
    """
    if not traced.shaped.elsewhere:
        return None
    specs, runs, worst = input_specs(source), 0, 0.0
    for k, multiple in enumerate((1, 1, 1, 2, 4, 8, 16, 32)):
        rng, sizes = np.random.default_rng([seed, k]), dict[str, float]()
        feeds = {}
        for name, spec in specs.items():
            shape = list(traced.shaped.inputs[name])
            for axis, size in enumerate(spec.shape):
                if size is None and axis != spec.batch:
                    grown = sizes.setdefault(spec.symbols[axis] or f"{axis - len(shape)}", rng.uniform(0.4, 1.5))
                    shape[axis] = max(1, round(grown * shape[axis] / multiple)) * multiple
            feeds[name] = noise(name, spec.dtype, tuple(shape), seed)
        try:
            wanted = run(redone, feeds)
        except Exception:  # noqa: BLE001 - it does not take this size: nothing to be compared with
            continue
        runs += 1
        try:
            worst = max(worst, relative_error(run(small, feeds), wanted))
        except Exception:  # noqa: BLE001 - the cut file has to run where the original does
            worst = float("inf")
    return runs, worst


def kind(traced: onnxshap.Traced) -> str:
    """Return what sort of net this is."""
    constants, cost = traced.shaped.constants, Counter[bool]()
    for node in traced.shaped.graph.nodes:
        if node.op_type in ("MatMul", "Einsum", "Attention", "MultiHeadAttention") and constants.isdisjoint(
            node.input[:2]
        ):
            return "attention"
        if node.op_type in LINEAR:
            weight = next((i for i in node.input[:2] if i in constants), "")
            per_position = np.prod(traced.shaped.shapes.get(weight, (0,)))
            positions = np.prod(traced.shaped.shapes.get(node.output[0], (1,)))
            cost[node.op_type in CONV] += int(per_position * positions)
    return "convolutional" if cost[True] >= cost[False] else "linear"


def check(path: Path, share: float, seed: int, tolerance: float = EXACT, *, optimise: bool = True) -> dict[str, Any]:
    """Return one row of the table; models are run with onnxruntime's optimizations, or without."""
    source = onnx.load(path)
    start = time.perf_counter()
    traced = onnxshap.trace(source)
    keep = random_plan(traced, share, seed) if traced.groups else {}
    small = onnxshap.drop_units(traced, keep)
    seconds = time.perf_counter() - start
    specs = input_specs(traced.shaped.graph.model)
    feeds = {name: noise(name, spec.dtype, traced.shaped.inputs[name], seed) for name, spec in specs.items()}
    got, before = (run(model, feeds, optimise=optimise) for model in (small, source))
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    freed = free_batch(traced)
    masked = run(onnxshap.insert_masks(freed), {**feeds, **masks}, optimise=optimise)
    rows = check_rows(freed, {}, np.random.default_rng(seed), tolerance) if traced.groups else None
    removed = zeroed(source, onnxshap.removed_slices(traced, keep))
    redone = run(removed, feeds, optimise=optimise)
    cut, stay = touched(traced, keep)
    live, cost = traced.alive(keep), traced.cost
    return {
        "kind": kind(traced),
        "nodes": len(source.graph.node),
        "groups": len(traced.groups),
        "batch": "free" if traced.shaped.free_batch else "freed" if freed.shaped.free_batch else "fixed",
        "shapes": [a.shape for a in got] == [a.shape for a in before],
        "masked": relative_error(got, masked),
        "zeroed": relative_error(got, redone),
        "rows": rows,
        "elsewhere": at_other_sizes(source, traced, small, removed, seed),
        "macs": cost.macs(live) / max(1, cost.macs()),
        "params": cost.params(live) / max(1, cost.params()),
        "touched": cut / max(1, cut + stay.total()),
        "seconds": seconds,
        "stays": stay.most_common(2),
    }


def line(name: str, row: Mapping[str, Any]) -> str:
    """Return a row as a line of the table."""
    if "failed" in row:
        return f"| {name} | failed: {row['failed']} |"
    rows = "-" if row["rows"] is None else f"{row['rows']:.0e}"
    elsewhere = "-" if not row.get("elsewhere") else f"{row['elsewhere'][0]}: {row['elsewhere'][1]:.0e}"
    why = "; ".join(f"{count} x {reason}" for reason, count in row["stays"])
    return (
        f"| {name} | {row['kind']} | {row['nodes']} | {row['groups']} | {row['batch']} "
        f"| {'ok' if row['shapes'] else 'WRONG'} | {row['masked']:.0e} | {row['zeroed']:.0e} | {rows} "
        f"| {elsewhere} | {row['macs']:.2f}"
        f" | {row['params']:.2f} | {row['touched']:.2f} | {row['seconds']:.1f} | {why} |"
    )


def architecture(name: str) -> str:
    """Return the name of a file without the size of its images, its exporter and its batch."""
    return re.sub(r"(_\d+)?\.(legacy|dynamo)(\.free)?$", "", name)


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for each kind of net."""
    lines = [
        "| kind | files | exact | masked, worst | zeroed, worst | MACs | params | >= 95 % of weights cut | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peers = {name: row for name, row in rows.items() if architecture(name) in PEERS}
    chosen = {
        **{
            name: [r for r in rows.values() if r.get("kind") == name]
            for name in ("convolutional", "linear", "attention")
        },
        "all": list(rows.values()),
        f"the peers' 35 ({len(set(map(architecture, peers)))} here)": list(peers.values()),
        "convolutional ones of those": [r for r in peers.values() if r.get("kind") == "convolutional"],
    }
    for name, some in chosen.items():
        done = [r for r in some if "failed" not in r]
        if not done:
            continue
        exact = sum(
            r["shapes"] and max(r["masked"], r["zeroed"], (r.get("elsewhere") or (0, 0))[1]) < EXACT for r in done
        )
        deep = sum(r["touched"] >= 0.95 for r in done)
        means = [np.mean([r[key] for r in done]) for key in ("macs", "params")]
        lines.append(
            f"| {name} | {len(some)} | {exact} | {max(r['masked'] for r in done):.0e} "
            f"| {max(r['zeroed'] for r in done):.0e} | {means[0]:.3f} | {means[1]:.3f} "
            f"| {deep} ({deep / len(done):.0%}) | {sum(r['seconds'] for r in done):.0f} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--share", default=0.5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--match", default="*", show_default=True, help="Names of files, without .onnx.")
@click.option("--rows", "store", type=click.Path(dir_okay=False, path_type=Path), help="Keeps rows between runs.")
def main(folder: Path, share: float, seed: int, match: str, store: Path | None) -> None:
    """Print the table."""
    rows: dict[str, dict[str, Any]] = {}
    if store is not None and store.exists():
        rows = {row.pop("name"): row for row in map(json.loads, store.read_text().splitlines())}
    columns = (
        "model | kind | nodes | groups | batch | shapes | masked | zeroed | rows | other sizes | MACs | params | cut "
        "| s | stays"
    )
    print(f"| {columns} |\n" + "|---" * 15 + "|")
    found = sorted(p for p in folder.glob("*.onnx") if fnmatch(p.stem, match))
    for path in found:
        if path.stem not in rows:
            try:
                rows[path.stem] = check(path, share, seed)
            except Exception as error:  # noqa: BLE001 - a benchmark reports every failure and goes on
                rows[path.stem] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            if store is not None:
                with store.open("a") as file:
                    file.write(json.dumps({"name": path.stem, **rows[path.stem]}) + "\n")
        print(line(path.stem, rows[path.stem]), flush=True)
    print("\n" + summary({p.stem: rows[p.stem] for p in found}))


if __name__ == "__main__":
    main()
