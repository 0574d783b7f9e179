"""The sizes at which a model is run: such that it accepts, and others, for what is alike at all of them.

One run at two images of a usual size, then some with other sizes in the free dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from onnxshap.data import InputSpec
from onnxshap.errors import DataError, LoadError, ModelError
from onnxshap.shapes.dims import Axis, follow
from onnxshap.shapes.folding import Run, Shape
from onnxshap.shapes.probe import ShapeProbe
from onnxshap.shapes.search import MOST, fitting, numbers

_BATCH = 2
_FREE_SIZES = (64, 32, 224, 320, 16)
_SMALL_SIZES = (8, 4)
"""Sizes that are tried last: a table of positions may be that short (the signs of a number plate)."""
_LONG_SIZES = (1024, 16000, 65536)
"""Sizes that are tried after those: sound, whose windows take hundreds of samples, those of low pitches thousands."""
_MOST = 1 << 20
"""Numbers of all inputs together at such a size: a picture that large in both directions is none."""
_LARGE = 1 << 25
"""Numbers of all tensors together, of a run that takes its time and memory: at other sizes there are to be fewer."""
_STRIDE = 32
"""What strides and windows want sizes to be multiples of."""
_LIKELY = 2
"""Batches that may be written into a file which are tried at other sizes that may be."""
_TOLD = 4
"""Inputs that a message names."""
_SEARCHED = 160
"""Most runs that look for sizes which fit each other, from one start."""
_MENDED = 16
"""The same, for other sizes than those that run."""
_SINGLE = 8
"""Runs that look for axes that may be stretched."""
_STARTS = 10
"""Sizes of the first input for which that is done."""
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
    first = _first_run(probe, specs, given, written)
    if all(None not in spec.shape for spec in specs.values()):
        return first, (first,)
    free = _free(specs, first.inputs)
    called = _by_name(specs, free)
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
        return next((run for start in starts if (run := fitting(probe, start, _sets(specs, led), _MENDED))), None)

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


def _first_run(
    probe: ShapeProbe,
    specs: Mapping[str, InputSpec],
    given: Mapping[str, Sequence[int | None]],
    written: Callable[[], tuple[Sequence[int], Sequence[int]]],
) -> Run:
    """Run at the first sizes that the model accepts: the user's, else two images of a usual size."""
    sizes_tried: list[dict[str, Shape]] = []
    reason: Exception | None = None
    alone = any(spec.batch != 0 for spec in specs.values())
    merged = {name: _merged(spec, given.get(name)) for name, spec in specs.items()}
    wished = [size for n, spec in specs.items() if spec.batch is not None and (size := _size(given.get(n), spec.batch))]
    batches = (1,) if alone else (_BATCH, 1)
    movable = [
        (name, axis) for name, dims in merged.items() for axis, size in enumerate(dims)
        if size is None and axis != specs[name].batch
    ]  # fmt: skip
    counted = all(specs[name].dtype.kind in "iu" for name, _ in movable)

    def usual() -> Iterator[tuple[int, int, int]]:
        yield from itertools.product(_FREE_SIZES, batches, (MOST,))

    def rare() -> Iterator[tuple[int, int, int]]:  # looked up in the file where no usual size runs
        images, others = written()
        yield from itertools.product(_FREE_SIZES, dict.fromkeys((*wished, *images)), (MOST,))
        yield from itertools.product(others, dict.fromkeys((*wished, *batches, *images[:_LIKELY])), (MOST,))
        yield from itertools.product(_SMALL_SIZES, batches, (MOST,))
        yield from itertools.product(() if counted else _LONG_SIZES, batches, (_MOST,))
        yield from itertools.product(_FREE_SIZES[:1], _FREE_SIZES, (_MOST,))  # times come first, windows run over them

    known = numbers({name: tuple(size or 1 for size in dims) for name, dims in merged.items()})

    def accepted(attempts: Iterable[tuple[int, int, int]]) -> Run | None:
        nonlocal reason
        for free, batch, most in attempts:
            for by_name in (True, False):
                sizes = _filled(specs, merged, free, batch, by_name=by_name)
                room = most if sizes_tried else known + most if by_name else math.inf  # a name may multiply anything
                if sizes in sizes_tried or numbers(sizes) > room:
                    continue
                sizes_tried.append(sizes)
                try:
                    return probe.run(sizes)
                except LoadError:  # at no size
                    raise
                except (ModelError, DataError) as error:
                    reason = reason or error
        return None

    def searched() -> Run | None:
        starts = [_filled(specs, merged, _FREE_SIZES[0], batch, by_name=True)
                  for batch in dict.fromkeys((*batches, *wished) if movable else ())]  # fmt: skip
        return next((run for start in starts if (run := fitting(probe, start, _sets(specs, movable), _SEARCHED))), None)

    # of one input what does not run is seldom because of what others have: all that it may be is tried before
    single = len({name for name, _ in movable}) < 2
    found = (
        accepted(usual()) or (None if single else searched()) or accepted(rare()) or (searched() if single else None)
    )
    if found is not None:
        return found
    tried = "; ".join(map(_told, sizes_tried[:3]))
    shaped = ", or --input-shape NAME=1,3,48,192" if any(None in spec.shape for spec in specs.values()) else ""
    raise ModelError(f"the model does not run at {tried}: {reason}; give data that it takes{shaped}") from reason


