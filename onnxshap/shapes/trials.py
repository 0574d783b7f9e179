"""The sizes at which a model is run: such that it accepts (`first`), and others, for what is alike at all of them."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from onnxshap.data import InputSpec
from onnxshap.shapes.dims import Axis, follow
from onnxshap.shapes.first import first_run
from onnxshap.shapes.folding import Run, Shape
from onnxshap.shapes.probe import ShapeProbe
from onnxshap.shapes.search import by_name, fitting, sets_of

_LARGE = 1 << 25
"""Numbers of all tensors together, of a run that takes its time and memory: at other sizes there are to be fewer."""
_STRIDE = 32
"""What strides and windows want sizes to be multiples of."""
_MENDED = 16
"""Most runs that look for other sizes than those that run, from one start, which fit each other."""
_SINGLE = 8
"""Runs that look for axes that may be stretched."""
_STARTS = 10
"""Sizes of the first input from which other sizes that fit each other are looked for."""
_ROUNDED: tuple[Callable[[float], int], ...] = (round, math.ceil, math.floor)
"""How the sides of what strides have taken are rounded: what is made for it is as large."""


def runs(
    probe: ShapeProbe,
    specs: Mapping[str, InputSpec],
    given: Mapping[str, Sequence[int | None]],
    written: Callable[[], tuple[Sequence[int], Sequence[int]]] = lambda: ((), ()),
) -> tuple[Run, tuple[Run, ...]]:
    """Run at sizes that the model accepts, and at others: the same run where no size is free, none where none run.

    Where neither two images nor one run, those that were given do, or as many as may be `written` into the file; where
    no usual size of other free dims runs, one that may be written there does (`written`: batches, and other sizes), or
    sizes that differ and fit (`search`). The others are one at sizes that strides and windows want, and one at sizes
    that they do not divide, where there are such that the model accepts: what is alike at the former may be so because
    nothing was rounded. What the model does not accept larger together (the height of a line of text has one size, its
    width any) is larger one after the other. Where the inputs differ in sizes, those of the others follow the first's.
    What has the same size in all of these is one entry long in others, where the model accepts it.
    """
    first = first_run(probe, specs, given, written)
    if all(None not in spec.shape for spec in specs.values()):
        return first, (first,)
    free = _free(specs, first.inputs)
    called = by_name(specs, free)
    parts = [{key: size for key, size in free.items() if called[key] == n} for n in dict.fromkeys(called.values())]

    large = sum(map(math.prod, first.shapes.values())) > _LARGE
    refused = set[tuple[Shape, ...]]()

    def accepted(attempts: Iterable[dict[str, Shape]]) -> Run | None:
        thin = None
        for sizes in attempts:
            key = tuple(sizes.values())
            run = None if key in refused else probe.attempt(sizes)
            if run is not None and not (large and _thinner(first, run)):
                return run
            thin = thin or run
            refused.add(key)
        return thin

    def mending(starts: Sequence[dict[str, Shape]]) -> Run | None:
        return next((run for start in starts if (run := fitting(probe, start, sets_of(specs, led), _MENDED))), None)

    found: list[Run] = []
    leading, led = _leading(free)
    differ, mended = len(set(free.values())) > 1, bool(led)
    for sign, (together, *alone) in zip(
        (0, 1, -1),
        zip(*(_varied(specs, first.inputs, some, large) for some in (free, *parts)), strict=True),
        strict=False,
    ):
        uneven = list(itertools.islice(_uneven(specs, leading, sign, large), _STARTS)) if sign and led else []
        near = [_with_others(specs, first.inputs, sizes, led, way) for sizes in uneven for way in _ROUNDED]
        starts = near[:: len(_ROUNDED)] if mended else []
        run = accepted(near) or mending(starts[:1]) if differ else None
        run = run or accepted((*together, *near))
        if run is None:
            run = mending(starts[differ:])
            mended = mended and (run is not None or not starts)
        found += [run] if run is not None else []
        if len(parts) > 1 and (run is None or _free(specs, run.inputs) == free):
            others = (accepted(attempts) for attempts in alone)
            found += [run for run in others if run is not None and _free(specs, run.inputs) != free]
    return first, (*found[:-1], *_single(probe, specs, first, found), *found[-1:])


def _single(probe: ShapeProbe, specs: Mapping[str, InputSpec], first: Run, others: Sequence[Run]) -> Iterator[Run]:
    """Yield runs at one entry of the free axes that have the same size in all others: they may be stretched.

    So does a state of [1, 1, 1, 1] that is as large as a picture from the second one on. Those of all inputs together,
    then those of each, then axis by axis of an input that refuses.
    """
    free = _free(specs, first.inputs)
    alike = [key for key, size in free.items() if size > 1 and all(_free(specs, o.inputs)[key] == size for o in others)]
    if not others or not first.values:  # nothing counts sizes
        return
    each = [[key for key in alike if key[0] == name] for name in dict.fromkeys(name for name, _ in alike)]
    waiting = deque([alike, *each] if len(each) > 1 else each)
    for _ in range(_SINGLE):
        if not waiting:
            return
        axes = waiting.popleft()
        run = probe.attempt(_changed(specs, first.inputs, dict.fromkeys(axes, 1)))
        if run is not None and all(len(shape) == len(first.shapes[name]) for name, shape in run.shapes.items()):
            yield run
        elif axes in each and len(axes) > 1:
            waiting.extend([key] for key in axes)


def _leading(free: Mapping[Axis, int]) -> tuple[dict[Axis, int], list[Axis]]:
    """Return the free axes of the first input that has some, with their sizes, and those of the others."""
    first = next((name for name, _ in free), "")
    return {key: size for key, size in free.items() if key[0] == first}, [key for key in free if key[0] != first]


def _with_others(
    specs: Mapping[str, InputSpec], base: Mapping[str, Shape], sizes: Mapping[Axis, int], others: Sequence[Axis],
    rounded: Callable[[float], int] = round,
) -> dict[str, Shape]:  # fmt: skip
    """Return shapes in which axes of other inputs grow as those do that lie at their places from the end."""
    grown = {axis - len(base[name]): (size, base[name][axis]) for (name, axis), size in sizes.items()}
    found = dict(sizes)
    for name, axis in others:
        size, before = grown.get(axis - len(base[name]), (1, 1))
        found[name, axis] = max(1, rounded(base[name][axis] * size / before))
    return _changed(specs, base, found)


def _thinner(one: Run, other: Run) -> bool:
    """Return whether something has one entry on an axis in another run, and more in one: so it tells less."""
    pairs = ((shape, other.shapes.get(name, shape)) for name, shape in one.shapes.items())
    return any(1 in theirs and any(a > b == 1 for a, b in zip(own, theirs, strict=False)) for own, theirs in pairs)


def _varied(
    specs: Mapping[str, InputSpec], base: Mapping[str, Shape], free: Mapping[tuple[str, int], int], large: bool
) -> list[list[dict[str, Shape]]]:
    """Return other sizes for free dimensions, in the order in which they are tried, of every run that is wanted.

    First half as much again where that is a multiple of 32, which strides and windows want (attention over all places
    of an image takes the fourth power of its sides), then twice as much, then the batch alone; then uneven ones, a
    little above and below what strides want. What is large as it is is smaller first.
    """
    if not free:
        return [[_changed(specs, base, {})]]
    strided = all(size % 64 == 0 for size in free.values())
    half_more, twice = ({key: int(grow * size) for key, size in free.items()} for grow in (1.5, 2))
    even = [half_more, twice, dict(free)] if strided else [twice, dict(free)]
    if large and all(size >= 2 * _STRIDE and size % _STRIDE == 0 for size in free.values()):
        even.insert(0, {key: size // _STRIDE // 2 * _STRIDE for key, size in free.items()})
    uneven = (list(_uneven(specs, free, sign, large)) for sign in (1, -1))
    return [[_changed(specs, base, sizes) for sizes in some] for some in (even, *uneven)]


def _free(specs: Mapping[str, InputSpec], base: Mapping[str, Shape]) -> dict[tuple[str, int], int]:
    """Return input and axis -> size, of those that are free and no batch."""
    return {
        (name, axis): base[name][axis]
        for name, spec in specs.items()
        for axis, size in enumerate(spec.shape)
        if size is None and axis != spec.batch
    }


def _changed(
    specs: Mapping[str, InputSpec], base: Mapping[str, Shape], sizes: Mapping[tuple[str, int], int]
) -> dict[str, Shape]:
    """Return the shapes with some other sizes, and those that follow from them; one image more where that is free."""
    found = {
        name: tuple(
            sizes.get((name, axis), size + 1 if axis == spec.batch and spec.shape[axis] is None else size)
            for axis, size in enumerate(base[name])
        )
        for name, spec in specs.items()
    }
    return follow(specs, base, found)


def _uneven(
    specs: Mapping[str, InputSpec], free: Mapping[tuple[str, int], int], sign: int, large: bool = False
) -> Iterator[dict[tuple[str, int], int]]:
    """Yield sizes of the free axes that are multiples of 32, and of fewer where they are small, and some more or less.

    One more (33, 65) stays odd through strides that round up, one less (31, 63) through strides that round down. Where
    a model takes no odd sizes it is two more, four, eight, sixteen. Each axis has another size, so that a height is no
    width; those that are called the same, or failing that lie at the same place, the same; failing that all of them.
    Smaller ones come first where those that are free are large.
    """
    by_place = {(name, axis): f"{axis - len(specs[name].shape)}" for name, axis in free}
    for called in (by_name(specs, free), by_place, dict.fromkeys(free, "")):
        order = list(dict.fromkeys(called.values()))
        each = [(more, upward) for more in (1, 2, 4, 8, 16) for upward in (True, False)]
        for more, upward in sorted(each, key=lambda one: one[1]) if large else each:
            found = {}
            for key, size in free.items():  # from half of the size up, or down from it: there may be a largest
                block = min(_STRIDE, 1 << max(1, size.bit_length() - 2)) // (1 if upward else 2)
                place = order.index(called[key])
                away = (place or -1) if upward else -1 - place  # never next to the size itself
                found[key] = (size // block + away) * block + sign * more
                if not 0 < more < block or found[key] < 1:
                    break
            else:
                yield found
