"""Where images of fixed sizes lie, by what the ops do with the axes: shapes alone do not tell steps from images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxshap.labels import Labels
from onnxshap.labels.trace import AxisKey
from onnxshap.shapes import Shaped
from onnxshap.shapes.specs import input_specs, own_axis, says_batch


def placed_images(shaped: Shaped, labels: Labels) -> Mapping[str, int | None]:
    """Return the axis of the images of every input, None where it has none: the one that it has, or a better one.

    Of inputs whose sizes are all fixed, axis 0 is taken for the images, and need not be theirs: recurrent ops take the
    images of steps on axis 1. Where no op names another one, and an output has none for images of axis 0, which is
    summed over or mixed, that is an axis of features (or of the members of a set), and all inputs are one sample; so
    they are where axis 0 may be of any length and outputs are as long whatever it is (points, in any number), and an
    only input is where an output has that axis twice (how alike the members of a set are). An only input that was taken
    for one sample, as its axis 0 may hold colours, has images there if all outputs do.
    """
    given = {name: shaped.batch_axis(name) for name in shaped.inputs}
    specs = shaped.specs
    used = [*((site.tensor, site.axis) for site in labels.trace.sites), *labels.trace.mixed]
    if any(None in specs[name].shape for name in given):
        summed = shaped.free_batch and any(_meet(labels, (name, 0), key) for name in given for key in used)
        members = len(given) == 1 and shaped.free_batch and paired_images(shaped, labels) is not None
        return dict.fromkeys(given) if members or (summed and not _follow(shaped)) else given
    if _is_whole(shaped):
        (name,) = given
        summed = any(_meet(labels, (name, 0), key) for key in used)
        return {name: None if summed or not _arrive(shaped, labels, [name]) else 0}
    doubted = [name for name, axis in given.items() if axis == 0 and shaped.inputs[name][0] > 1]
    if not doubted:
        return given
    named = {name: _axis_of(shaped, labels, name) for name in given}
    if any(named[name] for name in doubted):
        counts = {shaped.inputs[name][axis] for name, axis in named.items() if axis is not None}
        return {
            name: axis if axis is not None else 0 if shape and shape[0] in counts else None
            for (name, axis), shape in zip(named.items(), shaped.inputs.values(), strict=True)
        }
    if any(_meet(labels, (name, 0), key) for name in doubted for key in used) and not _arrive(shaped, labels, doubted):
        return dict.fromkeys(given)
    return given


def led_elsewhere(shaped: Shaped, labels: Labels) -> Mapping[str, int | None] | None:
    """Return the axes of the images where ops tell others than axis 0, which may be of any length, or they may.

    Recurrent ops take the images of steps on axis 1, convolutions on axis 0, to which they are turned; whatever the
    axes are called, unless axis 0 is called the batch. Inputs that no op tells of have the axis that goes by the name
    of it, else axis 0 if it is free and none of those that ops tell of has one of its name. None where no op tells.
    """
    specs = input_specs(shaped.graph.model)  # as declared: read along another axis, a batch may seem to be fixed
    named = {name: _axis_of(shaped, labels, name) for name in shaped.inputs}
    led = [
        n for n, axis in named.items()
        if axis and shaped.batch_axis(n) == 0 and None in (specs[n].shape[0], specs[n].shape[axis])
    ]  # fmt: skip
    if not led or any(says_batch(specs[name].symbols[0]) for name in led):
        return None
    titles = {title for name in led if (title := specs[name].symbols[named[name] or 0])}
    known = {title for name in led for title in specs[name].symbols if title}
    return {name: own_axis(specs[name], titles, known) if axis is None else axis for name, axis in named.items()}


def averaged_batch(shaped: Shaped, labels: Labels) -> tuple[str, int, str] | None:
    """Return an input, its axis of the images and an output that has its axis 0 instead, None where there is none.

    The images, which lie there by name, are summed over: axis 0 may be that of the samples.
    """
    used = [*((site.tensor, site.axis) for site in labels.trace.sites), *labels.trace.mixed]
    shapes = {o.name: shaped.shapes[o.name] for o in shaped.graph.model.graph.output if o.name in shaped.shapes}

    def arrives(one: AxisKey, output: str) -> bool:
        return any(_meet(labels, one, (output, axis)) for axis in range(len(shapes[output])))

    for name in shaped.inputs:
        batch = shaped.batch_axis(name)
        if batch and shaped.specs[name].symbols[batch] and any(_meet(labels, (name, batch), key) for key in used):
            for output in shapes:
                if arrives((name, 0), output) and not arrives((name, batch), output):
                    return name, batch, output
    return None


def paired_images(shaped: Shaped, labels: Labels) -> str | None:
    """Return an output in which every image of a batch meets every other (texts and pictures), None where none is.

    What one image gives is there what it gives alone: how alike its own text and picture are.
    """
    axes = [(name, axis) for name in shaped.inputs if (axis := shaped.batch_axis(name)) is not None]
    for output in shaped.graph.model.graph.output if shaped.free_batch else ():
        places = [(output.name, axis) for axis in range(len(shaped.shapes.get(output.name, ())))]
        if sum(any(_meet(labels, one, place) for one in axes) for place in places) > 1:
            return output.name
    return None


def _is_whole(shaped: Shaped) -> bool:
    """Return whether there is one input alone, taken for one sample, that has several entries on axis 0."""
    shapes = list(shaped.inputs.items())
    return len(shapes) == 1 and shaped.batch_axis(shapes[0][0]) is None and (*shapes[0][1], 1)[0] > 1


def _follow(shaped: Shaped) -> bool:
    """Return whether an output is longer for longer inputs, as far as is known."""
    outputs = [output.name for output in shaped.graph.model.graph.output]
    told = all((name, 0) in shaped.varying for name in shaped.inputs) and all(o in shaped.shapes for o in outputs)
    return not told or any(name in outputs for name, _ in shaped.varying)


def _axis_of(shaped: Shaped, labels: Labels, name: str) -> int | None:
    """Return the axis of an input that an op takes for the images, None where there is none.

    What grows otherwise than the axis is not it alone: a single image's frames become the images of a convolution, and
    so do all frames of several.
    """
    rank = len(shaped.inputs[name])
    found = (
        a for a in range(rank) for key in labels.trace.images
        if _meet(labels, (name, a), key) and _grow_alike(shaped, (name, a), key)
    )  # fmt: skip
    return next(found, None)


def _grow_alike(shaped: Shaped, one: AxisKey, other: AxisKey) -> bool:
    """Return whether two axes of one size have one size at others, too, as far as runs told."""
    if (one in shaped.varying) != (other in shaped.varying):
        return False
    sizes = [shaped.elsewhere[name][axis] for name, axis in (one, other) if name in shaped.elsewhere]
    return len(set(sizes)) < 2


def _arrive(shaped: Shaped, labels: Labels, names: list[str]) -> bool:
    """Return whether every output has an axis that is axis 0 of one of these inputs."""
    return all(
        any(_meet(labels, (name, 0), (output.name, axis)) for name in names for axis in range(len(shape)))
        for output in shaped.graph.model.graph.output
        if (shape := shaped.shapes.get(output.name)) is not None
    )


def _meet(labels: Labels, one: AxisKey, other: AxisKey) -> bool:
    """Return whether two axes are position by position the same."""
    first, second = labels.axis(*one), labels.axis(*other)
    return first is not None and second is not None and np.array_equal(first, second)
