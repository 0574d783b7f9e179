"""What a run tells: reports and values files as JSON, the same as tables for a terminal, and as one HTML page.

Every table is drawn from the report that the JSON file holds, so that all of them say the same. Two runs with one seed
give the same reports but for `seconds` and `latency_ms`.
"""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich import box
from rich.console import Console, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from onnxshap import weights
from onnxshap.api import Pruned, Scores
from onnxshap.backend import provider_of
from onnxshap.core import Array, Values
from onnxshap.errors import DataError
from onnxshap.graph import whole_file
from onnxshap.groups import Group
from onnxshap.kinds import kinds_of
from onnxshap.measure import Figures
from onnxshap.pivoting import Pivoted, Split
from onnxshap.repair import Refit
from onnxshap.sweeping import Curve, Point, Sweep
from onnxshap.tracing import Traced
from onnxshap.unification import Size, Unified
from onnxshap.verify import Verified

SCHEMA_VERSION = 1
SUFFIXES = (".json", ".html")
"""The kinds of report files."""
Report = dict[str, Any]
"""A JSON object; its keys are in a fixed order."""
_PAGE_WIDTH = 132


# --- reports ---------------------------------------------------------------------------------------------------------


def prune_report(result: Pruned, *, model: str, output: str | None, seed: int) -> Report:
    """Return the report of a cut.

    Args:
        result: what `api.prune` returned.
        model: the path of the original, as the user gave it.
        output: the path of the cut model; None = not written.
        seed: the run's seed.
    """
    found = result.scores
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "output": output,
        "seed": seed,
        "method": found.method,
        "payoff": found.payoff,
        "provider": provider_of(result.traced.backend),
        "repair": result.repair,
        "allocation": result.allocation,
        "drop": None if result.drop is None else dataclasses.asdict(result.drop),
        "tuning": None if result.tuning is None else dataclasses.asdict(result.tuning),
        "refits": _refits(result.refits),
        "data": {"n": found.images, "source": found.source},
        "eval_data": {"n": result.eval_images, "source": result.eval_source},
        "evals": found.evals,
        "seconds": dict(result.seconds),
        "before": _figures(result.before),
        "after": _figures(result.after),
        "groups": [_group(result, group) for group in result.traced.groups],
        "frozen": _frozen(result.traced),
        "removed_slices": result.removed_slices,
        "verify": _verified(result.verified),
    }


def _refits(refits: Sequence[Refit]) -> list[Report]:
    return [{"node": r.node, "before": _number(r.before), "after": _number(r.after), "ridge": r.ridge} for r in refits]


def _verified(found: Verified) -> Report:
    return {"max_abs_err": _number(found.max_abs_err), "rel_err": _number(found.rel_err)}


def _group(result: Pruned, group: Group) -> Report:
    """Return what happened to one group; values are null where it was excluded and never scored."""
    keep = result.keep.get(group.name, np.ones(len(group), np.bool_))
    values = result.scores.values.get(group.name)
    return {
        "name": group.name,
        "units": len(group),
        "kept": int(keep.sum()),
        "removed": np.flatnonzero(~keep).tolist(),
        "values": None if values is None else _numbers(values.phi),
        "stderr": None if values is None else _numbers(values.stderr),
        "images": None if values is None else values.images,
        "stopped": None if values is None else values.stopped,
        "producers": list(group.producers),
        "consumers": list(group.consumers),
    }


