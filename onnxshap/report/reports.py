"""What is reported of a result: JSON objects, in the names and indices of the input file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from onnxshap.api import Pruned
from onnxshap.backend import provider_of
from onnxshap.core import Array
from onnxshap.factors import LowRank
from onnxshap.groups import Group
from onnxshap.measure import Figures
from onnxshap.methods.ranking import ranked_by
from onnxshap.pivoting import Pivoted, Split
from onnxshap.plan.judging import Drop
from onnxshap.plan.options import REFITS
from onnxshap.repair import Refit, unfitted
from onnxshap.report.inspections import SCHEMA_VERSION, Report, frozen_axes
from onnxshap.scores import Scores
from onnxshap.sweeping import Curve, Point, Sweep
from onnxshap.unification import Size, Unified
from onnxshap.verify import Verified

SUFFIXES = (".json", ".html")
"""The kinds of report files."""


def prune_report(result: Pruned, *, model: str, output: str | None, seed: int) -> Report:
    """Return the report of a cut.

    Args:
        result: what `api.prune` returned.
        model: the path of the original, as the user gave it.
        output: the path of the cut model; None = not written.
        seed: the run's seed.
    """
    found = result.scores
    images = [value.images for name, value in found.values.items() if name in result.keep]
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
        "scored_by": result.traced.outputs if result.traced.tail else [],
        "ranked_by": ranked_by(found.method, refitted=result.repair in REFITS, images=images),
        "drop": None if result.drop is None else _drop(result.drop),
        "tuning": None if result.tuning is None else asdict(result.tuning),
        "refits": _refits(result.refits),
        "unfitted": (unfitted(result.traced, result.traced.alive(result.keep)) if result.repair in REFITS else []),
        "data": {"n": found.images, "source": found.source},
        "eval_data": {"n": result.eval_images, "source": result.eval_source},
        "evals": found.evals,
        "seconds": dict(result.seconds),
        "before": _figures(result.before),
        "after": _figures(result.after),
        "groups": [_group(result, group) for group in result.traced.groups],
        "frozen": frozen_axes(result.traced),
        "notes": list(result.notes),
        "turned": list(result.turned),
        "low_rank": _low_rank(result.low_rank or ()),
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
        "notes": list(result.notes),
        "turned": list(result.turned),
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
        "drop": _drop(point.drop),
        "low_rank": _low_rank(point.low_rank),
    }


def _low_rank(layers: Sequence[LowRank]) -> list[Report]:
    return [{"node": one.node, "rank": one.rank, "most": one.most} for one in layers]


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
        "drop": _drop(result.drop),
        "before": figures(result.before, result.score_before),
        "after": figures(result.after, result.score_after),
        "notes": list(result.notes),
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
        "drop": _drop(result.drop),
        "before": _figures(result.before),
        "after": _figures(result.after),
        "notes": list(result.notes),
        "verify": {"permuted": _verified(result.permuted), "groups": _verified(result.verified)},
    }


def comparison(models: Sequence[str], figures: Sequence[Figures], *, images: int, source: str) -> Report:
    """Return the figures of models on the same data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {"n": images, "source": source},
        "models": [{"model": m, **_figures(f)} for m, f in zip(models, figures, strict=True)],
        "notes": list(dict.fromkeys(note for f in figures for note in f.notes)),
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
        "notes": list(scores.notes),
        "basis": scores.basis,
        "bases": {
            name: [{"places": b.places, "shape": list(b.matrices.shape), "float32": _base64(b.matrices)} for b in some]
            for name, some in scores.bases.items()
        },
        "groups": {
            name: {
                "values": _numbers(v.phi),
                "stderr": _numbers(v.stderr),
                "spread": None if v.spread is None else _numbers(v.spread),
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


def _drop(drop: Drop) -> Report:
    """Return what is lost, and what other images are expected to; of a single image nobody knows how sure that is."""
    told = {"name": drop.name, "mean": drop.mean, "stderr": _number(drop.stderr), "images": drop.images}
    return {**told, "expected": {"mean": drop.estimate.mean, "stderr": _number(drop.estimate.stderr)}}


def _number(value: float) -> float | None:
    """Return a float that JSON knows; NaN and Inf become null."""
    return float(value) if math.isfinite(value) else None


def _base64(values: Array) -> str:
    """Return float32 numbers as text, the low byte first."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _numbers(values: Array) -> list[float | None]:
    return [_number(value) for value in values.tolist()]
