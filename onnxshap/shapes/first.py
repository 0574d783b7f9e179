"""The first sizes at which a model runs: those that the user gave, else two images of a usual size, or what fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxshap.arguments import listed
from onnxshap.data import InputSpec
from onnxshap.errors import DataError, LoadError, ModelError
from onnxshap.shapes.dims import Axis, follow
from onnxshap.shapes.folding import Run, Shape
from onnxshap.shapes.probe import ShapeProbe
from onnxshap.shapes.search import MOST, fitting, numbers, sets_of

_BATCH = 2
_FREE_SIZES = (64, 32, 224, 320, 16)
_SMALL_SIZES = (8, 4)
"""Sizes that are tried last: a table of positions may be that short (the signs of a number plate)."""
_LONG_SIZES = (1024, 16000, 65536)
"""Sizes that are tried after those: sound, whose windows take hundreds of samples, those of low pitches thousands."""
_MOST = 1 << 20
"""Numbers of all inputs together at such a size: a picture that large in both directions is none."""
_LIKELY = 2
"""Batches that may be written into a file which are tried at other sizes that may be."""
_TOLD = 4
"""Inputs that a message names."""
_SEARCHED = 160
"""Most runs that look for sizes which fit each other, from one start."""

Attempt = tuple[int, int, float]
"""A size of free axes, a batch, and the most numbers that all inputs together may have with them."""


def first_run(
    probe: ShapeProbe,
    specs: Mapping[str, InputSpec],
    given: Mapping[str, Sequence[int | None]],
    written: Callable[[], tuple[Sequence[int], Sequence[int]]],
) -> Run:
    """Run at the first sizes that the model accepts; arguments as in `trials.runs`.

    Of one input what does not run is seldom because of what others have: all that it may be is tried before sizes that
    fit each other are looked for, with several inputs only what is usual.

    Raises:
        ModelError: it runs at none.
    """
    merged = {name: _merged(spec, given.get(name)) for name, spec in specs.items()}
    wished = [size for n, spec in specs.items() if spec.batch is not None and (size := _size(given.get(n), spec.batch))]
    batches = (1,) if any(spec.batch != 0 for spec in specs.values()) else (_BATCH, 1)
    movable = [
        (name, axis) for name, dims in merged.items() for axis, size in enumerate(dims)
        if size is None and axis != specs[name].batch
    ]  # fmt: skip
    counted = all(specs[name].dtype.kind in "iu" for name, _ in movable)
    trying = _Trying(probe, specs, merged)

    def searched() -> Run | None:
        return trying.fitting(movable, dict.fromkeys((*batches, *wished) if movable else ()))

    usual, rare = _usual(batches), _rare(batches, wished, written, counted=counted)
    found = trying.accepted(usual)
    if len({name for name, _ in movable}) < 2:
        found = found or trying.accepted(rare) or searched()
    else:
        found = found or searched() or trying.accepted(rare)
    if found is None:
        raise trying.refusal() from trying.reason
    return found


def _usual(batches: Sequence[int]) -> Iterator[Attempt]:
    yield from itertools.product(_FREE_SIZES, batches, (MOST,))


def _rare(
    batches: Sequence[int], wished: Sequence[int], written: Callable[[], tuple[Sequence[int], Sequence[int]]], *,
    counted: bool,
) -> Iterator[Attempt]:  # fmt: skip
    """Yield what is looked up in the file where no usual size runs, and then what few models take.

    Args:
        batches: those that are usual.
        wished: those that were given.
        written: tells those that may be written into the file, and other sizes.
        counted: whether inputs of free sizes hold whole numbers alone.
    """
    images, others = written()
    yield from itertools.product(_FREE_SIZES, dict.fromkeys((*wished, *images)), (MOST,))
    yield from itertools.product(others, dict.fromkeys((*wished, *batches, *images[:_LIKELY])), (MOST,))
    yield from itertools.product(_SMALL_SIZES, batches, (MOST,))
    yield from itertools.product(() if counted else _LONG_SIZES, batches, (_MOST,))
    yield from itertools.product(_FREE_SIZES[:1], _FREE_SIZES, (_MOST,))  # times come first, windows run over them


@dataclass
class _Trying:
    """What a model was run at in vain, and why it refused.

    Attributes:
        probe: runs it.
        specs: its inputs.
        merged: input -> sizes as far as the file or the user says them.
        tried: sizes that it refused.
        reason: what it said of the first.
    """

    probe: ShapeProbe
    specs: Mapping[str, InputSpec]
    merged: Mapping[str, Sequence[int | None]]
    tried: list[dict[str, Shape]] = field(default_factory=list)
    reason: Exception | None = None

    def accepted(self, attempts: Iterable[Attempt]) -> Run | None:
        """Return the first run of some attempts, None where there is none."""
        known = numbers({name: tuple(size or 1 for size in dims) for name, dims in self.merged.items()})
        for free, batch, most in attempts:
            for by_name in (True, False):
                sizes = _filled(self.specs, self.merged, free, batch, by_name=by_name)
                room = most if self.tried else known + most if by_name else math.inf  # a name may multiply anything
                if sizes in self.tried or numbers(sizes) > room:
                    continue
                self.tried.append(sizes)
                try:
                    return self.probe.run(sizes)
                except LoadError:  # at no size
                    raise
                except (ModelError, DataError) as error:
                    self.reason = self.reason or error
        return None

    def fitting(self, movable: Sequence[Axis], batches: Iterable[int]) -> Run | None:
        """Return a run at sizes that fit each other, looked for from the first usual one on; None where none is found.

        Args:
            movable: axes whose sizes are free.
            batches: those that are started from.
        """
        starts = (_filled(self.specs, self.merged, _FREE_SIZES[0], batch, by_name=True) for batch in batches)
        sets = sets_of(self.specs, movable)
        return next((run for start in starts if (run := fitting(self.probe, start, sets, _SEARCHED))), None)

    def refusal(self) -> ModelError:
        """Return what is told where nothing runs."""
        tried = "; ".join(map(_told, self.tried[:3]))
        shaped = ", or --input-shape NAME=1,3,48,192" if any(None in spec.shape for spec in self.specs.values()) else ""
        return ModelError(f"the model does not run at {tried}: {self.reason}; give data that it takes{shaped}")


def _told(sizes: Mapping[str, Shape]) -> str:
    """Return the first of some inputs with their sizes, and how many more there are."""
    return listed([f"{name}{list(shape)}" for name, shape in sizes.items()], _TOLD)


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
