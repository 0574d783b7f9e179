"""What a model declares of its inputs, and where their images lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxshap.data import InputSpec
from onnxshap.errors import ModelError

_KNOWN_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {TensorProto.UNDEFINED}


def input_specs(model: ModelProto) -> dict[str, InputSpec]:
    """Return name -> dtype and shape (None where free) of the inputs that have no initializer.

    Raises:
        ModelError: an input is no tensor (a sequence or an optional), or of no type or shape.
    """
    initialized = {t.name for t in model.graph.initializer}
    specs = {}
    for item in model.graph.input:
        if item.name in initialized:
            continue
        if item.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"input {item.name!r} is no tensor; only models with tensor inputs can be pruned")
        kind = item.type.tensor_type
        if kind.elem_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            raise ModelError(f"input {item.name!r} is complex, which onnxruntime does not take; export real numbers")
        if kind.elem_type not in _KNOWN_TYPES:
            raise ModelError(f"input {item.name!r} has no known element type; export the model again")
        if not kind.HasField("shape"):
            raise ModelError(f"input {item.name!r} declares no shape, not even its rank; export the model with shapes")
        dims = kind.shape.dim
        if any(d.WhichOneof("value") == "dim_value" and d.dim_value == 0 for d in dims):
            raise ModelError(
                f"input {item.name!r} has a dimension of size 0; export the model with sizes, or free dims"
            )
        shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in dims)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        specs[item.name] = InputSpec(item.name, dtype, shape, symbols=tuple(d.dim_param for d in dims))
    names = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    given = [o.type.tensor_type.shape.dim for o in model.graph.output if o.type.tensor_type.shape.dim]
    made = {d.dim_param for dims in given for d in dims if d.dim_param}
    if _left_behind(specs, [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output]):
        axes = dict[str, int | None].fromkeys(specs)
    else:
        axes = _batch_axes(names, specs, {dims[0].dim_param or dims[0].dim_value for dims in given}, made)
    return {name: replace(spec, batch=axes[name]) for name, spec in specs.items()}


def placed(specs: Mapping[str, InputSpec], axes: Mapping[str, int | None]) -> dict[str, InputSpec]:
    """Return specs whose images lie along other axes, those of inputs that `axes` names; None = there is none.

    Raises:
        ModelError: `axes` names what is no input, or an axis that an input does not have.
    """
    check_names(axes, specs, "an axis")
    for name, axis in axes.items():
        if axis is not None and not 0 <= axis < len(specs[name].shape):
            raise ModelError(
                f"input {name!r} has {len(specs[name].shape)} dimensions, its batch axis is given as {axis}; count "
                "from 0, or give None where it has none"
            )
    return {name: replace(spec, batch=axes.get(name, spec.batch)) for name, spec in specs.items()}


_BATCHES = ("n", "b", "bs")
"""What axes of images are called for short."""
_SAID = ("batch", "batchsize", "bs")
"""What they are called where nothing else is; `_` does not matter."""
_STEPS = ("t", "l", "s", "len", "length")
"""What axes of steps are called for short."""
_COLOURS = (3, 4)
"""Channels of a picture."""


def check_names(given: Iterable[str], specs: Mapping[str, InputSpec], what: str = "a shape") -> None:
    """Refuse what is given for no input.

    Raises:
        ModelError: a name is none of an input.
    """
    if unknown := sorted(set(given) - set(specs)):
        raise ModelError(f"{what} is given for {unknown[0]!r}, the model's inputs are {', '.join(map(repr, specs))}")


def _batch_axes(
    names: Mapping[str, Sequence[str]], specs: Mapping[str, InputSpec], leading: Collection[str | int],
    made: Collection[str],
) -> dict[str, int | None]:  # fmt: skip
    """Return where the images lie in every input, None where they do not.

    In this order:
    - the axis that the first input calls its batch, where its axis 0 is free and called something else (steps);
    - axis 0, if it is free or as long as that of the first input of which it is free; otherwise the axis that is named
      as that one, or where that has no name the only other free one;
    - where axis 0 is of another fixed size (steps) and all free axes have one name, which an output's axis 0 has or
      which says it, the one of that name.

    Inputs that have none of these are whole for an image, and a batch is then one image. So is one whose axis 0 is
    named as a length of what has images (positions). All of them are whole where
    - axis 0 of one is named as another axis of what has no images,
    - integers lie in a few rows as long as nothing else is,
    - something is as long on both axes of a matrix as others are on axis 0 (the nodes of a graph, and which of them are
      neighbours),
    - every size is fixed and axis 0 does not agree (the nodes of a graph and its edges), or
    - there are the colours of one picture, and no output has as many entries (`leading`: names or sizes of their axes
      0; `made`: the names of all their axes).
    """
    ranked = [name for name, spec in specs.items() if spec.shape]
    lengths = {specs[name].shape[0] for name in ranked}
    if len(lengths) > 1 and 1 not in lengths and not any(None in spec.shape for spec in specs.values()):
        return dict.fromkeys(specs)
    first = next((name for name in ranked if specs[name].shape[0] is None), next(iter(ranked), ""))
    size, title = (specs[first].shape[0], names[first][0]) if first else (None, "")
    picture = len(ranked) == 1 and len(specs[first].shape) == 3 and size in _COLOURS
    if picture and leading and size not in leading:
        return dict.fromkeys(specs)
    called = _said(names.get(first, ()), made) if size is None else _second(names, leading) if size != 1 else ""
    if called:
        known = {own for axes in names.values() if called in axes for own in axes}
        return {name: own_axis(spec, {called}, known) for name, spec in specs.items()}
    lengths_of = {name: {own for own in names[name][1:] if own not in ("", title)} for name in ranked}
    imaged = set[str]().union(*(lengths_of[name] for name in ranked if title and title in names[name]))
    others = set[str]().union(*lengths_of.values()) - imaged
    if title and any(names[name][0] in others for name in ranked if specs[name].shape[0] is None):
        return dict.fromkeys(specs)
    members = [name for name in ranked if list(names[name]).count(title) == 1 and names[name][0] == title]
    if title.isidentifier() and members and any(list(names[name]) == [title, title] for name in ranked):
        return dict.fromkeys(specs)
    if size is None and any(_in_rows(specs[name], names[name], title) for name in ranked):
        return dict.fromkeys(specs)
    found: dict[str, int | None] = {}
    for name, spec in specs.items():
        named = [axis for axis, own in enumerate(names[name]) if own == title and spec.shape[axis] == size is None]
        if not spec.shape or size not in (None, 1):
            found[name] = 0 if spec.shape else None
        elif spec.shape[0] is None and names[name][0] in imaged and title not in names[name]:
            found[name] = None
        elif 0 in named or (spec.shape[0] == size and not (named and title)):
            found[name] = 0
        else:
            found[name] = named[0] if len(named) == 1 else None
    return found


def _left_behind(specs: Mapping[str, InputSpec], outputs: Sequence[Sequence[int]]) -> bool:
    """Return whether no output has an axis for what lies on axis 0 of the inputs, all sizes being fixed: no batch does.

    Rows of one table, of which one answer comes out. 0 in an output is a size that the file does not tell. Where an
    output begins with as many entries as lie on another axis of an input, that may be the batch (steps lie first).
    """
    leading = {spec.shape[0] for spec in specs.values() if spec.shape}
    if not outputs or any(None in spec.shape for spec in specs.values()) or any(0 in o or not o for o in outputs):
        return False
    if not {shape[0] for shape in outputs}.isdisjoint(n for spec in specs.values() for n in spec.shape[1:]):
        return False
    return all(n is not None and size % n for n in leading for shape in outputs for size in shape)


def _in_rows(spec: InputSpec, names: Sequence[str], title: str) -> bool:
    """Return whether integers lie in rows, how many is known, of any length but that of the images: ends of edges."""
    lengths = [called for size, called in zip(spec.shape[1:], names[1:], strict=True) if size is None]
    return spec.dtype.kind in "iu" and spec.shape[0] not in (None, 1) and bool(lengths) and title not in lengths


def own_axis(spec: InputSpec, titles: Collection[str], known: Collection[str]) -> int | None:
    """Return the axis of the images of an input beside one that has them elsewhere than on axis 0, None without one.

    That is the one called by one of their `titles`, else axis 0 if it is free and called none of what is `known` of
    the others (steps).
    """
    called = [axis for axis, own in enumerate(spec.symbols) if own in titles]
    if called:
        return called[0] if len(called) == 1 else None
    free = bool(spec.shape) and spec.shape[0] is None
    return 0 if free and (not spec.symbols[0] or spec.symbols[0] not in known) else None


def says_batch(name: str) -> bool:
    """Return whether an axis of that name is one of images, as far as names tell."""
    return name.lower() in _BATCHES or "batch" in name.lower()


def says_steps(name: str) -> bool:
    """Return whether an axis of that name is one of steps, as far as names tell."""
    return name.lower() in _STEPS or name.lower().startswith(("seq", "step", "time", "frame"))


def _said(axes: Sequence[str], made: Collection[str]) -> str:
    """Return what the one axis of an input that says batch is called, "" where axis 0 is it, or has no name.

    Where axis 0 says steps, what is called so for short is the batch too, unless outputs have axis 0 alone (points of
    a sample); and so is what they have instead of it.
    """
    short, led = bool(axes) and says_steps(axes[0]), bool(axes) and axes[0] in made
    found = [
        own for own in axes
        if own.lower().replace("_", "") in _SAID
        or (short and ((own in made and not led) or (own.lower() in _BATCHES and (own in made or not led))))
    ]  # fmt: skip
    return found[0] if len(found) == 1 and axes[0] not in ("", found[0]) else ""


def _second(names: Mapping[str, Sequence[str]], leading: Collection[str | int]) -> str:
    """Return what the axis of the images is called where it is not the first, "" where none is sure to be."""
    every = {own for axes in names.values() for own in axes if own}
    called = every.pop() if len(every) == 1 else ""
    return called if called in leading or says_batch(called) else ""
