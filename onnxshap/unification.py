"""Micro-structured weight unification: blocks of weights share one magnitude, so that the file compresses better.

The weights of a block, some that lie side by side in the file, keep their signs and get the magnitude

    u = sum(H_jj |w_j|) / sum(H_jj),        H_jj = mean square of the input that w_j multiplies,

which loses sum(H_jj (|w_j| - u)^2): but for correlations of the inputs what the output's mean square error grows by.
Blocks are unified in the order of that loss, weighed by what the outputs lose when the whole layer is unified and by
the weights they make equal, until the compressed file has the size wanted; what changes in the mean of an output goes
into its bias, where there is one. The kernels stay dense and the model computes as much as before: what is gained is
bytes in storage and on the wire, never time.

Source: Lin et al. 2021 (micro-structured weight unification); differs: blocks along the file instead of 2-D tiles, and
inputs' energies from calibration data instead of retraining.
"""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto

from onnxshap import api
from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import channel_means, free_batch, run_all
from onnxshap.core import Array, BoolArray, Dataset, FloatArray, IntArray
from onnxshap.data import DataLike
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, OnnxshapError
from onnxshap.graph import array, finish, save
from onnxshap.graph.weights import set_values
from onnxshap.graph.writing import put_in, write_whole
from onnxshap.labels import Weight
from onnxshap.labels.kernels import by_input, shares_inputs
from onnxshap.measure import label_notes, notes_on, scores, unchanged
from onnxshap.opening import ModelLike, hold_out, judged, open_model, readable, sample
from onnxshap.payoffs import Fidelity
from onnxshap.plan.judging import Drop, Judge
from onnxshap.progress import Progress, silent
from onnxshap.tracing import Traced
from onnxshap.verify import check_loads

BLOCK = 8
"""Weights of a block."""
CODECS = ("gzip", "zstd")
"""What compresses; zstd needs the package zstandard."""
_LEVELS = {"gzip": 6, "zstd": 9}
_STEPS = 14
_WEIGHED = 200
"""Images on which layers are weighed against each other."""


@dataclass(frozen=True)
class Bias:
    """A bias behind some weights.

    Attributes:
        name: its initializer in the normalised model.
        means: float64 in the shape of the weights, what the bias has to make up for when each grows by 1.
        makes: the axis of the weights that is the outputs.
    """

    name: str
    means: FloatArray
    makes: int

    def change(self, grown: FloatArray) -> FloatArray:
        """Return what has to be added to the bias when the weights grow, float64[outputs]."""
        others = tuple(axis for axis in range(grown.ndim) if axis != self.makes % grown.ndim)
        return np.asarray(-(self.means * grown).sum(axis=others))


@dataclass(frozen=True)
class Blocks:
    """The blocks of one initializer.

    Attributes:
        name: the initializer, in the names of the input file.
        copies: its names in the normalised model, one a use.
        values: its values.
        starts: int64[blocks], where blocks begin in the flat values.
        magnitudes: float64[blocks], what each block would share.
        losses: float64[blocks], what that costs, as a share of the energy of the layer's output.
        biases: what takes up the change of the mean, one a copy that has one.
    """

    name: str
    copies: Sequence[str]
    values: Array
    starts: IntArray
    magnitudes: FloatArray
    losses: FloatArray
    biases: Sequence[Bias] = ()

    @property
    def sizes(self) -> IntArray:
        """Weights of each block."""
        return np.diff(np.append(self.starts, self.values.size))

    def unified(self, chosen: BoolArray) -> Array:
        """Return the values with the chosen blocks unified; bool[blocks]."""
        sizes = self.sizes
        shared = np.copysign(np.repeat(self.magnitudes, sizes), self.values.ravel()).astype(self.values.dtype)
        return np.where(np.repeat(chosen, sizes), shared, self.values.ravel()).reshape(self.values.shape)


@dataclass(frozen=True)
class Size:
    """Bytes of a model's file, as it is and compressed (`CODECS`, as far as they are installed)."""

    bytes: int
    compressed: Mapping[str, int]


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


# --- the pass --------------------------------------------------------------------------------------------------------


