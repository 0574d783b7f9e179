"""What a model declares of its inputs, and where their images lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
        axes = _Inputs(names, specs, {dims[0].dim_param or dims[0].dim_value for dims in given}, made).batch_axes()
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


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a model as it declares them.

    Attributes:
        names: input -> what its axes are called, "" where one has no name.
        specs: input -> what it is.
        leading: names or sizes of the outputs' axes 0.
        made: names of all axes of the outputs.
    """

    names: Mapping[str, Sequence[str]]
    specs: Mapping[str, InputSpec]
    leading: Collection[str | int]
    made: Collection[str]

    def batch_axes(self) -> dict[str, int | None]:
        """Return where the images lie in every input, None where they do not: such an input is whole for an image.

        In this order:
        - the axis that the first input calls its batch, where its axis 0 is something else (`_called`);
        - axis 0, if it is free or as long as that of the first input of which it is free; otherwise the axis that is
          named as that one, or where that has no name the only other free one (`_axis`).

        All inputs are whole where there is no batch (`_disagree`, `_is_picture`, `_leads_a_length`, `_is_graph`,
        `_lies_in_rows`); a batch is then one image.
        """
        if self._disagree or self._is_picture:
            return dict.fromkeys(self.specs)
        if called := self._called:
            known = {own for axes in self.names.values() if called in axes for own in axes}
            return {name: own_axis(spec, {called}, known) for name, spec in self.specs.items()}
        if self._leads_a_length or self._is_graph or self._lies_in_rows:
            return dict.fromkeys(self.specs)
        return {name: self._axis(name) for name in self.specs}

    @cached_property
    def _ranked(self) -> list[str]:
        """The inputs that have axes."""
        return [name for name, spec in self.specs.items() if spec.shape]

    @cached_property
    def _first(self) -> str:
        """The first input whose axis 0 is free, else the first that has one; "" where there is none."""
        return next((n for n in self._ranked if self.specs[n].shape[0] is None), next(iter(self._ranked), ""))

    @property
    def _size(self) -> int | None:
        """How long its axis 0 is; None = free."""
        return self.specs[self._first].shape[0] if self._first else None

    @property
    def _title(self) -> str:
        """What its axis 0 is called."""
        return self.names[self._first][0] if self._first else ""

    @property
    def _called(self) -> str:
        """What the axis of the images is called where it is not axis 0, "" where that is not known.

        Axis 0 is free and called something else (steps), or it is of another fixed size than 1 and all free axes have
        one name, which an output's axis 0 has or which says it.
        """
        if self._size is None:
            return _said(self.names.get(self._first, ()), self.made)
        return _second(self.names, self.leading) if self._size != 1 else ""

    @property
    def _disagree(self) -> bool:
        """Whether every size is fixed and those of axis 0 differ: the nodes of a graph and its edges."""
        lengths = {self.specs[name].shape[0] for name in self._ranked}
        free = any(None in spec.shape for spec in self.specs.values())
        return len(lengths) > 1 and 1 not in lengths and not free

    @property
    def _is_picture(self) -> bool:
        """Whether there are the colours of one picture, and no output has as many entries."""
        single = len(self._ranked) == 1 and len(self.specs[self._first].shape) == 3
        return single and self._size in _COLOURS and bool(self.leading) and self._size not in self.leading

    @cached_property
    def _imaged(self) -> set[str]:
        """The names of the lengths of what has images: of positions."""
        return set[str]().union(
            *(self._lengths(name) for name in self._ranked if self._title and self._title in self.names[name])
        )

    def _lengths(self, name: str) -> set[str]:
        """Return the names of the axes of an input behind the first, but for that of the images."""
        return {own for own in self.names[name][1:] if own not in ("", self._title)}

    @property
    def _leads_a_length(self) -> bool:
        """Whether axis 0 of an input is named as another axis of what has no images."""
        others = set[str]().union(*(self._lengths(name) for name in self._ranked)) - self._imaged
        free = [name for name in self._ranked if self.specs[name].shape[0] is None]
        return bool(self._title) and any(self.names[name][0] in others for name in free)

    @property
    def _is_graph(self) -> bool:
        """Whether something is as long on both axes of a matrix as others are on axis 0: nodes and their neighbours."""
        title, named = self._title, [list(self.names[name]) for name in self._ranked]
        members = any(axes.count(title) == 1 and axes[0] == title for axes in named)
        return title.isidentifier() and members and [title, title] in named

    @property
    def _lies_in_rows(self) -> bool:
        """Whether integers lie in a few rows as long as nothing else is: the ends of edges."""
        rows = (_in_rows(self.specs[name], self.names[name], self._title) for name in self._ranked)
        return self._size is None and any(rows)

    def _axis(self, name: str) -> int | None:
        """Return where the images lie in an input, if there is a batch."""
        spec, own, size, title = self.specs[name], self.names[name], self._size, self._title
        if not spec.shape or size not in (None, 1):
            return 0 if spec.shape else None
        if spec.shape[0] is None and own[0] in self._imaged and title not in own:
            return None
        named = [axis for axis, called in enumerate(own) if called == title and spec.shape[axis] == size is None]
        if 0 in named or (spec.shape[0] == size and not (named and title)):
            return 0
        return named[0] if len(named) == 1 else None


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
