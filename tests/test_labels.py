"""Specs and relations: what a rule may say, and which units follow from what the rules said."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from onnxshap.core import IntArray
from onnxshap.labels import (
    Axes,
    Balance,
    Labels,
    Op,
    Product,
    RuleError,
    Tensor,
    Trace,
    parse_spec,
    resolve,
)
from onnxshap.labels.factors import common_factors
from onnxshap.labels.relations import Freezes, Ties
from onnxshap.rules.movement import aligned

# --- specs -----------------------------------------------------------------------------------------------------------


def test_a_spec_names_the_axes_of_every_operand() -> None:
    inputs, outputs = parse_spec("n i _*, o i _*, o -> n o _*")
    assert [t.expand(4, "") for t in inputs[:2]] == [("n", "i", "_", "_"), ("o", "i", "_", "_")]
    assert inputs[2].expand(1, "") == ("o",)
    assert [t.expand(3, "") for t in outputs] == [("n", "o", "_")]


def test_a_star_may_stand_anywhere_and_for_nothing() -> None:
    (term,), _ = parse_spec("a _* b -> a")
    assert term.expand(2, "") == ("a", "b")
    assert term.expand(4, "") == ("a", "_", "_", "b")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("a b", "exactly one '->'"),
        ("a -> b -> c", "exactly one '->'"),
        ("A -> b", "lower-case names"),
        ("a _* _* -> b", "at most one '_\\*'"),
        ("a, 1 -> b", "lower-case names"),
        ("a-b -> c", "lower-case names"),
    ],
)
def test_a_malformed_spec_is_a_mistake_of_the_rule(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_spec(spec)


def _op(shapes: list[tuple[int, ...]], out: tuple[int, ...], constants: Collection[int] = ()) -> Op:
    inputs = tuple(Tensor(f"in{k}", s, k in constants) for k, s in enumerate(shapes))
    return Op(0, "Test", {}, inputs, (Tensor("out", out, False),), 17)


def test_an_operand_of_another_rank_refuses() -> None:
    with pytest.raises(RuleError, match="rank 3 does not fit"):
        Axes(Trace(), _op([(2, 3, 4)], (2, 3))).relate("a b -> a b")
    with pytest.raises(RuleError, match="rank 1 does not fit"):
        Axes(Trace(), _op([(2,)], (2, 3))).relate("a b _* -> a b")


def test_axes_of_other_sizes_cannot_be_the_same() -> None:
    with pytest.raises(RuleError, match="3 and 4 positions"):
        Axes(Trace(), _op([(2, 3)], (2, 4))).relate("a b -> a b")


def test_an_axis_that_is_not_there_refuses() -> None:
    axes = Axes(Trace(), _op([(2, 3)], (2, 3)))
    with pytest.raises(RuleError, match="axis 2 of a tensor of rank 2"):
        axes.input(0, 2)
    with pytest.raises(RuleError, match="no input 1"):
        axes.input(1, 0)
    with pytest.raises(RuleError, match="no output 1"):
        axes.output(1, 0)


def test_integers_from_the_data_refuse() -> None:
    assert _op([(2,)], (2,)).ints(1, "axes") is None
    assert replace(_op([(2,)], (2,)), attributes={"axes": [3]}).ints(1, "axes") == [3]
    with pytest.raises(RuleError, match="gets its axes from the data"):
        _op([(2,), (1,)], (2,)).ints(1, "axes")


def test_a_name_on_inputs_alone_is_summed_and_one_from_constants_is_made() -> None:
    trace = Trace()
    Axes(trace, _op([(2, 3), (4, 3)], (2, 4), {1})).relate("n i, o i -> n o")
    assert [(s.tensor, s.axis, s.weight is not None) for s in trace.sites] == [("in0", 1, True)]
    assert trace.made == [("out", 1)]
    assert trace.macs == [(0, (("in0", 0), ("in0", 1), ("in1", 0)))]


def test_an_axis_that_is_first_seen_where_it_is_joined_has_the_atoms_of_the_other() -> None:
    trace, a, b = Trace(), Tensor("a", (3, 4), False), Tensor("b", (4, 3), False)
    trace.axis(a, 0)
    mark = trace.mark()
    for one, other in (((b, -1), (a, 0)), ((a, 0), (b, 1)), ((a, 1), (b, 0)), ((b, 0), (b, 0))):
        trace.join(*one, *other)
    assert trace.axes["b", 1] == trace.axes["a", 0]
    assert trace.axes["b", 0] == trace.axes["a", 1]
    assert (trace.size, len(trace.ties)) == (7, 0)
    trace.forget(mark)
    assert trace.axes.keys() == {("a", 0), ("a", 1)}
    trace.axis(b, 1)
    trace.join(a, 0, b, 1)
    assert len(trace.ties) == 3
    with pytest.raises(RuleError, match="axes of 4 and 3 positions"):
        trace.join(a, 1, b, 1)


# --- resolve ---------------------------------------------------------------------------------------------------------


class Relations:
    """Relations by hand; every axis is a name."""

    def __init__(self) -> None:
        self.trace = Trace()

    def axis(self, name: str, size: int, made: bool = False) -> IntArray:
        atoms = self.trace.axis(Tensor(name, (size,), False), 0)
        if made:
            self.trace.made.append((name, 0))
        return atoms

    def product(self, merged: IntArray, *factors: IntArray) -> None:
        shape = [len(f) for f in factors]
        self.trace.products.append(Product(merged.reshape(shape), factors, "a Reshape"))

    def resolve(self) -> Labels:
        return resolve(self.trace)


def units(labels: Labels, name: str) -> Any:
    found = labels.units(name, 0)
    return found[:, 0].tolist() if found.shape[1] == 1 else found.tolist()


def test_what_is_made_and_not_frozen_is_a_unit() -> None:
    r = Relations()
    r.axis("made", 3, made=True)
    r.axis("not made", 2)
    labels = r.resolve()
    assert labels.n_units == 3
    assert units(labels, "made") == [0, 1, 2]
    assert units(labels, "not made") == [-1, -1]
    assert units(labels, "never seen") == []


def test_ties_join_across_axes() -> None:
    r = Relations()
    a, b, c = r.axis("a", 3, made=True), r.axis("b", 3), r.axis("c", 3)
    r.trace.tie(a, b)
    r.trace.tie(b[::-1], c)
    labels = r.resolve()
    assert units(labels, "b") == [0, 1, 2]
    assert units(labels, "c") == [2, 1, 0]


def test_ties_within_an_axis_make_fewer_units() -> None:
    r = Relations()
    a = r.axis("a", 4, made=True)
    r.trace.tie(a[:2], a[2:])
    assert units(r.resolve(), "a") == [0, 1, 0, 1]


def test_units_are_numbered_by_their_first_atom() -> None:
    r = Relations()
    a, b = r.axis("a", 2, made=True), r.axis("b", 3, made=True)
    r.trace.tie(a[1:], b[:1])
    labels = r.resolve()
    assert units(labels, "a") == [0, 1]
    assert units(labels, "b") == [1, 2, 3]


def test_a_frozen_position_freezes_what_is_tied_to_it_and_keeps_its_first_reason() -> None:
    r = Relations()
    a, b = r.axis("a", 3, made=True), r.axis("b", 3)
    r.trace.tie(a, b)
    r.trace.freeze(b[:1], "first")
    r.trace.freeze(a[:1], "second")
    labels = r.resolve()
    assert units(labels, "a") == [-1, 0, 1]
    classes = labels.axis("a", 0)
    assert classes is not None
    assert labels.reasons == {int(classes[0]): "first"}


def test_a_product_with_two_live_factors_dies_with_either() -> None:
    r = Relations()
    merged, heads, size = r.axis("merged", 6, made=True), r.axis("heads", 2), r.axis("size", 3)
    r.product(merged, heads, size)
    labels = r.resolve()
    assert labels.n_units == 5, "the factors are the units: what makes the merged axis makes them"
    keep = np.ones(5, np.bool_)
    keep[labels.units("heads", 0)[1].max()] = False
    keep[labels.units("size", 0)[0].max()] = False
    alive = labels.alive(keep)
    assert alive.axis("merged", 0).tolist() == [False, True, True, False, False, False]  # type: ignore[union-attr]
    assert alive.width("merged", 0, 6) == 2
    assert alive.cut("merged", 0)
    assert not alive.cut("never seen", 0)
    assert alive.width("never seen", 0, 7) == 7


def test_a_factor_frozen_everywhere_leaves_the_other() -> None:
    r = Relations()
    merged, channels, space = r.axis("merged", 6), r.axis("channels", 3, made=True), r.axis("space", 2)
    r.product(merged, channels, space)
    r.trace.freeze(space, "mixed")
    labels = r.resolve()
    assert units(labels, "merged") == [0, 0, 1, 1, 2, 2]
    assert units(labels, "channels") == [0, 1, 2]


def test_a_factor_frozen_in_part_stays_a_factor() -> None:
    r = Relations()
    merged, heads, size = r.axis("merged", 6, made=True), r.axis("heads", 2), r.axis("size", 3)
    r.product(merged, heads, size)
    r.trace.freeze(heads[:1], "needed")
    labels = r.resolve()
    assert labels.n_units == 4
    assert (labels.units("merged", 0) >= 0).sum(axis=1).tolist() == [1, 1, 1, 2, 2, 2]


def test_factors_all_frozen_freeze_the_product() -> None:
    r = Relations()
    merged, a, b = r.axis("merged", 4, made=True), r.axis("a", 2), r.axis("b", 2)
    r.product(merged, a, b)
    r.trace.freeze(np.concatenate([a, b]), "no")
    labels = r.resolve()
    assert labels.n_units == 0
    assert any("all it is made of stays" in reason for reason in labels.reasons.values())


def test_a_merged_position_that_stays_keeps_its_factors() -> None:
    r = Relations()
    merged, heads, size = r.axis("merged", 6, made=True), r.axis("heads", 2), r.axis("size", 3)
    r.product(merged, heads, size)
    r.trace.freeze(merged[4:5], "read by number")
    labels = r.resolve()
    assert labels.units("heads", 0).max(axis=1).tolist()[1] == -1
    assert labels.units("size", 0).max(axis=1).tolist()[1] == -1
    assert labels.n_units == 3


def test_one_axis_split_twice_alike_ties_the_factors() -> None:
    r = Relations()
    merged = r.axis("merged", 6, made=True)
    a, b, c, d = r.axis("a", 2), r.axis("b", 3), r.axis("c", 2), r.axis("d", 3)
    r.product(merged, a, b)
    r.product(merged, c, d)
    labels = r.resolve()
    assert labels.n_units == 5
    assert units(labels, "a") == units(labels, "c")
    assert units(labels, "b") == units(labels, "d")


def test_one_axis_split_in_two_ways_keeps_the_smaller_factors() -> None:
    r = Relations()
    merged = r.axis("merged", 12, made=True)
    a, b, c, d = r.axis("a", 2), r.axis("b", 6), r.axis("c", 4), r.axis("d", 3)
    r.product(merged, a, b)
    r.product(merged, c, d)
    labels = r.resolve()
    assert labels.units("a", 0).max() == -1
    assert labels.units("d", 0).max() == -1
    assert set(labels.reasons.values()) == {"an axis is split in two ways at a Reshape"}
    assert labels.n_units == 2, "what both can express: j = 6 a + b = 3 c + d is even and odd c, b by threes"


def test_positions_tied_across_a_factor_keep_the_smaller_factor() -> None:
    r = Relations()
    merged, heads, size = r.axis("merged", 6, made=True), r.axis("heads", 2), r.axis("size", 3)
    r.product(merged, heads, size)
    r.trace.tie(merged[:3], merged[3:])
    labels = r.resolve()
    assert labels.units("heads", 0).max() == -1
    assert labels.n_units == 3


def test_a_merged_axis_that_is_merged_again_has_the_factors_of_both() -> None:
    r = Relations()
    inner, outer = r.axis("inner", 4, made=True), r.axis("outer", 12, made=True)
    a, b, c = r.axis("a", 2), r.axis("b", 2), r.axis("c", 3)
    r.product(inner, a, b)
    r.product(outer, inner, c)
    labels = r.resolve()
    assert labels.n_units == 7
    found = labels.units("outer", 0)
    assert (found >= 0).sum(axis=1).tolist() == [3] * 12
    one, two, three = (labels.units(name, 0).max(axis=1) for name in "abc")
    for k, row in enumerate(found):
        assert set(row) == {one[k // 6], two[k // 3 % 2], three[k % 3]}


def test_one_axis_split_in_two_ways_that_divide_each_other_has_the_factors_of_both() -> None:
    r = Relations()
    merged = r.axis("merged", 24, made=True)
    whole, last = r.axis("whole", 12), r.axis("last", 2)
    first, rest = r.axis("first", 3), r.axis("rest", 8)
    middle = r.axis("middle", 4)
    r.product(merged, whole, last)
    r.product(merged, first, rest)
    assert r.resolve().n_units == 4, "the one between is a factor of neither: the smaller ones stay"
    r.product(whole, first, middle)
    labels = r.resolve()
    assert labels.n_units == 3 + 4 + 2
    assert (labels.units("rest", 0) >= 0).sum(axis=1).tolist() == [2] * 8


def test_two_groupings_of_an_axis_share_their_units() -> None:
    r = Relations()
    a = r.axis("a", 8, made=True)
    dealt = a.reshape(2, 4).T.ravel()  # a channel shuffle between two grouped Convs
    r.trace.balances += [Balance(a.reshape(2, 4)), Balance(dealt.reshape(2, 4))]
    labels = r.resolve()
    assert labels.n_units == 4
    for unit in range(4):
        mine = np.array(units(labels, "a")) == unit
        assert mine.reshape(2, 4).sum(axis=1).tolist() == [1, 1]
        assert mine[dealt].reshape(2, 4).sum(axis=1).tolist() == [1, 1]
    assert labels.uneven(r.trace.balances[0])
    assert labels.uneven(r.trace.balances[1])


def test_one_grouping_pairs_equal_places() -> None:
    r = Relations()
    r.trace.balances.append(Balance(r.axis("a", 6, made=True).reshape(3, 2)))
    labels = r.resolve()
    assert units(labels, "a") == [0, 1, 0, 1, 0, 1]
    assert not labels.uneven(r.trace.balances[0])


def test_groups_of_unlike_classes_take_as_many_as_it_needs() -> None:
    r = Relations()
    stem, body = r.axis("stem", 2, made=True), r.axis("body", 4, made=True)
    r.trace.tie(body[:2], body[2:])  # two of them in one group for one in the other
    r.trace.balances.append(Balance(np.concatenate([body[:3], stem[:1], stem[1:], body[3:]]).reshape(2, 3)))
    labels = r.resolve()
    assert units(labels, "body") == [0, 1, 0, 1]
    assert units(labels, "stem") == [0, 0]


def test_a_group_with_a_channel_that_stays_keeps_one_more() -> None:
    r = Relations()
    a = r.axis("a", 6, made=True)
    r.trace.freeze(a[:1], "an output")
    r.trace.balances.append(Balance(a.reshape(2, 3)))
    labels = r.resolve()
    assert units(labels, "a") == [-1, 0, 1, 0, 1, -1]
    assert "unequal" in labels.reasons[int(labels.classes[a[5]])]


def test_a_balanced_axis_of_heads_goes_by_equal_places() -> None:
    r = Relations()
    merged, heads, size = r.axis("merged", 8), r.axis("heads", 2, made=True), r.axis("size", 4, made=True)
    r.product(merged, heads, size)
    r.trace.balances.append(Balance(merged.reshape(2, 4)))
    labels = r.resolve()
    assert units(labels, "size") != [-1] * 4
    assert not labels.uneven(r.trace.balances[0])


@st.composite
def traces(draw: DrawFn) -> Trace:
    """Draw relations between a few axes: ties of axes and of pieces, frozen positions, products."""
    r = Relations()
    shapes = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=2, max_size=6))
    axes = []
    for k, shape in enumerate(shapes):
        size = int(np.prod(shape))
        merged = r.axis(f"m{k}", size, made=draw(st.booleans()))
        axes.append(merged)
        if len(shape) > 1:
            factors = [r.axis(f"f{k}.{i}", s, made=draw(st.booleans())) for i, s in enumerate(shape)]
            axes += factors
            r.product(merged, *factors)
    for _ in range(draw(st.integers(0, 6))):
        a, b = draw(st.sampled_from(axes)), draw(st.sampled_from(axes))
        n = draw(st.integers(1, min(len(a), len(b))))
        i, j = draw(st.integers(0, len(a) - n)), draw(st.integers(0, len(b) - n))
        r.trace.tie(a[i : i + n], b[j : j + n])
    for _ in range(draw(st.integers(0, 3))):
        a = draw(st.sampled_from(axes))
        i = draw(st.integers(0, len(a) - 1))
        r.trace.freeze(a[i : i + draw(st.integers(1, 3))], "frozen")
    for _ in range(draw(st.integers(0, 2))):
        a = draw(st.sampled_from(axes))
        groups = draw(st.sampled_from([g for g in range(1, len(a) + 1) if len(a) % g == 0]))
        r.trace.balances.append(Balance(np.array(draw(st.permutations(a.tolist())), np.int64).reshape(groups, -1)))
    return r.trace


@settings(max_examples=300, deadline=None)
@given(trace=traces(), keep=st.randoms(use_true_random=False))
def test_every_plan_keeps_every_relation(trace: Trace, keep: Any) -> None:
    labels = resolve(trace)
    alive = labels.alive(np.array([keep.random() < 0.5 for _ in range(labels.n_units)], np.bool_)).classes[
        labels.classes
    ]
    a, b = trace.ties.pairs()
    assert (alive[a] == alive[b]).all()
    assert alive[trace.frozen.atoms()].all()
    for product in trace.products:
        wanted = functools.reduce(np.logical_and.outer, (alive[f] for f in product.factors))
        assert np.array_equal(alive[product.merged], wanted), product
    for balance in trace.balances:
        assert len(np.unique(alive[balance.blocks].sum(axis=1))) == 1


@settings(max_examples=300, deadline=None)
@given(trace=traces(), random=st.randoms(use_true_random=False))
def test_the_order_of_relations_does_not_matter(trace: Trace, random: Any) -> None:
    pairs = [random.sample(pair, 2) for pair in zip(*(row.tolist() for row in trace.ties.pairs()), strict=True)]
    freezes, products, balances = list(trace.frozen), list(trace.products), list(trace.balances)
    for items in (pairs, freezes, products, balances):
        random.shuffle(items)
    ties, frozen = Ties(), Freezes()
    ties.add(*np.array(pairs, np.int64).reshape(-1, 2).T)
    for atoms, reason in freezes:
        frozen.add(atoms[::-1].astype(np.int64), reason)
    shuffled = replace(trace, ties=ties, frozen=frozen, products=products, balances=balances)
    one, other = resolve(trace), resolve(shuffled)
    assert one.n_units == other.n_units
    assert np.array_equal(one.classes, other.classes)
    width = max(one.slots.shape[1], other.slots.shape[1])
    for labels in (one, other):
        assert labels.slots.shape[1] == width
    assert np.array_equal(np.sort(one.slots), np.sort(other.slots))
    assert one.reasons.keys() == other.reasons.keys()


# --- arithmetic of sizes ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_common_factors_make_up_both(factors: list[int], random: Any) -> None:
    def grouped() -> list[int]:
        cuts = sorted(random.sample(range(1, len(factors)), random.randint(0, len(factors) - 1))) if factors[1:] else []
        return [int(np.prod(part)) for part in np.split(np.array(factors), cuts)]

    source, target = grouped(), grouped()
    found = common_factors(source, target)
    assert found is not None, "both are runs of the same factors"
    assert 1 not in found
    for sizes in (source, target):
        ends = set(np.cumprod(sizes).tolist())
        assert ends - {1} <= set(np.cumprod(found).tolist())


def test_no_common_factors() -> None:
    assert common_factors([6, 4], [4, 6]) is None
    assert common_factors([4], [2, 2]) == [2, 2]
    assert common_factors([], [1]) == []


@pytest.mark.parametrize(
    ("source", "target", "runs"),
    [
        ((2, 64, 7, 7), (2, 3136), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 8, 1, 1), (2, 8), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        ((2, 8), (2, 8, 1), [([0], [0]), ([1], [1]), ([], [2])]),
        ((2, 1, 8), (2, 8), [([0], [0]), ([1, 2], [1])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
        ((), (1,), [([], [0])]),
    ],
)
def test_aligned(source: tuple[int, ...], target: tuple[int, ...], runs: Any) -> None:
    assert aligned(source, target) == runs