def find_blocks(traced: Traced, free: Traced, data: Dataset, block: int = BLOCK) -> list[Blocks]:
    """Return the blocks of all weights that are stored as floats and used by linear ops alone.

    Args:
        traced: the model.
        free: the same for evaluation (`calibrate.free_batch`).
        data: calibration images.
        block: weights of a block; what is left over at the end of a slice of axis 0 is a smaller one.
    """
    graph = traced.shaped.graph
    copies: dict[str, list[str]] = {}
    stored = graph.initializers
    for name in stored:
        copies.setdefault(graph.origin.get(name, name), []).append(name)
    sites = [(s, s.weight) for s in free.labels.trace.linear if s.weight is not None and free.depth(s.tensor) < 2]
    used = {free.shaped.graph.nodes[s.node].input[w.input]: (s, w) for s, w in sites}
    chosen = {
        root: names
        for root, names in copies.items()
        if all(n in used for n in names) and array(stored[names[0]]).dtype.kind == "f"
    }
    places = [(s.tensor, s.axis) for names in chosen.values() for s, _ in (used[n] for n in names)]
    squares, means = channel_means(free, data, places, "square"), channel_means(free, data, places)
    found = []
    for root, names in chosen.items():
        values = array(stored[names[0]])
        energy, biases = np.zeros(values.shape), []
        for site, weight in (used[n] for n in names):
            square, mean = squares[site.tensor, site.axis], means[site.tensor, site.axis]
            bias = _bias(traced, free.shaped.graph.nodes[site.node], weight)
            if bias is not None:
                factor = weight.scale * weight.spread / bias[1]
                biases.append(Bias(bias[0], factor * by_input(mean, weight, values.shape), weight.makes))
            energy += by_input(square, weight, values.shape)
        found.append(_blocks(root, names, values, energy, block, biases))
    return found


def _bias(traced: Traced, node: NodeProto, weight: Weight) -> tuple[str, float] | None:
    """Return the stored bias of an op and its factor, None where there is none or its outputs are counted by group."""
    if weight.bias is None or (weight.groups > 1 and not shares_inputs(weight)) or len(node.input) <= weight.bias[0]:
        return None
    name = node.input[weight.bias[0]]
    stored, width = traced.shaped.graph.initializers.get(name), traced.shaped.shapes[node.output[0]][weight.out]
    if stored is None or weight.bias[1] == 0 or list(stored.dims) != [width] or array(stored).dtype.kind != "f":
        return None
    return name, weight.bias[1]


def _blocks(
    name: str, copies: Sequence[str], values: Array, energy: FloatArray, block: int, biases: Sequence[Bias] = ()
) -> Blocks:
    length = values.size // values.shape[0] if values.ndim > 1 else values.size
    starts = (np.arange(0, values.size, length)[:, None] + np.arange(0, length, block)).ravel()
    h, w = energy.ravel(), np.abs(values.ravel().astype(np.float64))
    sizes = np.diff(np.append(starts, values.size))
    total = np.add.reduceat(h, starts)
    dead = total == 0  # inputs that are never there: any magnitude will do
    magnitudes = np.where(
        dead, np.add.reduceat(w, starts) / sizes, np.add.reduceat(h * w, starts) / np.where(dead, 1, total)
    )
    with np.errstate(over="ignore"):  # outputs that overflow are refused as such
        losses = np.add.reduceat(h * (w - np.repeat(magnitudes, sizes)) ** 2, starts)
    return Blocks(name, copies, values, starts, magnitudes, losses / max(float((h * w**2).sum()), 1e-300), biases)


def order(blocks: Sequence[Blocks]) -> IntArray:
    """Return the blocks of all layers together, least loss per weight made equal first; single weights are left out."""
    losses, sizes = np.concatenate([b.losses for b in blocks]), np.concatenate([b.sizes for b in blocks])
    ranked = np.argsort(losses / np.maximum(1, sizes - 1), kind="stable")
    return ranked[sizes[ranked] > 1]


def weighted(traced: Traced, blocks: Sequence[Blocks], data: Dataset) -> list[Blocks]:
    """Return the blocks with losses in units of the model's outputs: each layer's add up to what it costs all unified.

    One run of the model a layer: the outputs with the layer unified against the original's, by the payoff that fits
    without labels.
    """
    fidelity = Fidelity.of(run_all(traced, traced.source, data), traced.outputs)
    found, first = [], 0
    for one in blocks:
        made = unify_weights(traced, blocks, np.arange(first, first + len(one.starts)))
        first += len(one.starts)
        lost = max(0.0, fidelity.lost(run_all(traced, made, data)))
        found.append(replace(one, losses=one.losses * (lost / max(float(one.losses.sum()), 1e-300))))
    return found


