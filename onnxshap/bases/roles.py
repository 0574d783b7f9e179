"""Which parts of a group may each have a basis of their own, and what has to follow.

A part is what one layer makes of the units at one place: the queries of every head, say, whose basis may differ from
head to head. It goes with the layers that sum it away, or with another part that it is multiplied with and summed
(queries with keys). Which goes with which the model is asked (`probing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from onnxshap.bases.carriers import Carriers, Entry, Tag
from onnxshap.bases.probing import Probe, other_side, random_basis
from onnxshap.core import FloatArray

_MOST = 8
"""Parts beyond which it is not tried which two, or which of a stretch, go together."""


@dataclass(frozen=True)
class Part:
    """Occurrences of the units in one stretch, one a block: number of the block -> the occurrence.

    Attributes:
        stretch: the number of the stretch.
        occurrences: in the order of the blocks.
    """

    stretch: int
    occurrences: tuple[int, ...]


@dataclass(frozen=True)
class Bundle:
    """Parts whose bases are one, block by block, or each other's transposed inverse.

    Attributes:
        made: the parts that layers make in the new basis.
        read: those that layers sum away.
        met: those that layers make, and that `made` is multiplied with.
        single: whether all blocks have the same basis.
    """

    made: tuple[Part, ...]
    read: tuple[Part, ...] = ()
    met: tuple[Part, ...] = ()
    single: bool = False

    @property
    def blocks(self) -> int:
        """How many bases there are."""
        return 1 if self.single else len(self.made[0].occurrences)

    def turns(self, places: Carriers, bases: FloatArray) -> dict[int, FloatArray]:
        """Return what becomes of the entries, given a basis a block, float64[blocks, n, n]."""
        found, inverse = dict[int, FloatArray](), other_side(bases)
        for made, part, number, entry in self._entries(places):
            used = bases if made else inverse
            whole = np.tile(np.eye(bases.shape[-1]), (len(entry.spots.at), 1, 1))
            for block, occurrence in enumerate(part.occurrences):
                whole[occurrence] = used[0 if self.single else block]
            found[number] = np.einsum("mij,mjk->mik", whole, found[number]) if number in found else whole
        return found

    def told(self, places: Carriers) -> str:
        """Return the sha256 of what is turned, and where: it tells bundles of two runs apart."""
        found = hashlib.sha256(repr(self.single).encode())
        for made, part, _, entry in self._entries(places):
            at = entry.spots.at[list(part.occurrences)]
            found.update(repr((made, entry.name, entry.axis, at.shape)).encode())
            found.update(np.ascontiguousarray(at, "<i8").data)
        return found.hexdigest()

    def _entries(self, places: Carriers) -> Iterator[tuple[bool, Part, int, Entry]]:
        """Yield whether it is the basis itself that goes there, the part, and the entry with its number."""
        for parts, made, reads in ((self.made, True, False), (self.read, False, True), (self.met, False, False)):
            for part in parts:
                for number, entry in enumerate(places.entries):
                    if entry.stretch == part.stretch and entry.reads == reads:
                        yield made, part, number, entry


def bundles(places: Carriers, probe: Probe) -> list[Bundle]:
    """Return the bundles of a group, each of which the model bears in any basis."""
    rng, size = np.random.default_rng(0), len(places.group)

    def borne(bundle: Bundle) -> bool:
        return probe.same(bundle.turns(places, np.stack([random_basis(rng, size) for _ in range(bundle.blocks)])))

    made, read = (_whole(places, reads) for reads in (False, True))
    tags, one = _tags(places), Bundle(made, read, single=True)
    if (tags is None or len(tags) == 1) and read and borne(one):
        return [one]
    if tags is None:
        return []
    found, open_ = list[Bundle](), _parts(places, False, tags)
    readers = _parts(places, True, tags)
    for part in open_ if readers else []:
        if borne(bundle := Bundle((part,), tuple(readers))):
            found.append(bundle)
            open_ = [p for p in open_ if p is not part]
            break
    while pair := next((b for b in _products(open_) if borne(b)), None):
        found.append(pair)
        open_ = [p for p in open_ if p not in (*pair.made, *pair.met)]
    return found or ([one] if len(tags) > 1 and read and borne(one) else [])


def _products(parts: Sequence[Part]) -> Iterator[Bundle]:
    """Yield what may be multiplied with each other: two parts, or one with several in a row, as of heads with one key.

    The longest rows come first; of many parts only those of a whole stretch.
    """
    few = len(parts) <= _MOST
    for one, other in combinations(parts, 2) if few else ():
        yield Bundle((one,), met=(other,))
    for length in range(len(parts) - 1, 1, -1):
        for one in parts:
            rest = [p for p in parts if p is not one]
            for row in (rest[start : start + length] for start in range(len(rest) - length + 1)):
                whole = length == sum(p.stretch == row[0].stretch for p in rest)
                if len({p.stretch for p in row}) == 1 and (few or whole):
                    yield Bundle((one,), met=tuple(row))


def _whole(places: Carriers, reads: bool) -> tuple[Part, ...]:
    """Return the stretches that layers make, or read, with all of their occurrences."""
    numbers = dict.fromkeys(e.stretch for e in places.entries if e.reads == reads)
    return tuple(Part(k, tuple(range(len(places.spots(k).at)))) for k in numbers)


def _tags(places: Carriers) -> Sequence[Tag] | None:
    """Return the tags of the blocks: those of the stretch with the fewest occurrences, if the others' divide them."""
    every = [places.spots(k).tags for k in dict.fromkeys(e.stretch for e in places.entries)]
    least = min(every, key=len)
    alike = all(_in_blocks(tags, least) is not None for tags in every)
    return least if alike else None


def _in_blocks(tags: Sequence[Tag], blocks: Sequence[Tag]) -> list[tuple[int, ...]] | None:
    """Return for every part its occurrences, one a block, the first of each block first; None where they do not fit.

    An occurrence is of the block whose tag it has, or one that says more: the head of keys, and which of its queries.
    Blocks with the same tag take turns.

    >>> _in_blocks([(0, 8), (1, 8), (0, 9), (1, 9)], [(0,), (1,)])
    [(0, 1), (2, 3)]
    """
    left = {tag: [m for m, own in enumerate(tags) if set(tag) <= set(own)] for tag in set(blocks)}
    count = len(tags) // len(blocks)
    if sorted(m for some in left.values() for m in some) != list(range(len(tags))):
        return None
    if any(len(some) != count * list(blocks).count(tag) for tag, some in left.items()):
        return None
    found = []
    for number in range(count):
        taken, nth = [], dict.fromkeys(left, 0)
        for tag in blocks:
            taken.append(left[tag][number * list(blocks).count(tag) + nth[tag]])
            nth[tag] += 1
        found.append(tuple(taken))
    return found


def _parts(places: Carriers, reads: bool, tags: Sequence[Tag]) -> list[Part]:
    """Return the parts of the stretches: k of one that holds every tag k times, the first of each tag first."""
    numbers = dict.fromkeys(e.stretch for e in places.entries if e.reads == reads)
    return [Part(k, own) for k in numbers for own in _in_blocks(places.spots(k).tags, tags) or ()]