def sweep_report(result: Sweep, *, model: str, seed: int, max_drop: float | None = None) -> Report:
    """Return the report of a sweep; `knee` and `within` name points by their `keep_macs`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "seed": seed,
        "score": result.score,
        "max_drop": max_drop,
        "data": {"n": result.images, "source": result.source},
        "eval_data": {"n": result.eval_images, "source": result.eval_source},
        "before": _figures(result.before),
        "methods": [_curve(curve, result.before, max_drop) for curve in result.curves],
        "left_out": [{"keep_macs": share, "reason": why} for share, why in result.left_out.items()],
    }


def _curve(curve: Curve, before: Figures, max_drop: float | None) -> Report:
    knee, within = curve.knee(), None if max_drop is None else curve.within(max_drop)
    return {
        "method": curve.method,
        "repair": curve.repair,
        "allocation": curve.allocation,
        "evals": curve.evals,
        "seconds": dict(curve.seconds),
        "knee": None if knee is None else knee.keep_macs,
        "within": None if within is None else within.keep_macs,
        "points": [_point(point, before) for point in curve.points],
    }


def _point(point: Point, before: Figures) -> Report:
    found = point.figures
    return {
        "keep_macs": point.keep_macs,
        **_figures(found),
        "shares": {
            "macs": found.macs / max(1, before.macs),
            "params": found.params / max(1, before.params),
            "bytes": found.bytes / max(1, before.bytes),
            "latency": _number(point.latency),
        },
        "drop": {**dataclasses.asdict(point.drop), "stderr": _number(point.drop.stderr)},
    }


def unify_report(result: Unified, *, model: str, output: str | None, seed: int) -> Report:
    """Return the report of a unification; sizes in bytes."""

    def figures(size: Size, score: Mapping[str, float]) -> Report:
        return {
            "bytes": size.bytes,
            "compressed": dict(size.compressed),
            "score": {name: _number(value) for name, value in score.items()},
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "output": output,
        "seed": seed,
        "codec": result.codec,
        "block": result.block,
        "blocks": {"n": result.blocks, "unified": result.chosen, "weights": result.weights},
        "layers": dict(result.layers),
        "data": {"n": result.images, "source": result.source},
        "eval_data": {"n": result.eval_images, "source": result.eval_source},
        "drop": {**dataclasses.asdict(result.drop), "stderr": _number(result.drop.stderr)},
        "before": figures(result.before, result.score_before),
        "after": figures(result.after, result.score_after),
    }


def pivot_report(result: Pivoted, *, model: str, output: str | None, seed: int) -> Report:
    """Return the report of a pivoting; times of Convs are those of each alone, shares are of its energy."""

    def split(one: Split) -> Report:
        whole, apart = (None, None) if one.times is None else one.times
        return {
            "node": one.name,
            "groups": one.groups,
            "energy_kept": one.kept,
            "explained": one.explained,
            "explained_unsorted": one.unsorted,
            "macs": one.macs,
            "latency_ms": {"whole": whole, "groups": apart},
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "output": output,
        "seed": seed,
        "provider": result.provider,
        "threads": result.threads,
        "repair": result.repair,
        "convs": [split(one) for one in result.splits],
        "left": list(result.left),
        "refits": _refits(result.refits),
        "data": {"n": result.images, "source": result.source},
        "eval_data": {"n": result.eval_images, "source": result.eval_source},
        "drop": {**dataclasses.asdict(result.drop), "stderr": _number(result.drop.stderr)},
        "before": _figures(result.before),
        "after": _figures(result.after),
        "verify": {"permuted": _verified(result.permuted), "groups": _verified(result.verified)},
    }


def inspection(traced: Traced, *, model: str) -> Report:
    """Return what can be cut from a model and what cannot; `macs` and `params` of a group are what one unit costs."""
    cost = traced.cost
    kinds = kinds_of(traced.shaped, traced.labels, traced.groups)
    groups = []
    for group, kind in zip(traced.groups, kinds, strict=True):
        keep = np.ones(len(group), np.bool_)
        keep[0] = False
        live = traced.alive({group.name: keep})
        groups.append(
            {
                "name": group.name,
                "kind": kind,
                "units": len(group),
                "macs": cost.macs() - cost.macs(live),
                "params": cost.params() - cost.params(live),
                "producers": list(group.producers),
                "consumers": list(group.consumers),
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "macs": cost.macs(),
        "params": cost.params(),
        "bytes": weights.file_size(traced.source),
        "inputs": {name: list(shape) for name, shape in traced.shaped.inputs.items()},
        "groups": groups,
        "frozen": _frozen(traced),
    }


def comparison(models: Sequence[str], figures: Sequence[Figures], *, images: int, source: str) -> Report:
    """Return the figures of models on the same data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {"n": images, "source": source},
        "models": [{"model": m, **_figures(f)} for m, f in zip(models, figures, strict=True)],
    }


