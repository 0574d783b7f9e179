"""What is repaired of a cut model: its layers, one after the other from input to output, by one of two repairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from onnx import ModelProto

from onnxshap.core import Dataset
from onnxshap.repair.cells import fit_recurrent
from onnxshap.repair.linear import fit_linear
from onnxshap.repair.matching import match
from onnxshap.repair.recurrent import find_recurrent
from onnxshap.repair.regression import FULL, Effort, Refit, require_images
from onnxshap.repair.targets import changed_by, find_layers
from onnxshap.repair.transfer import transfer
from onnxshap.repair.walks import Walks
from onnxshap.rewrite import Removal
from onnxshap.tracing import Traced
from onnxshap.walk import Repeated

_T = TypeVar("_T")


def refit(
    removal: Removal,
    data: Dataset,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    nearest: bool = False,
    effort: Effort = FULL,
    original: Repeated | None = None,
) -> tuple[ModelProto, list[Refit]]:
    """Return the cut model (before `graph.finish`) with its linear ops refitted, and what became of each.

    Args:
        removal: what is taken out of the original.
        data: calibration images; a fifth of them is held out to choose the ridge.
        seed: draws the patches.
        progress: told after every layer.
        nearest: only the layers that lose inputs themselves, not those behind them.
        effort: how much is spent on a layer.
        original: a walk through the original over `data` in batches, which may hold tensors that the plan leaves as
            they are (`border`): nothing before them is computed again, nor what the walk gave an earlier refit.

    Raises:
        DataError: fewer than 5 images.
    """
    require_images(len(data))
    walks = _walks(removal, data, seed, original, nearest=nearest)
    reports = _fitted(walks, effort, seed, progress)
    return _in_file(removal, walks.model), reports


def rematch(
    removal: Removal, data: Dataset, progress: Callable[[int, int], None] = lambda done, total: None
) -> ModelProto:
    """Return the cut model (before `graph.finish`) with its channels' means and variances made what they were.

    Args:
        removal, progress: as for `refit`.
        data: calibration images.
    """
    walks = _walks(removal, data)
    _matched(walks, progress)
    return _in_file(removal, walks.model)


def refit_edited(
    free: Traced,
    model: ModelProto,
    edited: Collection[int],
    data: Dataset,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    nearest: bool = False,
    effort: Effort = FULL,
) -> list[Refit]:
    """Refit, in place, the linear ops of a form of the original in which some nodes have become others.

    Args:
        free: the original for evaluation (`calibrate.free_batch`).
        model: its form with Convs in groups, say; every tensor as wide as before.
        edited: the nodes that are no longer the original's.
        data, seed, progress, effort: as for `refit`.
        nearest: those nodes alone, not the layers behind them.

    Raises:
        DataError: fewer than 5 images.
    """
    require_images(len(data))
    walks = _edited_walks(free, model, edited, data, seed, nearest=nearest)
    return _fitted(walks, effort, seed, progress)


def rematch_edited(
    free: Traced,
    model: ModelProto,
    edited: Collection[int],
    data: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make, in place, the channels' means and variances what they were; arguments as for `refit_edited`."""
    _matched(_edited_walks(free, model, edited, data), progress)


def _walks(
    removal: Removal, data: Dataset, seed: int = 0, original: Repeated | None = None, *, nearest: bool = False
) -> Walks:
    """Return the walks through the original and the cut model, with the layers to repair."""
    free, model, live = removal.free, removal.evaluated(), removal.live
    layers = find_layers(removal.traced, model, live)
    if nearest:
        layers = [layer for layer in layers if live.cut(layer.x, layer.channels)]
    recurrent = find_recurrent(free, model, live, changed_by(free, live), nearest=nearest)
    return Walks(free, live, model, data, layers, recurrent, seed, original)


def _edited_walks(
    free: Traced, model: ModelProto, edited: Collection[int], data: Dataset, seed: int = 0, *, nearest: bool = False
) -> Walks:
    """Return the walks through the original and its edited form, with the layers to repair."""
    live = free.alive({})
    layers = find_layers(free, model, live, edited)
    if nearest:
        names = {free.shaped.graph.nodes[index].output[0] for index in edited}
        layers = [layer for layer in layers if layer.y in names]
    return Walks(free, live, model, data, layers, [], seed)


def _in_file(removal: Removal, model: ModelProto) -> ModelProto:
    """Return the cut model in the form of its file, from that for evaluation."""
    return model if removal.traced is removal.free else transfer(model, removal.in_file())


def _matched(walks: Walks, progress: Callable[[int, int], None]) -> None:
    """Match the moments of one layer after the other, from input to output, those with one weight at once."""
    sets = walks.coefficients.sets(walks.layers)
    _in_order([(layers[0].index, partial(match, walks, layers)) for layers in sets], progress)


def _fitted(walks: Walks, effort: Effort, seed: int, progress: Callable[[int, int], None]) -> list[Refit]:
    """Refit one layer after the other, as `_matched`, and return what became of each."""
    steps: list[tuple[int, Callable[[], Refit | None]]] = [
        (layers[0].index, partial(fit_linear, walks, layers, effort, seed))
        for layers in walks.coefficients.sets(walks.layers)
    ]
    steps += [(layer.index, partial(fit_recurrent, walks, layer, effort, seed)) for layer in walks.recurrent]
    return [report for report in _in_order(steps, progress) if report is not None]


def _in_order(steps: Sequence[tuple[int, Callable[[], _T]]], progress: Callable[[int, int], None]) -> list[_T]:
    """Take steps in the order of their nodes, and return what they give."""
    found = list[_T]()
    for _, step in sorted(steps, key=lambda step: step[0]):
        found.append(step())
        progress(len(found), len(steps))
    return found
