"""The core claim as one helper: `masked(plan) == rewritten(plan) == zeroed(plan)`, for any model.

Three ways to the same cut: masks multiplied in (`insert_masks`), slices removed (`drop_units`), slices set to zero
(`zeroing.zeroed`, which shares no code with the package and redoes what a report says).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap.calibrate import by_image, free_batch, rows_apart, site_means
from onnxshap.core import BoolArray, Dataset
from onnxshap.data import InputSpec, feeds_of, random_data
from onnxshap.masking import Means, insert_masks, mask_name, row_wise
from onnxshap.rewrite import drop_units
from onnxshap.shapes import input_specs
from onnxshap.shapes.folding import Shape
from onnxshap.slices import removed_slices
from onnxshap.tracing import Traced, trace
from tests.zeroing import relative_error, run, zeroed

IMAGES = 3
TOLERANCE = 1e-5
"""Largest difference over the largest magnitude of an output, float32."""


@dataclass(frozen=True)
class Exactness:
    """What `check_exact` saw, a row of a table; errors are relative to the largest output.

    Attributes:
        groups: number of groups.
        units: number of units.
        dropped: units that the plan dropped.
        masked: masked against rewritten, zeros left behind.
        mean: masked against rewritten, means left behind.
        zeroed: rewritten against zeroed.
        rows: one coalition an image against image by image; None where masks cannot go by rows.
        kept: share of the initializers' bytes that the rewritten model keeps.
    """

    groups: int
    units: int
    dropped: int
    masked: float
    mean: float
    zeroed: float
    rows: float | None
    kept: float


def codes(shape: tuple[int, ...], dtype: Any = np.int8) -> Any:
    """Return random codes."""
    # 7 bits: without VNNI, onnxruntime sums products of uint8 and int8 in pairs of 16 bits
    low, high = (0, 255) if dtype == np.uint8 else (-63, 64)
    return np.random.default_rng(len(shape)).integers(low, high, shape).astype(dtype)


def net(
    text: str, *, opset: int = 17, ir: int = 8, seed: int = 0, imports: str = "", **initializers: Any
) -> ModelProto:
    """Return a ModelProto of ONNX text `(inputs) => (outputs) { nodes }`.

    Initializers are arrays or lists, or tuples: shapes to be filled with noise that keeps activations near 1; positive
    where the name starts with `var`.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>'
    model: ModelProto = onnx.parser.parse_model(f"{header} net {text}")
    rng = np.random.default_rng(seed)
    for name, given in initializers.items():
        values = _noise(rng, name, given) if isinstance(given, tuple) else np.asarray(given)
        if values.dtype == np.float64 and not isinstance(given, np.ndarray):
            values = values.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        if ir < 4:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    return model


