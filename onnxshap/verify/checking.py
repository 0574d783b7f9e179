"""A model against its masked twin, or another form of it, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxshap.backend import Backend
from onnxshap.calibrate import run_all
from onnxshap.codes import is_coding
from onnxshap.core import Array, Dataset
from onnxshap.errors import DataError, ModelError, VerifyError, first_line
from onnxshap.graph.structure import is_random
from onnxshap.graph.weights import Kept, without_values
from onnxshap.masking import mask_name, masked_model
from onnxshap.rewrite import Removal
from onnxshap.shapes import Shaped
from onnxshap.shapes.kinds import unknown_kinds, value_kinds
from onnxshap.tracing import Traced
from onnxshap.verify.choices import Form, chosen_alike
from onnxshap.verify.elsewhere import at_other_sizes
from onnxshap.verify.errors import Verified, compare
from onnxshap.verify.exactly import normed_exactly

TOLERANCE = 1e-4
"""Largest allowed difference over the largest magnitude of an output, where all is computed in float32 or better."""
_HALF_TOLERANCE = 2e-2
_CODE_TOLERANCE = 5e-2
"""Where activations become 8-bit codes: rounding tips some to the next code, a 1/255 of the range each.

In deep nets a code that tips in the first layers tips others behind it, of few images many: so the usual image counts.
"""
_ROUNDINGS = 4
"""How many times as far as from itself, computed otherwise, a model may be from another form of it."""
_CHAOTIC = 1e-3
"""What rounding is allowed at most, in a model that makes more of it than usual."""
_CODE_WORST = 0.5
"""What no image may differ by there."""
_CHECKED_IMAGES = 16
_IMAGES_ELSEWHERE = 2
_OVERFLOW = (
    "x86 processors without VNNI add products of 8-bit codes in 16 bits, which overflow: "
    "quantise with reduce_range=True, or prune on another machine"
)
"""What is to be done about a difference of models that compute with codes."""
_CUT = ("cut model", "its masked twin")


def verify(removal: Removal, small: ModelProto, data: Dataset) -> Verified:
    """Return the errors of a cut model against its masked twin.

    Args:
        removal: what was taken out of the original.
        small: the cut model.
        data: real inputs; a few of them are used.

    Raises:
        VerifyError: it is invalid, does not load, or differs by more than rounding, at the sizes of the data or, where
            the model takes any, at others.
    """
    traced, free, keep = removal.traced, removal.free, removal.keep
    part = data.take(slice(0, _CHECKED_IMAGES))
    kept = Kept()  # as long as what names it is run
    masked = masked_model(free, None, removal.means, kept=kept)
    masks = {mask_name(g): keep.get(g.name, np.ones(len(g), np.bool_))[None].astype(np.float32) for g in free.groups}
    twin = Form(free, masked, masks)
    check_loads(traced, small)
    found, natural = _same(traced, small, part, twin, _CUT)
    _check_form(traced, free, part, natural)
    there = at_other_sizes(traced, part.take(slice(0, _IMAGES_ELSEWHERE)), optimize=not _codes(traced.shaped))
    if there is not None:
        other, natural = there
        try:
            _same(traced, small, other, twin, _CUT, natural)
            _check_form(traced, free, other, natural)
        except VerifyError as error:
            sizes = ", ".join(f"{name}{list(value.shape)}" for name, value in other.inputs.items())
            raise VerifyError(f"at inputs of other sizes, {sizes}: {error}") from error
    return found


def _check_form(traced: Traced, free: Traced, part: Dataset, natural: list[Array]) -> None:
    """Hold the form of a model that is worked on to what its file gives: the cut model and its twin are made of it.

    Raises:
        VerifyError: they differ.
    """
    if any(is_random(node) for node in free.shaped.graph.nodes):
        return  # another draw
    coded, model = _codes(traced.shaped), free.shaped.graph.model
    found = compare(run_all(free, model, part, optimize=not coded), natural, natural)
    if not coded and not found.rel_err <= tolerance(traced.shaped):
        found = chosen_alike(traced, traced.source, Form(free, model), part) or found
    if not (found.typical if coded else found.rel_err) <= tolerance(traced.shaped):
        raise VerifyError(
            f"the model as it is worked on differs from its file by {found.rel_err:.2g} of its largest output: "
            "something that follows the data was taken to be constant; nothing was written, please report the model"
        )


def verify_twin(traced: Traced, made: ModelProto, twin: ModelProto, data: Dataset, names: tuple[str, str]) -> Verified:
    """Return the errors of a form of a model against another that should compute the same.

    Args:
        traced: the original, as it is in its file.
        made, twin: the two.
        data: real inputs; a few of them are used.
        names: what messages call the two.

    Raises:
        VerifyError: the first is invalid, does not load, or differs by more than rounding.
    """
    part = data.take(slice(0, _CHECKED_IMAGES))
    check_loads(traced, made)
    return _same(traced, made, part, Form(traced, twin), names)[0]


def _same(
    traced: Traced,
    made: ModelProto,
    part: Dataset,
    twin: Form,
    names: tuple[str, str],
    natural: list[Array] | None = None,
) -> tuple[Verified, list[Array]]:
    """Compare, and return what the file gives, too; a DataError where what the twin gives cannot be compared.

    `natural` is what the file gives, where that is known.
    """
    coded = _codes(traced.shaped)
    try:  # a fused product of codes may overflow (below), that of what is dequantised does not
        wanted = run_all(twin.traced, twin.model, part, twin.extra, optimize=not coded)
    except ModelError as error:
        raise _broken(names[1], error) from error
    try:
        got = run_all(traced, made, part, optimize=not coded)
        natural = run_all(traced, traced.source, part, optimize=not coded) if natural is None else natural
    except (ModelError, DataError) as error:
        raise _broken(f"the {names[0]}", error) from error
    found = compare(got, wanted, natural)
    if not coded and not found.rel_err <= tolerance(traced.shaped):
        found = chosen_alike(traced, made, twin, part) or found
    allowed = tolerance(traced.shaped)
    if not coded and allowed < found.rel_err <= _CHAOTIC:
        exact = normed_exactly(Form(traced, made), twin, part, natural)
        found = exact if exact is not None and exact.rel_err <= allowed else found
    usual, worst = (found.typical, _CODE_WORST) if coded else (found.rel_err, np.inf)
    if not coded and allowed < usual <= _CHAOTIC:
        forms = ((Form(traced, made), got), (twin, wanted))
        allowed = max(allowed, _ROUNDINGS * max(_rounding(form, part, outputs, natural) for form, outputs in forms))
    if not (usual <= allowed and found.rel_err <= worst):
        raise VerifyError(
            f"the {names[0]} differs from {names[1]} by {found.rel_err:.2g} of its largest output; "
            f"nothing was written, {_OVERFLOW if coded else 'please report the model'}"
        )
    return found, natural


def _rounding(form: Form, part: Dataset, outputs: Sequence[Array], natural: Sequence[Array]) -> float:
    """Return how far a model is from itself where onnxruntime sums in another order: as the file says, unoptimised.

    A net that a cut left little of may blow rounding up (a text recogniser on noise by a hundred).
    """
    return compare(run_all(form.traced, form.model, part, form.extra, optimize=False), outputs, natural).rel_err


def _broken(what: str, error: Exception) -> VerifyError:
    return VerifyError(f"{what} does not run: {error}; nothing was written, please report the model")


def tolerance(shaped: Shaped) -> float:
    """Return how far rounding may take two forms of a model apart, by the coarsest type that it computes in."""
    if _codes(shaped):
        return _CODE_TOLERANCE
    computed = {shaped.kinds.get(o) for node in shaped.graph.nodes for o in node.output}
    return _HALF_TOLERANCE if computed & {TensorProto.FLOAT16, TensorProto.BFLOAT16} else TOLERANCE


def _codes(shaped: Shaped) -> bool:
    """Return whether a model makes codes of its activations."""
    return any(is_coding(node) for node in shaped.graph.nodes)


def check_loads(traced: Traced, small: ModelProto) -> None:
    """Raise a VerifyError unless a cut model passes the checker, shape inference and onnxruntime's loader."""

    def problem(model: ModelProto) -> str | None:
        bare = without_values(model)
        try:
            onnx.checker.check_model(bare)
            for output in bare.graph.output:  # declared as in the input file, which may be wrong
                if output.type.HasField("tensor_type"):
                    output.type.tensor_type.ClearField("shape")
            del bare.graph.value_info[:]
            bare.graph.value_info.extend(_types(model, traced.backend))
            onnx.shape_inference.infer_shapes(bare, strict_mode=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
            return first_line(error)
        return None

    # files that onnxruntime runs and the checker never accepted are judged by onnxruntime alone
    if (found := problem(small)) is not None and problem(traced.source) is None:
        raise VerifyError(f"the cut model is invalid: {found}; nothing was written, please report the model")
    try:
        traced.backend.session(small, optimize=False)  # optimised it is loaded for every run that follows
    except ModelError as error:
        raise VerifyError(f"the cut model does not load: {error}; nothing was written, please report it") from error


def _types(model: ModelProto, backend: Backend) -> list[ValueInfoProto]:
    """Return the types that onnx cannot tell, behind some ops of its own, as onnxruntime sees them."""
    try:
        unknown = unknown_kinds(model, backend, value_kinds(model))
    except ModelError:  # it does not load, which is told of as such
        return []
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in unknown.items() if kind]