def values_report(scores: Scores) -> Report:
    """Return the content of a values file; `read_values` is its inverse."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model_sha256": scores.model,
        "method": scores.method,
        "payoff": scores.payoff,
        "seed": scores.seed,
        "images": scores.images,
        "source": scores.source,
        "groups": {
            name: {
                "values": _numbers(v.phi),
                "stderr": _numbers(v.stderr),
                "evals": v.evals,
                "images": v.images,
                "stopped": v.stopped,
            }
            for name, v in scores.values.items()
        },
    }


def _figures(figures: Figures) -> Report:
    score = {name: _number(value) for name, value in figures.score.items()}
    latency = None if figures.latency_ms is None else _number(figures.latency_ms)
    return {
        "macs": figures.macs,
        "params": figures.params,
        "bytes": figures.bytes,
        "latency_ms": latency,
        "score": score,
    }


def _frozen(traced: Traced) -> list[Report]:
    return [asdict(axis) for axis in traced.frozen]


def _number(value: float) -> float | None:
    """Return a float that JSON knows; NaN and Inf become null."""
    return float(value) if math.isfinite(value) else None


def _numbers(values: Array) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


# --- files -----------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """Return a report as JSON text: floats as they are, objects and lists of plain values in one line each."""
    return _json(report, "") + "\n"


def _json(value: Any, indent: str) -> str:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(item, dict | list) and item for item in inner):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_json(v, deeper)}" for key, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _json(v, deeper) for v in value) + f"\n{indent}]"


def write_json(report: Report, path: str | Path) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    _write(as_json(report), path)


def write_prune_report(report: Report, path: str | Path) -> None:
    """Write the report of a cut, as HTML where the path ends so, else as JSON; whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    _write(_page(report) if Path(path).suffix.lower() == ".html" else as_json(report), path)


