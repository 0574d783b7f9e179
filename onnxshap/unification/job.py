"""From a file and a size to a smaller compressed file: what `onnxshap unify` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import valuing
from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch
from onnxshap.data import DataLike
from onnxshap.endings import complete
from onnxshap.errors import BudgetError
from onnxshap.graph import save
from onnxshap.graph.writing import put_in
from onnxshap.opening import Given, ModelLike, sample
from onnxshap.plan.judging import Drop
from onnxshap.progress import Progress, silent
from onnxshap.unification.blocks import BLOCK, find_blocks, order, shares_unified, unify_weights, weighted
from onnxshap.unification.sizes import Size, as_file, compressor, size_of
from onnxshap.verify import check_loads

_STEPS = 14
_WEIGHED = 200
"""Images on which layers are weighed against each other."""


@dataclass(frozen=True)
class Unified:
    """The result of `unify`.

    Attributes:
        model: the model with unified weights.
        before, after: sizes of the files.
        score_before, score_after: name -> mean over the evaluation images.
        drop: what is lost on them.
        codec: what the target was measured with.
        block: weights of a block.
        blocks, chosen: blocks there are, and those that were unified.
        weights: weights in the chosen blocks.
        layers: initializer -> share of its blocks unified.
        images, source: calibration images, and where they came from.
        eval_images, eval_source: the same of the evaluation images.
        notes: what the user should know of how the model was taken and judged.
    """

    model: ModelProto = field(repr=False)
    before: Size
    after: Size
    score_before: Mapping[str, float]
    score_after: Mapping[str, float]
    drop: Drop
    codec: str
    block: int
    blocks: int
    chosen: int
    weights: int
    layers: Mapping[str, float]
    images: int
    source: str
    eval_images: int
    eval_source: str
    notes: tuple[str, ...] = ()


@checked
def unify(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    eval_data: DataLike | None = None,
    keep_bytes: float = 0.5,
    block: int = BLOCK,
    codec: str = "gzip",
    payoff: str | Callable[..., object] | None = None,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> Unified:
    """Return a model whose file compresses to a share of what it did: not faster, and not smaller uncompressed.

    Args:
        model: as in `api.prune`, and so are `data`, `labels`, `payoff`, `seed`, `backend` and `input_shapes`.
        eval_data: data for the scores before and after; default the calibration data.
        keep_bytes: the share of the compressed file that may stay.
        block: weights that share a magnitude; more of them compress further and lose more.
        codec: what the target is measured with, one of `CODECS`.
        output: where to write the model; whole or not at all.
        progress: told what is going on.

    Raises:
        ModelError, DataError, OnnxshapError: as in `api.prune`.
        BudgetError: the size cannot be reached, with all blocks unified.
    """
    compress = compressor(codec)
    if not 0 < keep_bytes <= 1:
        raise BudgetError(f"--keep-bytes is {keep_bytes:g}; give the share to keep, above 0 and at most 1")
    if block < 2:
        raise BudgetError(f"--block is {block}; give at least 2 weights that share a magnitude")
    progress("trace", 0, 1)
    given = Given(model, data, labels, eval_data, payoff, seed, backend, input_shapes, output)
    traced, dataset, evaluation = given.judged()
    blocks = find_blocks(traced, free_batch(traced), dataset, block)
    runs = valuing.RUNS // max(1, len(blocks) * traced.cost.macs())
    blocks = weighted(traced, blocks, sample(dataset, max(1, min(_WEIGHED, runs)), seed))
    ranked = order(blocks) if blocks else np.zeros(0, np.int64)

    def compressed(count: int) -> int:
        return compress(as_file(complete(traced, unify_weights(traced, blocks, ranked[:count]))))

    target = keep_bytes * compress(as_file(complete(traced, traced.source)))
    inside = f"{sum(b.values.size for b in blocks)} of {traced.cost.params()} parameters are in blocks"
    count = _fewest(compressed, len(ranked), target, keep_bytes, block, inside, progress)
    made = unify_weights(traced, blocks, ranked[:count])
    check_loads(traced, made)
    outputs = evaluation.outputs(made)
    before, made = complete(traced, traced.source), complete(traced, made)
    if output is not None:
        save(made, output, external=bool(traced.files))
    sizes = np.concatenate([b.sizes for b in blocks]) if blocks else np.zeros(0, np.int64)
    after, held_out = evaluation.scores(outputs), evaluation.data
    return Unified(
        put_in(made), size_of(before), size_of(made), evaluation.scores(evaluation.reference), after,
        evaluation.judge.lost(outputs), codec, block, len(sizes), count, int(sizes[ranked[:count]].sum()),
        shares_unified(blocks, ranked[:count]), len(dataset), dataset.source, len(held_out), held_out.source,
        evaluation.notes(after, outputs, changed=count > 0),
    )  # fmt: skip


def _fewest(
    compressed: Callable[[int], int], most: int, target: float, keep_bytes: float, block: int, inside: str,
    progress: Progress,
) -> int:  # fmt: skip
    """Return the fewest blocks whose unification reaches a compressed size, by bisection."""
    if compressed(0) <= target:
        return 0
    least = compressed(most)
    if least > target:
        raise BudgetError(
            f"--keep-bytes {keep_bytes:g} cannot be reached: with all blocks of {block} weights unified "
            f"{keep_bytes * least / target:.3f} stays ({inside}); ask for more, or give a larger --block"
        )
    low, high = 0, most
    for number in range(_STEPS):
        progress("search", number, _STEPS)
        if high - low < 2:
            break
        middle = (low + high) // 2
        low, high = (low, middle) if compressed(middle) <= target else (middle, high)
    progress("search", _STEPS, _STEPS)
    return high
