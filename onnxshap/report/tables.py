"""Reports as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from onnxshap.arguments import listed
from onnxshap.report.cells import add_row_of, count, empty_table, in_bytes, in_milliseconds, make_fit, plural
from onnxshap.report.inspections import Report

if TYPE_CHECKING:
    from onnxshap.scores import Scores

_LIMITS = ("max-evals", "max-seconds")
"""Of the rules that end a group, those that do not ask whether its values are good enough."""
_MEANINGS = {
    "mse": "minus the squared error over the variance, -1 = no better than the mean",
    "joint": "minus what the outputs lose on average, -1 = no better than their means",
}
"""Of scores whose names do not say what much is."""


def prune_tables(report: Report) -> list[RenderableType]:
    """Return the figures before and after, what stays of every group, and how it came about."""
    groups = empty_table("group", ">units", ">kept", ">share", "~consumers")
    for group in report["groups"]:
        share = group["kept"] / group["units"]
        add_row_of(groups, group["name"], group["units"], group["kept"], f"{share:.0%}", listed(group["consumers"]))
    units, kept = (sum(group[key] for group in report["groups"]) for key in ("units", "kept"))
    groups.add_section()
    add_row_of(groups, "all", units, kept, f"{kept / max(1, units):.0%}", "")
    figures = figures_table(["before", "after"], [report["before"], report["after"]], report["eval_data"]["source"])
    return [figures, groups, Text("\n".join(_prune_lines(report)))]


def _prune_lines(report: Report) -> Iterator[str]:
    """Yield how a cut came about, line by line."""
    data, judged, lost = report["data"], report["eval_data"], report["drop"]
    payoff = f", payoff {report['payoff']}" if report["payoff"] else ""
    yield (
        f"Values: {report['method']}{payoff}, {_used(report)} ({_source_name(data)}), "
        f"{plural(report['evals'], 'evaluation')}; repair: {report['repair']}, "
        f"widths: {report['allocation']}, units: by {report['ranked_by']}."
    )
    if report["scored_by"]:
        yield f"Scored by {listed(report['scored_by'])}: other outputs are choices by it, or constants."
    if lost is not None:
        yield f"{_lost(lost, plural(lost['images'], 'held-out image'))}."
    fitted = report["refits"] and judged["source"] == data["source"]
    seen = ", which the repair was fitted to (--eval-data tells what others lose)" if fitted else ""
    names = [f"; {name} is {meaning}" for name, meaning in _MEANINGS.items() if name in report["before"]["score"]]
    said = "".join(names)
    yield f"Scores: mean over {_images(judged)}{seen}, higher is better{said}."
    if report["turned"]:
        yield f"Units as combinations of the file's, where only linear ops touch them: {listed(report['turned'])}."
    if report["low_rank"]:
        split = [f"{one['node']} ({one['rank']})" for one in report["low_rank"]]
        yield f"Layers that became two (kernels: along height and width), and the channels between: {listed(split)}."
    if report["unfitted"] and report["repair"] == "lstsq":
        yield f"Cut, but not refitted (codes, loops, shared states): {listed(report['unfitted'])}."
    checked = report["verify"]["rel_err"]
    yield f"Checked before any refit: the cut model is the masked one within {checked:.1e} of its largest output."


def _used(report: Report) -> str:
    """Return how many images the values rest on, and how few those of some groups where a limit ended them."""
    whole = plural(report["data"]["n"], "image")
    short = [group for group in report["groups"] if group["stopped"] in _LIMITS and group["images"]]
    if not short:
        return whole
    few, many = (pick(group["images"] for group in short) for pick in (min, max))
    count = f"{few}" if few == many else f"{few} to {many}"
    limits = listed(sorted({group["stopped"] for group in short}))
    return f"{whole} ({count} in {plural(len(short), 'group')} that {limits} ended)"


def figures_table(names: Sequence[str], figures: Sequence[Report], source: str) -> Table:
    """Return the figures of one or two models side by side, with the ratio of sizes and the difference of scores.

    Scores on random inputs say so in their names: that two models agree on noise says little.
    """
    pair = len(figures) == 2
    table = empty_table("", *(f">{name}" for name in names), *([">change"] if pair else []))
    first = figures[0]
    for label, key, write in (
        ("MACs", "macs", count),
        ("parameters", "params", count),
        ("file", "bytes", in_bytes),
        ("latency", "latency_ms", in_milliseconds),
    ):
        values = [f[key] for f in figures]
        ratio = f"x {values[1] / values[0]:.3f}" if pair and values[0] and values[1] is not None else ""
        add_row_of(table, label, *("-" if v is None else write(v) for v in values), *([ratio] if pair else []))
    table.add_section()
    for name in first["score"]:
        values = [f["score"].get(name) for f in figures]
        change = _written(values[1] - values[0], "+") if pair and None not in values else ""
        label = f"{name} on noise" if source == "random" else name
        add_row_of(table, label, *map(_written, values), *([change] if pair else []))
    return table


def sweep_tables(report: Report) -> list[RenderableType]:
    """Return every point of every method; sizes and times as shares of the original's."""
    score, before, limit = report["score"], report["before"], report["max_drop"]
    expected = [] if limit is None else ["expected"]
    columns = ("budget", "MACs", "parameters", "file", "latency", score, "lost", *expected)
    table = empty_table("method", *(f">{name}" for name in columns), "")
    add_row_of(
        table, "original", "", count(before["macs"]), count(before["params"]), in_bytes(before["bytes"]),
        in_milliseconds(before["latency_ms"]), _written(before["score"].get(score)), "", *("" for _ in expected), "",
    )  # fmt: skip
    for curve in report["methods"]:
        table.add_section()
        for point in curve["points"]:
            shares, drop, budget = point["shares"], point["drop"], point["keep_macs"]
            marks = [mark for mark in ("knee", "within") if curve[mark] == budget]
            add_row_of(
                table, curve["method"], f"{budget:g}",
                *(f"x {shares[name]:.3f}" for name in ("macs", "params", "bytes", "latency")),
                _written(point["score"].get(score)), _spread(drop, "+"),
                *(_spread(drop[name], "+") for name in expected), ", ".join(marks),
            )  # fmt: skip
    judged = report["eval_data"]
    how = dict.fromkeys(f"repair {c['repair']}, widths {c['allocation']}" for c in report["methods"])
    lines = [
        f"Cut and repaired with {_images(report['data'])}: {'; '.join(how)}.",
        f"{score}: mean over {_images(judged)}; knee: farthest from the chord.",
    ]
    if limit is not None:
        none = [c["method"] for c in report["methods"] if c["within"] is None]
        lines.append(
            f"expected: what other images lose; within: the fewest MACs of which that is at most {limit:g}, one "
            "standard error included."
        )
        lines += [f"No budget of {listed(none)} is within {limit:g}."] if none else []
    if report["left_out"]:
        budgets = ", ".join(f"{item['keep_macs']:g}" for item in report["left_out"])
        lines.append(f"Left out: {budgets}; {report['left_out'][0]['reason']}.")
    return [table, Text("\n".join(lines))]