def _write(text: str, path: str | Path) -> None:
    with whole_file(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def read_values(path: str | Path) -> Scores:
    """Return the values of a file that `onnxshap score` wrote.

    Raises:
        DataError: the file cannot be read, is no values file, or was damaged.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
        return _scores(found)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a file that `onnxshap score` wrote"
        ) from error
    except (ValueError, OverflowError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else "not JSON, or damaged"
        raise DataError(f"{path}: no values file ({what}); make one with `onnxshap score MODEL --data D`") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}")


def _scores(found: Any) -> Scores:
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (told like any other broken file)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {found.get('schema_version')!r:.40}, this program reads {SCHEMA_VERSION}")
    groups: dict[str, Any] = _field(found, "groups", dict)
    values = {}
    for name, group in groups.items():
        where = f"group {name!r:.80}"
        if not isinstance(group, dict):
            raise ValueError(f"{where} is no object")  # noqa: TRY004
        phi, stderr = _floats(group, "values", where), _floats(group, "stderr", where)
        if len(phi) != len(stderr):
            raise ValueError(f"{where} has {len(phi)} values and {len(stderr)} stderr")
        images, stopped = _field(group, "images", int, where), _field(group, "stopped", str, where)
        values[name] = Values(phi, stderr, _field(group, "evals", int, where), images, stopped)
    payoff = None if found.get("payoff") is None else _field(found, "payoff", str)
    return Scores(
        values=values,
        method=_field(found, "method", str),
        payoff=payoff,
        seed=_field(found, "seed", int),
        images=_field(found, "images", int),
        source=_field(found, "source", str),
        model=_field(found, "model_sha256", str),
    )


_KINDS: dict[type, str] = {dict: "object", list: "list", str: "string", int: "integer"}


def _field(found: Mapping[str, Any], key: str, kind: type, where: str = "it") -> Any:
    value = found.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} lacks {key!r}, or it is no {_KINDS[kind]}")  # noqa: TRY004
    return value


def _floats(found: Mapping[str, Any], key: str, where: str) -> Array:
    items = _field(found, key, list, where)
    if not all(isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items):
        raise ValueError(f"{where} has {key!r} that are no finite numbers")
    return np.array([float(item) for item in items], np.float64)


# --- tables ----------------------------------------------------------------------------------------------------------


def prune_tables(report: Report) -> list[RenderableType]:
    """Return the figures before and after, and what stays of every group."""
    data = report["data"]
    payoff = f", payoff {report['payoff']}" if report["payoff"] else ""
    images, evals = _plural(data["n"], "image"), _plural(report["evals"], "evaluation")
    groups = _table("group", ">units", ">kept", ">share", "~consumers")
    for group in report["groups"]:
        share = group["kept"] / group["units"]
        _row(groups, group["name"], group["units"], group["kept"], f"{share:.0%}", _list(group["consumers"]))
    units, kept = (sum(group[key] for group in report["groups"]) for key in ("units", "kept"))
    groups.add_section()
    _row(groups, "all", units, kept, f"{kept / max(1, units):.0%}", "")
    judged, checked = report["eval_data"], report["verify"]["rel_err"]
    lost = report["drop"]
    drop = (
        ""
        if lost is None
        else (
            f"Lost: {lost['mean']:.4f} +- {lost['stderr']:.4f} {lost['name']} on "
            f"{_plural(lost['images'], 'held-out image')}.\n"
        )
    )
    foot = (
        f"Values: {report['method']}{payoff}, {images} ({_source(data)}), {evals}; repair: {report['repair']}, "
        f"widths: {report['allocation']}.\n{drop}"
        f"Scores: mean over {_plural(judged['n'], 'image')} ({_source(judged)}), higher is better.\n"
        f"Checked before any refit: the cut model is the masked one within {checked:.1e} of its largest output."
    )
    return [
        figures_table(["before", "after"], [report["before"], report["after"]], judged["source"]),
        groups,
        Text(foot),
    ]


def figures_table(names: Sequence[str], figures: Sequence[Report], source: str) -> Table:
    """Return the figures of one or two models side by side, with the ratio of sizes and the difference of scores.

    Scores on random inputs say so in their names: that two models agree on noise says little.
    """
    pair = len(figures) == 2
    table = _table("", *(f">{name}" for name in names), *([">change"] if pair else []))
    first = figures[0]
    for label, key, write in (
        ("MACs", "macs", _count),
        ("parameters", "params", _count),
        ("file", "bytes", _bytes),
        ("latency", "latency_ms", _milliseconds),
    ):
        values = [f[key] for f in figures]
        ratio = f"x {values[1] / values[0]:.3f}" if pair and values[0] and values[1] is not None else ""
        _row(table, label, *("-" if v is None else write(v) for v in values), *([ratio] if pair else []))
    table.add_section()
    for name in first["score"]:
        values = [f["score"].get(name) for f in figures]
        change = f"{values[1] - values[0]:+z.4f}" if pair and None not in values else ""
        label = f"{name} on noise" if source == "random" else name
        _row(table, label, *("-" if v is None else f"{v:z.4f}" for v in values), *([change] if pair else []))
    return table


def sweep_tables(report: Report) -> list[RenderableType]:
    """Return every point of every method; sizes and times as shares of the original's."""
    score, before = report["score"], report["before"]
    table = _table("method", ">budget", ">MACs", ">parameters", ">file", ">latency", f">{score}", ">lost", "")
    _row(
        table, "original", "", _count(before["macs"]), _count(before["params"]), _bytes(before["bytes"]),
        _milliseconds(before["latency_ms"]), _written(before["score"].get(score)), "", "",
    )  # fmt: skip
    for curve in report["methods"]:
        table.add_section()
        for point in curve["points"]:
            shares, drop, budget = point["shares"], point["drop"], point["keep_macs"]
            marks = [mark for mark in ("knee", "within") if curve[mark] == budget]
            _row(
                table, curve["method"], f"{budget:g}",
                *(f"x {shares[name]:.3f}" for name in ("macs", "params", "bytes", "latency")),
                _written(point["score"].get(score)), f"{drop['mean']:+z.4f} +- {_written(drop['stderr'])}",
                ", ".join(marks),
            )  # fmt: skip
    judged, limit = report["eval_data"], report["max_drop"]
    how = dict.fromkeys(f"repair {c['repair']}, widths {c['allocation']}" for c in report["methods"])
    lines = [
        f"Cut and repaired with {_plural(report['data']['n'], 'image')} ({_source(report['data'])}): {'; '.join(how)}.",
        f"{score}: mean over {_plural(judged['n'], 'image')} ({_source(judged)}); knee: farthest from the chord.",
    ]
    if limit is not None:
        none = [c["method"] for c in report["methods"] if c["within"] is None]
        lines.append(f"within: the fewest MACs that lose at most {limit:g}, one standard error included.")
        lines += [f"No budget of {_list(none)} is within {limit:g}."] if none else []
    if report["left_out"]:
        budgets = ", ".join(f"{item['keep_macs']:g}" for item in report["left_out"])
        lines.append(f"Left out: {budgets}; {report['left_out'][0]['reason']}.")
    return [table, Text("\n".join(lines))]


def unify_tables(report: Report) -> list[RenderableType]:
    """Return the bytes and the scores before and after."""
    before, after = report["before"], report["after"]
    table = _table("", ">before", ">after", ">change")
    sizes = [("file", before["bytes"], after["bytes"])]
    sizes += [(codec, before["compressed"][codec], after["compressed"][codec]) for codec in before["compressed"]]
    for name, old, new in sizes:
        _row(table, name, _bytes(old), _bytes(new), f"x {new / old:.3f}")
    table.add_section()
    for name, value in before["score"].items():
        new = after["score"][name]
        change = "" if value is None or new is None else f"{new - value:+z.4f}"
        _row(table, name, _written(value), _written(new), change)
    blocks, judged, lost = report["blocks"], report["eval_data"], report["drop"]
    foot = (
        f"{blocks['unified']} of {_plural(blocks['n'], 'block')} of {report['block']} weights share a magnitude "
        f"({_plural(report['data']['n'], 'image')}, {_source(report['data'])}).\n"
        f"Lost: {lost['mean']:.4f} +- {_written(lost['stderr'])} {lost['name']} on {_plural(judged['n'], 'image')} "
        f"({_source(judged)}).\n"
        "Smaller compressed only: the model runs as long, and takes as much memory, as before."
    )
    return [table, Text(foot)]


def pivot_tables(report: Report) -> list[RenderableType]:
    """Return the figures before and after, and every Conv that is in groups."""
    convs = _table("Conv", ">groups", ">MACs", ">energy kept", ">explained", ">unsorted", ">alone", ">in groups")
    for one in report["convs"]:
        times = (one["latency_ms"][key] for key in ("whole", "groups"))
        shares = (f"{one[key]:.3f}" for key in ("energy_kept", "explained", "explained_unsorted"))
        _row(
            convs, one["node"], one["groups"], _count(one["macs"]), *shares,
            *("-" if ms is None else _milliseconds(ms) for ms in times),
        )  # fmt: skip
    judged, lost, checked = report["eval_data"], report["drop"], report["verify"]
    threads = _plural(report["threads"], "thread") if report["threads"] else "all cores"
    foot = (
        f"{_plural(len(report['convs']), 'Conv')} in groups, {len(report['left'])} whole (-v: why); "
        f"repair: {report['repair']}, {_plural(report['data']['n'], 'image')} ({_source(report['data'])}).\n"
        f"Lost: {lost['mean']:.4f} +- {_written(lost['stderr'])} {lost['name']} on {_plural(judged['n'], 'image')} "
        f"({_source(judged)}). Times: {threads}.\n"
        f"Checked: the permuted model is the original within {checked['permuted']['rel_err']:.1e} of its largest "
        f"output; before any refit, that in groups is its twin with zeros within {checked['groups']['rel_err']:.1e}."
    )
    figures = figures_table(["before", "after"], [report["before"], report["after"]], judged["source"])
    return [figures, convs, Text(foot)]


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:z.4f}"