def _noise(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.startswith("var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan = np.prod(shape[1:]) if len(shape) > 1 else 4
    return np.asarray(rng.normal(size=shape) / np.sqrt(fan), np.float32)


def draw_plan(traced: Traced, keep_share: float, rng: np.random.Generator) -> dict[str, BoolArray]:
    """Return a plan that keeps about this share, and at least one unit of every group and of every cover."""
    flags = rng.random(traced.labels.n_units) < keep_share
    for some in (*(g.units for g in traced.groups), *traced.covers):
        if not flags[some].any():
            flags[rng.choice(some)] = True
    return {g.name: flags[g.units] for g in traced.groups}


def random_feeds(model: ModelProto, shapes: Mapping[str, Shape], seed: int, images: int = IMAGES) -> Dataset:
    """Return random inputs of a model at the shapes it was traced at, so many images where the batch is free."""
    found = {}
    for k, (name, spec) in enumerate(input_specs(model).items()):
        fixed = InputSpec(name, spec.dtype, shapes[name])
        rows = images if spec.batch == 0 and spec.shape[:1] == (None,) else (*shapes[name], 1)[0]
        found[name] = random_data({name: fixed}, rows, seed + k).inputs[name]
    return Dataset(found, source="random")


def as_images(traced: Traced, feeds: Mapping[str, Any]) -> Dataset:
    """Return what a model takes as images along axis 0; an input without an axis for them is the same for all."""
    count, axes = traced.shaped.count(feeds), traced.shaped.batch_axes
    return Dataset({
        name: np.repeat(value[None], count, axis=0) if (axis := axes[name]) is None else np.moveaxis(value, axis, 0)
        for name, value in feeds.items()
    }, source="random")  # fmt: skip


def check_exact(
    model: ModelProto,
    keep_share: float = 0.5,
    seed: int = 0,
    *,
    tolerance: float = TOLERANCE,
    keep: Mapping[str, BoolArray] | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    data: Dataset | None = None,
) -> Exactness:
    """Assert that a random plan's masked, rewritten and zeroed models are one function; return how exactly.

    Args:
        model: any model.
        keep_share: about how much the random plan keeps.
        seed: of the plan and of the inputs.
        tolerance: largest error, relative to the largest magnitude of an output.
        keep: this plan instead of a random one.
        input_shapes: for free dimensions, as in `trace`.
        data: inputs; default random ones.
    """
    rng = np.random.default_rng(seed)
    traced = trace(model, input_shapes=input_shapes)
    plan = dict(keep) if keep is not None else draw_plan(traced, keep_share, rng)
    given = data
    images = traced.shaped.baked or IMAGES  # at any other number the file itself mixes them
    feeds = dict((given or random_feeds(model, traced.shaped.inputs, seed, images)).inputs)
    data = given or as_images(traced, feeds)
    original = run(model, feeds)
    assert all(np.isfinite(o).all() for o in original if o.dtype.kind == "f"), "the net itself gives NaN or Inf"

    ones = {mask_name(g): np.ones((1, len(g)), np.float32) for g in traced.groups}
    masks = {mask_name(g): plan[g.name][None].astype(np.float32) for g in traced.groups}
    plain = insert_masks(traced)
    assert relative_error(run(plain, feeds | ones), original) <= tolerance, "masks of ones change the outputs"
    # nothing removed: also with means, and rewritten
    means = site_means(traced, data)
    filled = insert_masks(traced, means=means)
    assert relative_error(run(filled, feeds | ones), original) <= tolerance, "masks of ones change the outputs (mean)"
    whole = drop_units(traced, {g.name: np.ones(len(g), np.bool_) for g in traced.groups})
    assert relative_error(run(whole, feeds), original) <= tolerance, "dropping nothing changes the outputs"

    small = drop_units(traced, plan)
    _check_file(small, model)
    rewritten = run(small, feeds)
    masked_error = relative_error(run(plain, feeds | masks), rewritten, original)
    assert masked_error <= tolerance, f"masked is not rewritten: {masked_error:.2g}"

    folded = drop_units(traced, plan, means)
    _check_file(folded, model)
    mean_error = relative_error(run(filled, feeds | masks), run(folded, feeds), original)
    assert mean_error <= tolerance, f"masked with means is not rewritten with means: {mean_error:.2g}"

    zeroed_error = relative_error(run(zeroed(model, removed_slices(traced, plan)), feeds), rewritten, original)
    assert zeroed_error <= tolerance, f"zeroed is not rewritten: {zeroed_error:.2g}"

    units = sum(map(len, traced.groups))
    dropped = units - sum(int(f.sum()) for f in plan.values())
    if dropped == 0:
        assert relative_error(rewritten, original) <= tolerance, "an empty plan changes the outputs"
    return Exactness(
        groups=len(traced.groups),
        units=units,
        dropped=dropped,
        masked=masked_error,
        mean=mean_error,
        zeroed=zeroed_error,
        rows=check_rows(free_batch(traced), means, rng, tolerance, given),
        kept=_weight(small) / max(1, _weight(model)),
    )


def _check_file(small: ModelProto, model: ModelProto) -> None:
    """Assert that a cut model is valid and has the interface of the original."""
    if _valid(model, full=False):  # onnxruntime's optimizer writes ops into ONNX's own domain
        onnx.checker.check_model(small, full_check=_valid(model))
    assert [o.SerializeToString() for o in small.graph.output] == [o.SerializeToString() for o in model.graph.output]
    initialized = [{t.name for t in m.graph.initializer} for m in (small, model)]
    interface = [
        [i.SerializeToString() for i in m.graph.input if i.name not in known]
        for m, known in zip((small, model), initialized, strict=True)
    ]
    assert interface[0] == interface[1]


def _valid(model: ModelProto, *, full: bool = True) -> bool:
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def check_rows(
    traced: Traced, means: Means, rng: np.random.Generator, tolerance: float, given: Dataset | None = None
) -> float | None:
    """Return the error of one coalition an image against image by image; None where rows cannot be told apart."""
    if not traced.groups or not traced.shaped.free_batch or not row_wise(traced, traced.groups):
        return None
    n, shaped = len(given) if given else IMAGES, traced.shaped
    sized = {k: InputSpec(k, s.dtype, shaped.inputs[k], s.batch) for k, s in shaped.specs.items()}
    data = given or random_data(sized, n, 0)
    model = insert_masks(traced, means=means)
    rows = {mask_name(g): (rng.random((n, len(g))) < 0.5).astype(np.float32) for g in traced.groups}

    def run_on(images: slice) -> list[Any]:
        fed = feeds_of(data.take(images).inputs, shaped.batch_axes)
        return by_image(traced, run(model, fed | {name: mask[images] for name, mask in rows.items()}))

    together = run_on(slice(None))
    if any(o.ndim == 0 or len(o) != n for o in together):
        return None
    alone = [run_on(slice(i, i + 1)) for i in range(n)]
    error = relative_error(together, [np.concatenate(column) for column in zip(*alone, strict=True)])
    if not error <= tolerance and not rows_apart(traced, data):
        return None  # nor do rows share a run there in a game
    assert error <= tolerance, f"a coalition a row is not image by image: {error:.2g}"
    return error


def _weight(model: ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