def unify_tables(report: Report) -> list[RenderableType]:
    """Return the bytes and the scores before and after."""
    before, after = report["before"], report["after"]
    table = empty_table("", ">before", ">after", ">change")
    sizes = [("file", before["bytes"], after["bytes"])]
    sizes += [(codec, before["compressed"][codec], after["compressed"][codec]) for codec in before["compressed"]]
    for name, old, new in sizes:
        add_row_of(table, name, in_bytes(old), in_bytes(new), f"x {new / old:.3f}")
    table.add_section()
    for name, value in before["score"].items():
        new = after["score"][name]
        change = "" if value is None or new is None else _written(new - value, "+")
        add_row_of(table, name, _written(value), _written(new), change)
    blocks, judged, lost = report["blocks"], report["eval_data"], report["drop"]
    foot = (
        f"{blocks['unified']} of {plural(blocks['n'], 'block')} of {report['block']} weights share a magnitude "
        f"({plural(report['data']['n'], 'image')}, {_source_name(report['data'])}).\n"
        f"{_lost(lost, _images(judged))}.\n"
        "Smaller compressed only: the model runs as long, and takes as much memory, as before."
    )
    return [table, Text(foot)]


def pivot_tables(report: Report) -> list[RenderableType]:
    """Return the figures before and after, and every Conv that is in groups."""
    convs = empty_table("Conv", ">groups", ">MACs", ">energy kept", ">explained", ">unsorted", ">alone", ">in groups")
    for one in report["convs"]:
        times = (one["latency_ms"][key] for key in ("whole", "groups"))
        shares = (f"{one[key]:.3f}" for key in ("energy_kept", "explained", "explained_unsorted"))
        add_row_of(
            convs, one["node"], one["groups"], count(one["macs"]), *shares,
            *("-" if ms is None else in_milliseconds(ms) for ms in times),
        )  # fmt: skip
    judged, lost, checked = report["eval_data"], report["drop"], report["verify"]
    threads = plural(report["threads"], "thread") if report["threads"] else "all cores"
    foot = (
        f"{plural(len(report['convs']), 'Conv')} in groups, {len(report['left'])} whole (-v: why); "
        f"repair: {report['repair']}, {_images(report['data'])}.\n"
        f"{_lost(lost, _images(judged))}. Times: {threads}.\n"
        f"Checked: the permuted model is the original within {checked['permuted']['rel_err']:.1e} of its largest "
        f"output; before any refit, that in groups is its twin with zeros within {checked['groups']['rel_err']:.1e}."
    )
    figures = figures_table(["before", "after"], [report["before"], report["after"]], judged["source"])
    return [figures, convs, Text(foot)]