def inspection_tables(report: Report) -> list[RenderableType]:
    """Return the groups with what a unit costs, and the axes that stay with the reason."""
    groups = _table("group", "kind", ">units", ">MACs/unit", ">params/unit", "~producers", "~consumers")
    for g in report["groups"]:
        producers, consumers = _list(g["producers"]), _list(g["consumers"])
        _row(groups, g["name"], g["kind"], g["units"], _count(g["macs"]), _count(g["params"]), producers, consumers)
    units = sum(g["units"] for g in report["groups"])
    inputs = ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items())
    head = (
        f"{_plural(units, 'unit')} in {_plural(len(report['groups']), 'group')}; "
        f"{_count(report['macs'])} MACs an image, {_count(report['params'])} parameters, "
        f"{_bytes(report['bytes'])}; traced with {inputs}"
    )
    shown: list[RenderableType] = [Text(head)]
    if report["groups"]:
        shown.append(groups)
    if report["frozen"]:
        frozen = _table("axis that stays", "made by")
        frozen.add_column("reason", overflow="fold")
        for f in report["frozen"]:
            _row(frozen, f"{f['tensor']}, axis {f['axis']}", f"{f['node']} ({f['op']})", f["reason"])
        shown.append(frozen)
    return shown


def values_table(scores: Scores) -> Table:
    """Return the spread of every group's values."""
    columns = (">units", ">least", ">median", ">largest", ">standard error", ">images", "ended by")
    groups = _table("group", *columns)
    for name, v in scores.values.items():
        spread = (v.phi.min(), np.median(v.phi), v.phi.max(), v.stderr.mean())
        _row(groups, name, len(v.phi), *(f"{value:.4g}" for value in spread), v.images, v.stopped)
    return groups