def unify_weights(traced: Traced, blocks: Sequence[Blocks], chosen: IntArray) -> ModelProto:
    """Return the model with some blocks unified, numbered through all layers as `order` does."""
    flags = np.zeros(sum(len(b.starts) for b in blocks), np.bool_)
    flags[chosen] = True
    model = ModelProto()
    model.CopyFrom(traced.shaped.graph.model)
    stored, first = {t.name: t for t in model.graph.initializer}, 0
    for one in blocks:
        mine = flags[first : first + len(one.starts)]
        first += len(one.starts)
        if mine.any():
            made = one.unified(mine)
            for copy in one.copies:
                set_values(stored[copy], made)
            grown = made.astype(np.float64) - one.values
            for bias in one.biases:
                old = array(stored[bias.name])
                set_values(stored[bias.name], (old + bias.change(grown)).astype(old.dtype))
    return finish(model, traced.shaped.graph)


# --- sizes -----------------------------------------------------------------------------------------------------------


def compressor(codec: str) -> Callable[[bytes], int]:
    """Return what tells how many bytes a file has compressed.

    Raises:
        OnnxshapError: the codec is unknown, or its package is not installed.
    """
    if codec == "gzip":
        return lambda data: len(zlib.compress(data, _LEVELS[codec], 31))
    if codec != "zstd":
        raise OnnxshapError(f"codec {codec!r} is unknown; choose one of {', '.join(CODECS)}")
    try:
        zstd = importlib.import_module("zstandard")
    except ImportError as error:
        raise OnnxshapError("codec zstd needs zstandard; pip install 'onnxshap[zstd]', or take gzip") from error
    return lambda data: len(zstd.ZstdCompressor(level=_LEVELS[codec]).compress(data))


def _file(model: ModelProto) -> bytes:
    """Return a model as one file."""
    stream = io.BytesIO()
    write_whole(model, stream)
    return stream.getvalue()


def size_of(model: ModelProto) -> Size:
    """Return the bytes of a model's file, as it is and compressed by every codec that is installed."""
    data = _file(model)
    found = {}
    for codec in CODECS:
        try:
            found[codec] = compressor(codec)(data)
        except OnnxshapError:
            continue
    return Size(len(data), found)


# --- the job ---------------------------------------------------------------------------------------------------------


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
        raise BudgetError(f"keep-bytes is {keep_bytes:g}; give the share to keep, above 0 and at most 1")
    if block < 2:
        raise BudgetError(f"block is {block}; give at least 2 weights that share a magnitude")
    progress("trace", 0, 1)
    source = readable(model, output, data, labels, eval_data)
    traced, dataset = open_model(
        source, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    dataset, held_out = hold_out(traced, dataset, eval_data, seed)
    reference, fitted = judged(traced, held_out, payoff)
    blocks = find_blocks(traced, free_batch(traced), dataset, block)
    runs = api.WORK // max(1, len(blocks) * traced.cost.macs())
    blocks = weighted(traced, blocks, sample(dataset, max(1, min(_WEIGHED, runs)), seed))
    ranked = order(blocks) if blocks else np.zeros(0, np.int64)

    def compressed(count: int) -> int:
        return compress(_file(complete(traced, unify_weights(traced, blocks, ranked[:count]))))

    target = keep_bytes * compress(_file(complete(traced, traced.source)))
    inside = f"{sum(b.values.size for b in blocks)} of {traced.cost.params()} parameters are in blocks"
    count = _fewest(compressed, len(ranked), target, keep_bytes, block, inside, progress)
    made = unify_weights(traced, blocks, ranked[:count])
    check_loads(traced, made)
    outputs = run_all(traced, made, held_out)
    before, made = complete(traced, traced.source), complete(traced, made)
    if output is not None:
        save(made, output, external=bool(traced.files))
    sizes = np.concatenate([b.sizes for b in blocks]) if blocks else np.zeros(0, np.int64)
    after = scores(outputs, reference, held_out.labels, traced.outputs, fitted)
    still = held_out.source if count and unchanged(outputs, reference) else None
    return Unified(
        put_in(made), size_of(before), size_of(made),
        scores(reference, reference, held_out.labels, traced.outputs, fitted),
        after,
        Judge.of(traced, held_out, reference, fitted).lost(outputs), codec, block, len(sizes), count,
        int(sizes[ranked[:count]].sum()), _shares(blocks, ranked[:count]), len(dataset), dataset.source,
        len(held_out), held_out.source,
        (*traced.notes, *label_notes(fitted, reference, held_out.labels), *notes_on(after, still)),
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
            f"keep-bytes {keep_bytes:g} cannot be reached: with all blocks of {block} weights unified "
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


def _shares(blocks: Sequence[Blocks], chosen: IntArray) -> dict[str, float]:
    flags = np.zeros(sum(len(b.starts) for b in blocks), np.bool_)
    flags[chosen] = True
    parts = np.split(flags, np.cumsum([len(b.starts) for b in blocks])[:-1]) if blocks else []
    return {b.name: float(part.mean()) for b, part in zip(blocks, parts, strict=True)}