def _lost(drop: Mapping[str, Any], images: str) -> str:
    """Return by how much a score is less on some images, and what is expected of others where that is not the same."""
    seen, expected = _spread(drop), _spread(drop["expected"])
    of_others = "" if seen == expected else f"; of others {expected} is expected"
    return f"Lost: {seen} {drop['name']} on {images}{of_others}"


def _spread(loss: Mapping[str, Any], sign: str = "-") -> str:
    """Return a mean and its standard error."""
    return f"{_written(loss['mean'], sign)} +- {_written(loss['stderr'])}"


def _written(value: float | None, sign: str = "-") -> str:
    """Return a score, or a difference of two, to four places, in powers of ten where that says nothing of it.

    Images of values in [0, 1] are restored with errors of 1e-5. What is less than 1e-9 is rounding.
    """
    if value is None:
        return "-"
    return f"{value:{sign}.1e}" if 1e-9 < abs(value) < 5e-5 else f"{value:{sign}z.4f}"


def inspection_tables(report: Report) -> list[RenderableType]:
    """Return the groups with what a unit costs, and the axes that stay with the reason."""
    groups = empty_table("group", "kind", ">units", ">MACs/unit", ">params/unit", "~producers", "~consumers")
    for g in report["groups"]:
        producers, consumers = listed(g["producers"]), listed(g["consumers"])
        add_row_of(groups, g["name"], g["kind"], g["units"], count(g["macs"]), count(g["params"]), producers, consumers)
    units = sum(g["units"] for g in report["groups"])
    inputs = ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items())
    head = (
        f"{plural(units, 'unit')} in {plural(len(report['groups']), 'group')}; "
        f"{count(report['macs'])} MACs an image, {count(report['params'])} parameters, "
        f"{in_bytes(report['bytes'])}; traced with {inputs}"
    )
    shown: list[RenderableType] = [Text(head)]
    if report["groups"]:
        shown.append(groups)
    if report["frozen"]:
        frozen = empty_table("axis that stays", "made by")
        frozen.add_column("reason", overflow="fold")
        for f in report["frozen"]:
            add_row_of(frozen, f"{f['tensor']}, axis {f['axis']}", f"{f['node']} ({f['op']})", f["reason"])
        shown.append(frozen)
    return shown


def values_table(scores: Scores) -> Table:
    """Return the spread of every group's values."""
    columns = (">units", ">least", ">median", ">largest", ">standard error", ">images", "ended by")
    groups = empty_table("group", *columns)
    for name, v in scores.values.items():
        spread = (v.phi.min(), np.median(v.phi), v.phi.max(), v.stderr.mean())
        add_row_of(groups, name, len(v.phi), *(f"{value:.4g}" for value in spread), v.images, v.stopped)
    return groups


def frozen_lines(report: Report) -> list[str]:
    """Return a line for every axis that stays."""
    return [f"{one['tensor']}, axis {one['axis']} stays: {one['reason']}" for one in report["frozen"]]


def show(renderables: Iterable[RenderableType], console: Console) -> None:
    """Print tables and text as they are, an empty line between them: no markup, no highlighting."""
    for number, item in enumerate(renderables):
        if number:
            console.print()
        if isinstance(item, Table):
            make_fit(item, console)
        console.print(item, markup=False, highlight=False)


def _images(data: Mapping[str, Any]) -> str:
    """Return how many images data have, and where they came from."""
    return f"{plural(data['n'], 'image')} ({_source_name(data)})"


def _source_name(data: Mapping[str, Any]) -> str:
    return "random inputs" if data["source"] == "random" else str(data["source"])