def frozen_lines(report: Report) -> list[str]:
    """Return a line for every axis that stays."""
    return [f"{tensor}, axis {axis} stays: {reason}" for tensor, axis, reason in _frozen_lines(report["frozen"])]


def show(renderables: Iterable[RenderableType], console: Console) -> None:
    """Print tables and text as they are, an empty line between them: no markup, no highlighting."""
    for number, item in enumerate(renderables):
        if number:
            console.print()
        console.print(item, markup=False, highlight=False)


def _page(report: Report) -> str:
    """Return one self-contained HTML page with the tables of a cut."""
    console = Console(record=True, file=io.StringIO(), width=_PAGE_WIDTH, color_system="truecolor", force_terminal=True)
    shown = prune_tables(report)
    if report["frozen"]:
        shown.append(Text("\nAxes that stay:\n" + "\n".join(frozen_lines(report))))
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    shown.append(Text(f"\nSeed: {report['seed']}. Time: {seconds}."))
    show(shown, console)
    body = console.export_html(inline_styles=True, code_format="{code}")
    name = html.escape(Path(report["model"]).name)
    written = html.escape(report["output"] or "not written")
    return _PAGE.replace("@NAME@", name).replace("@OUTPUT@", written).replace("@BODY@", body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>onnxshap: @NAME@</title>
<style>
  :root { color-scheme: light dark; }
  body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; margin-bottom: 0; }
  pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.85rem;
        line-height: 1.35; overflow-x: auto; padding: 1rem; border: 1px solid #8884; border-radius: 0.5rem; }
</style>
</head>
<body>
<h1>@NAME@</h1>
<p>Cut by onnxshap; output: @OUTPUT@</p>
<pre>@BODY@</pre>
</body>
</html>
"""


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose name starts with > is aligned to the right, with ~ shortened to fit."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for name in columns:
        cut = name.startswith("~")
        right = name.startswith(">")
        # rich takes from the columns that may wrap first; those cells do not wrap but end in an ellipsis
        overflow: OverflowMethod = "ellipsis" if cut else "fold"
        table.add_column(
            Text(name.lstrip(">~")), justify="right" if right else "left", no_wrap=not cut, overflow=overflow
        )
    return table


def _row(table: Table, *cells: object) -> None:
    shortened = (column.overflow == "ellipsis" for column in table.columns)
    table.add_row(*(Text(str(cell), no_wrap=cut or None) for cell, cut in zip(cells, shortened, strict=True)))


def _list(names: Sequence[str], most: int = 3) -> str:
    """Return names in one line, the many cut short."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _frozen_lines(frozen: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    return [(axis["tensor"], axis["axis"], axis["reason"]) for axis in frozen]


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _count(value: int) -> str:
    """Return a number with a unit prefix.

    >>> _count(812), _count(35_196), _count(5_089_856)
    ('812', '35.2 k', '5.09 M')
    >>> _count(999_999)
    '1.00 M'
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{_digits(value / size)} {prefix}"
    return str(value)


def _bytes(value: int) -> str:
    return f"{value} B" if value < 1000 else f"{_count(value)}B"


def _milliseconds(value: float) -> str:
    return f"{_digits(value)} ms"


def _digits(value: float) -> str:
    """Return a number with three digits.

    >>> _digits(4.4), _digits(182.3)
    ('4.40', '182')
    """
    return f"{value:#.3g}".rstrip(".")


def _source(data: Mapping[str, Any]) -> str:
    return "random inputs" if data["source"] == "random" else str(data["source"])