def _told(sizes: Mapping[str, Shape]) -> str:
    """Return the first of some inputs with their sizes, and how many more there are."""
    some = ", ".join(f"{name}{list(shape)}" for name, shape in itertools.islice(sizes.items(), _TOLD))
    return some + (f" and {len(sizes) - _TOLD} more" if len(sizes) > _TOLD else "")


def _filled(
    specs: Mapping[str, InputSpec], merged: Mapping[str, Sequence[int | None]], free: int, batch: int, *, by_name: bool
) -> dict[str, Shape]:
    """Return sizes of the inputs; free axes are as long as one of their name that is given, if names are to say so.

    Then those whose names are arithmetic are as long as these say, too (`dims`).
    """
    said = dict[str, int]()
    for name, dims in merged.items() if by_name else ():
        for axis, (title, size) in enumerate(zip(specs[name].symbols, dims, strict=False)):
            if title and size is not None and specs[name].shape[axis] is None:
                said.setdefault(title, size)
    sizes = dict[str, Shape]()
    for name, dims in merged.items():
        titles = (*specs[name].symbols, *itertools.repeat("", len(dims)))
        sizes[name] = tuple(
            size if size is not None else batch if axis == specs[name].batch else said.get(titles[axis], free)
            for axis, size in enumerate(dims)
        )
    return follow(specs, merged, sizes) if by_name else sizes


def _sets(specs: Mapping[str, InputSpec], axes: Sequence[Axis]) -> list[tuple[Axis, ...]]:
    """Return axes that may follow one size: those of one name, all of an input, each; of the last inputs first.

    The first one, a picture or a sentence, is what the others are made for.
    """
    order = axes[::-1]
    called, found = _by_name(specs, order), dict[tuple[Axis, ...], None]()
    named = {key: title for key, title in called.items() if specs[key[0]].symbols[key[1] :][:1] not in ((), ("",))}
    for alike in (named, {key: key[0] for key in order}, {key: key for key in order}):
        for kind in dict.fromkeys(alike.values()):
            found[tuple(key for key in order if alike.get(key) == kind)] = None
    return list(found)


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


def _size(given: Sequence[int | None] | None, axis: int) -> int | None:
    return None if given is None or axis >= len(given) else given[axis]


def _merged(spec: InputSpec, given: Sequence[int | None] | None) -> list[int | None]:
    if given is None:
        return list(spec.shape)
    if len(given) != len(spec.shape):
        raise ModelError(
            f"input {spec.name!r} has {len(spec.shape)} dimensions, the shape given {len(given)}: give one size each"
        )
    for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True)):
        if size is not None and size < 1:
            raise ModelError(f"input {spec.name!r}: the shape given has {size} entries on axis {axis}: give 1 or more")
        if axis != spec.batch and None not in (own, size) and own != size:
            raise ModelError(
                f"input {spec.name!r} has {own} entries on axis {axis}, the shape given {size}: "
                "only free dimensions can be chosen"
            )
    return [
        own if own is not None else (None if axis == spec.batch else size)
        for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True))
    ]


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
    for called in (_by_name(specs, free), by_place, dict.fromkeys(free, "")):
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


def _by_name(specs: Mapping[str, InputSpec], free: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return input and axis -> what the axis is called, or failing that where it lies."""
    return {(name, axis): specs[name].symbols[axis] or f"{axis - len(specs[name].shape)}" for name, axis in free}
