"""One battery over all estimators: axioms, budgets, repeatability, and exact values of games with closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshap.core import Estimator, FloatArray, Game
from onnxshap.errors import BudgetError
from onnxshap.estimators import Exact, Fisher, LeaveOneOut, Permutation, Regression, SharedPermutation, Taylor, rows
from onnxshap.estimators.images import Alike, PerImage, Scope, draw_images
from onnxshap.game.alike import alike_images
from onnxshap.payoffs.builtin import KL
from tests.games import SOLVED, FunctionGame, Solved, TableGame, Witness, additive, brute_force, majority

SHAPLEY: dict[str, Estimator] = {
    "exact": Exact(),
    "pair": Permutation(),
    "pairs": Permutation(pairs=3),
    "independent": Permutation(antithetic=False),
    "budget": Permutation(pairs=2, max_evals=31),
    "shared": SharedPermutation(permutations=3),
    "stratified": Permutation(pairs=2, stratified=True),
    "regression": Regression(),
}
FIRST_ORDER: dict[str, Estimator] = {
    "loo": LeaveOneOut(),
    "taylor": Taylor(),
    "taylor-signed": Taylor("signed"),
    "taylor-sq": Taylor("square", batch=2),
    "fisher": Fisher(),
}
ALL = SHAPLEY | FIRST_ORDER

every_shapley = pytest.mark.parametrize("estimator", SHAPLEY.values(), ids=SHAPLEY.keys())
every_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())
every_game = pytest.mark.parametrize("solved", SOLVED.values(), ids=SOLVED.keys())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_game(seed: int, n: int, n_images: int) -> TableGame:
    return TableGame(rng(seed).normal(size=(n_images, 2**n)))


def close(actual: FloatArray, expected: Any, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=atol)


def repeated(estimator: Estimator, game: Game, seeds: int) -> FloatArray:
    return np.stack([estimator(game, rng(seed)).phi for seed in range(seeds)])


# Axioms.


@every_shapley
@every_game
def test_values_sum_to_what_all_units_are_worth(estimator: Estimator, solved: Solved) -> None:
    game = Witness(solved.game)
    values = estimator(game, rng())
    used = np.unique(game.images)
    ones = np.ones((len(used), game.n_units), np.float32)
    close(values.phi.sum(), (solved.game(used, ones) - solved.game(used, 0 * ones)).mean())


@every_shapley
@every_game
def test_a_unit_that_changes_nothing_is_worth_nothing(estimator: Estimator, solved: Solved) -> None:
    close(estimator(solved.game, rng()).phi[list(solved.dummies)], 0, atol=1e-15)


@every_shapley
def test_a_sum_of_games_is_worth_the_sum_of_their_values(estimator: Estimator) -> None:
    a, b = random_game(1, 5, 4), random_game(2, 5, 4)
    both = TableGame(3 * a.table - b.table)
    close(estimator(both, rng()).phi, 3 * estimator(a, rng()).phi - estimator(b, rng()).phi)


@every_shapley
@every_game
def test_twins_get_equal_values(estimator: Estimator, solved: Solved) -> None:
    phi = repeated(estimator, solved.game, seeds=1 if isinstance(estimator, Exact) else 200)
    for a, b in solved.twins:
        difference = phi[:, a] - phi[:, b]
        error = difference.std() / np.sqrt(len(difference))
        assert abs(difference.mean()) <= 4 * error + 1e-12
        assert error < 0.1


# Exact values.


@every_game
def test_exact_values(solved: Solved) -> None:
    close(Exact()(solved.game, rng()).phi, solved.phi)


@every_game
def test_leave_one_out_values(solved: Solved) -> None:
    close(LeaveOneOut()(solved.game, rng()).phi, solved.loo)


@every_game
def test_the_oracle_agrees_with_the_closed_forms(solved: Solved) -> None:
    close(brute_force(solved.game).mean(axis=0), solved.phi)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 4), n_images=st.integers(1, 3))
def test_exact_is_brute_force_on_random_games(seed: int, n: int, n_images: int) -> None:
    game = random_game(seed, n, n_images)
    per_image = brute_force(game)
    values = Exact()(game, rng())
    close(values.phi, per_image.mean(axis=0))
    spread = per_image.std(axis=0, ddof=1) / np.sqrt(n_images) if n_images > 1 else np.zeros(n)
    close(values.stderr, spread)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 7), n_images=st.integers(1, 3))
def test_one_antithetic_pair_is_exact_where_only_pairs_of_units_interact(seed: int, n: int, n_images: int) -> None:
    pairwise = rng(seed).normal(size=(n_images, n, n))
    game = FunctionGame(n, n_images, lambda images, s: np.einsum("ra,rab,rb->r", s, pairwise[images], s))
    close(Permutation()(game, rng(seed)).phi, Exact()(game, rng()).phi, atol=1e-10)


def test_exact_refuses_groups_that_are_too_large() -> None:
    game = additive(np.ones((1, 5)))
    close(Exact(max_units=5)(game, rng()).phi, 1)
    with pytest.raises(BudgetError, match=r"5 units need 2\^5 coalitions.* 2\^4 that are run"):
        Exact(max_units=4)(game, rng())


# Sampling.


@pytest.mark.parametrize("name", ["gloves", "max_v1", "max_v2"])
@pytest.mark.parametrize(
    "estimator",
    [
        Permutation(),
        Permutation(pairs=2, antithetic=False),
        Permutation(max_evals=5 * 4),
        Permutation(max_evals=7),
        SharedPermutation(1),
        Permutation(stratified=True),
        Permutation(pairs=2, stratified=True, antithetic=False),
    ],
    ids=str,
)
def test_sampling_is_unbiased(estimator: Estimator, name: str) -> None:
    phi = repeated(estimator, SOLVED[name].game, seeds=400)
    error = phi.std(axis=0, ddof=1) / np.sqrt(len(phi))
    assert (abs(phi.mean(axis=0) - SOLVED[name].phi) <= 4 * error + 1e-12).all()
    assert (error < 0.1).all()


def test_stderr_covers_the_noise_of_the_sampling() -> None:
    net = SOLVED["max_v2"].game
    same = FunctionGame(4, 64, lambda images, s: net(np.full_like(images, 2), s))
    runs = [Permutation(antithetic=False)(same, rng(seed)) for seed in range(300)]
    awake = [0, 2, 3]  # the third image leaves unit 1 at zero
    claimed = np.mean([run.stderr[awake] ** 2 for run in runs], axis=0)
    measured = np.var([run.phi[awake] for run in runs], axis=0, ddof=1)
    assert (measured > 0).all()
    assert (abs(measured / claimed - 1) < 0.35).all()  # 4 standard deviations of a variance from 300 draws


@pytest.mark.parametrize("estimator", [*SHAPLEY.values(), LeaveOneOut(), Taylor("signed")], ids=repr)
def test_stderr_is_the_standard_error_over_images(estimator: Estimator) -> None:
    weights = rng(3).integers(-8, 8, size=(6, 4)).astype(float)
    game = Witness(additive(weights))
    values = estimator(game, rng())
    used = weights[np.unique(game.images)]
    close(values.stderr, used.std(axis=0, ddof=1) / np.sqrt(len(used)))


@every_estimator
def test_one_image_has_no_standard_error(estimator: Estimator) -> None:
    assert (estimator(random_float_game(1), rng()).stderr == 0).all()


def test_own_permutations_beat_shared_ones_and_pairs_beat_single_walks() -> None:
    # Concave in the size of the coalition, as networks are.
    power = rng(5).uniform(0.5, 2, size=12)
    game = FunctionGame(12, 32, lambda _, s: np.sqrt(1 + (s * power).sum(axis=1)))
    exact = Exact()(game, rng()).phi

    def error(estimator: Estimator) -> float:
        return float(((repeated(estimator, game, seeds=20) - exact) ** 2).mean())

    shared, single, paired = error(SharedPermutation(2)), error(Permutation(antithetic=False)), error(Permutation())
    assert single < shared / 8
    assert paired < single / 2


def test_regression_beats_permutations_where_there_is_one_number_for_all_images() -> None:
    power = rng(5).uniform(0.3, 2, size=14)
    pairs = rng(6).normal(size=(14, 14)) * 0.1
    game = FunctionGame(
        14, 1, lambda _, s: np.sqrt(1 + (s * power).sum(axis=1)) + np.tanh(np.einsum("ra,ab,rb->r", s, pairs, s))
    )
    exact = Exact()(game, rng()).phi

    def error(estimator: Estimator) -> float:
        return float(((repeated(estimator, game, seeds=30) - exact) ** 2).mean())

    assert error(Regression(10)) < error(Permutation(pairs=5))
    assert error(Regression(10)) < error(Regression(5)) / 2 < error(Regression(2)) / 4
    assert error(Regression(2)) < exact.var()  # the fewest that are allowed


def test_regression_keeps_its_budget() -> None:
    game = Witness(random_game(7, 7, 2))
    values = Regression(4).reduce(np.zeros((2, 7)), Regression(4).plan(Scope(2, 7, 50), rng()))
    assert values.evals == 2 * (2 + 22)
    with pytest.raises(
        BudgetError, match="max_evals is 31, less than two coalitions a unit on 2 images; raise it to 32"
    ):
        Regression().plan(Scope(2, 7, 31), rng())
    assert Regression(4)(game, rng()).evals == game.rows == 2 * (2 + 28)
    walks = game.coalitions.reshape(2, 30, 7)
    assert (walks[0] == walks[1]).all() and (walks[0, 2:16] == 1 - walks[0, 16:]).all()


def test_stratified_walks_put_every_unit_once_into_every_place() -> None:
    game = Witness(random_game(10, 5, 10))
    Permutation(stratified=True, antithetic=False)(game, rng())
    walks = game.coalitions[20:].reshape(10, 2, 4, 5)[:, 0]  # images, steps, units
    places = walks.sum(axis=1).astype(int)  # how many steps a unit stays: its place
    for square in (places[:5], places[5:]):
        assert (np.sort(square, axis=0) == np.arange(5)[:, None]).all()
        assert (np.sort(square, axis=1) == np.arange(5)).all()
    assert (places[:5] != places[5:]).any()


@pytest.mark.parametrize("estimator", [Permutation(reduction="mean+2std"), SharedPermutation(reduction="mean+2std")])
def test_mean_plus_two_sigma_over_images(estimator: Estimator) -> None:
    weights = rng(4).normal(size=(5, 3))
    close(estimator(additive(weights), rng()).phi, weights.mean(axis=0) + 2 * weights.std(axis=0))


@pytest.mark.parametrize("least", [2, 3, 5, 9])
def test_min_units_spares_the_small_coalitions_and_keeps_the_sum(least: int) -> None:
    game = Witness(random_game(6, 5, 3))
    values = Permutation(min_units=least)(game, rng())
    sizes = np.unique(game.coalitions.sum(axis=1))
    assert sizes.tolist() == [0, *range(min(least, 5), 6)]
    assert game.rows == values.evals
    table = random_game(6, 5, 3).table
    close(values.phi.sum(), (table[:, -1] - table[:, 0]).mean())
    close(Permutation(min_units=least)(majority(5), rng()).phi.sum(), 1)
    close(Permutation(min_units=least)(additive(np.full((2, 5), 0.5)), rng()).phi, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_max_share_spares_the_large_coalitions_and_keeps_the_sum(share: float) -> None:
    game = Witness(random_game(6, 5, 3))
    values = Permutation(max_share=share)(game, rng())
    assert np.unique(game.coalitions.sum(axis=1)).tolist() == [0, *range(1, int(5 * share) + 1), 5]
    assert game.rows == values.evals == 3 * (2 + 2 * int(5 * share))
    table = random_game(6, 5, 3).table
    close(values.phi.sum(), (table[:, -1] - table[:, 0]).mean())
    close(Permutation(max_share=share)(majority(5), rng()).phi.sum(), 1)
    close(Permutation(max_share=share)(additive(np.full((2, 5), 0.5)), rng()).phi, 0.5)


def test_max_share_leaves_less_error_where_there_are_units_to_spare() -> None:
    worth = np.linspace(0.5, 1.5, 16)
    game = FunctionGame(16, 8, lambda i, s: np.minimum((s * worth).sum(axis=1), 6) + 0.4 * np.sin(7 * s @ worth + i))
    truth = Permutation(pairs=400)(game, rng(9)).phi

    def error(share: float) -> float:
        found = repeated(Permutation(max_evals=8 * 18, max_share=share), game, seeds=60)
        return float(((found - truth) ** 2).mean())

    assert error(0.5) < 0.7 * error(1.0)


def test_max_share_of_all_changes_nothing() -> None:
    game = random_game(7, 4, 3)
    assert Permutation(max_share=0.8).plan(Scope(3, 4), rng()).rows.tolist() == [2 + 2 * 3] * 3
    assert (
        Permutation(max_share=1.0)(game, rng()).phi.tobytes() == Permutation(max_share=0.8)(game, rng()).phi.tobytes()
    )


def test_min_units_below_two_changes_nothing() -> None:
    game = random_game(7, 4, 3)
    assert Permutation(min_units=1)(game, rng()).phi.tobytes() == Permutation()(game, rng()).phi.tobytes()


# Budgets.


@every_estimator
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_row_is_counted(estimator: Estimator, n: int) -> None:
    game = Witness(random_float_game(5, n))
    assert estimator(game, rng()).evals == game.rows


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 6),
    n_images=st.integers(1, 6),
    pairs=st.integers(1, 3),
    antithetic=st.booleans(),
    min_units=st.integers(0, 4),
    max_evals=st.integers(0, 200),
)
def test_a_budget_is_kept_and_used_up_images_first(
    n: int, n_images: int, pairs: int, antithetic: bool, min_units: int, max_evals: int
) -> None:
    game = Witness(random_game(n, n, n_images))
    estimator = Permutation(pairs, antithetic, max_evals, min_units=min_units)
    inner = max(0, n - max(1, min_units))
    if max_evals < 2 + inner:
        with pytest.raises(BudgetError, match=f"max_evals is {max_evals}.*raise it to {2 + inner}"):
            estimator(game, rng())
        assert not game.calls
        return
    values = estimator(game, rng())
    assert values.evals == game.rows <= max_evals
    images, per_image = np.unique(game.images, return_counts=True)
    assert len(images) == min(n_images, max_evals // (2 + inner))
    assert per_image.max() - per_image.min() <= inner  # nobody walks twice more than anybody else
    everything = n_images * (2 + 2 * pairs * inner)
    assert max_evals - game.rows < 2 + inner or game.rows == everything


def test_a_budget_that_covers_everything_is_no_budget() -> None:
    game = random_game(8, 5, 3)
    free, enough = Permutation(pairs=2)(game, rng()), Permutation(pairs=2, max_evals=10**6)(game, rng())
    assert free.evals == enough.evals == 3 * (2 + 4 * 4)
    assert free.phi.tobytes() == enough.phi.tobytes()


def test_a_small_budget_draws_its_images_at_random() -> None:
    drawn = set()
    for seed in range(40):
        game = Witness(random_game(9, 3, 6))
        Permutation(max_evals=8)(game, rng(seed))
        drawn.add(tuple(np.unique(game.images)))
    assert len(drawn) > 5
    assert {image for pair in drawn for image in pair} == set(range(6))


def test_pairs_are_reversed_walks() -> None:
    game = Witness(random_game(10, 6, 2))
    Permutation(pairs=2)(game, rng())
    walks = game.coalitions[4:].reshape(2, 2, 2, 5, 6)  # images, pairs, (there, back), steps, units
    assert (walks[:, :, 0] == 1 - walks[:, :, 1, ::-1]).all()
    assert len({walk.tobytes() for walk in walks.reshape(8, -1)}) == 8


def test_shared_permutations_are_shared() -> None:
    game = Witness(random_game(10, 6, 3))
    SharedPermutation(2)(game, rng())
    walks = game.coalitions[6:].reshape(3, 2, 5, 6)
    assert (walks == walks[0]).all()
    assert (walks[:, :, :-1] >= walks[:, :, 1:]).all()
    assert (walks.sum(axis=-1) == [5, 4, 3, 2, 1]).all()
    assert (walks[0, 0] != 1 - walks[0, 1, ::-1]).any()  # independent, not antithetic


@pytest.mark.parametrize("make", [lambda: Permutation(pairs=0), lambda: SharedPermutation(permutations=0)])
def test_no_walk_at_all_is_refused(make: Callable[[], Estimator]) -> None:
    with pytest.raises(BudgetError, match=r"is 0; .*at least one"):
        make()


# Repeatability and batches.


@every_estimator
def test_a_seed_repeats_bit_for_bit(estimator: Estimator) -> None:
    game = random_float_game(5)
    first, again = estimator(game, rng(1)), estimator(game, rng(1))
    assert first.phi.tobytes() == again.phi.tobytes()
    assert first.stderr.tobytes() == again.stderr.tobytes()


@pytest.mark.parametrize("estimator", [e for e in SHAPLEY.values() if not isinstance(e, Exact | Regression)], ids=repr)
def test_another_seed_draws_other_permutations(estimator: Estimator) -> None:
    game = random_game(11, 5, 3)
    assert (estimator(game, rng(1)).phi != estimator(game, rng(2)).phi).any()


@pytest.mark.parametrize("estimator", [Exact(), *FIRST_ORDER.values()], ids=repr)
def test_methods_without_draws_leave_the_generator_alone(estimator: Estimator) -> None:
    generator = rng()
    estimator(random_float_game(3), generator)
    assert generator.bit_generator.state == rng().bit_generator.state


@every_estimator
@pytest.mark.parametrize("limit", [1, 3, 8, 50])
def test_values_do_not_depend_on_the_batch(estimator: Estimator, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    game = Witness(random_float_game(5, 4))
    expected = estimator(game, rng())
    monkeypatch.setattr(rows, "ROWS_PER_CALL", limit)
    game.calls.clear()
    values = estimator(game, rng())
    assert max(len(images) for images, _ in game.calls) <= limit
    assert values.evals == game.rows
    close(values.phi, expected.phi, atol=1e-14)
    if not isinstance(estimator, Exact):  # whose matrix product may round differently
        assert values.phi.tobytes() == expected.phi.tobytes()
        assert values.stderr.tobytes() == expected.stderr.tobytes()


def test_rows_come_in_large_batches_that_end_with_an_image() -> None:
    game = Witness(additive(rng().normal(size=(200, 64))))
    Permutation()(game, rng())
    ends, *walks = game.calls
    assert len(ends[0]) == 400
    assert len(walks) == 7  # 200 images, 2 * 63 rows each, 32 images to a call of at most 4096 rows
    for images, _ in walks:
        assert (np.unique(images, return_counts=True)[1] == 126).all()
    game.calls.clear()
    LeaveOneOut()(game, rng())
    assert [len(images) for images, _ in game.calls] == [200, 64 * 64, 64 * 64, 64 * 64, 8 * 64]


def test_large_groups_keep_their_calls_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "FLOATS_PER_CALL", 2**12)
    sizes = []

    def payoff(images: Any, coalitions: Any) -> FloatArray:
        sizes.append(coalitions.size)
        return np.asarray(coalitions.sum(axis=1), np.float64)

    for estimator in (Permutation(), SharedPermutation(2), LeaveOneOut(), Fisher()):
        close(estimator(FunctionGame(300, 2, payoff), rng()).phi, 1)
    assert max(sizes) <= 2**12


@every_estimator
def test_a_single_unit_is_worth_what_it_adds(estimator: Estimator) -> None:
    values = estimator(additive(np.array([(2.0,), (2.0,)]), offset=1), rng())
    squared = isinstance(estimator, Fisher) or (isinstance(estimator, Taylor) and estimator.kind == "square")
    close(values.phi, 4.0 if squared else 2.0)
    close(values.stderr, 0)


@every_estimator
def test_a_group_without_units_is_not_played(estimator: Estimator) -> None:
    game = Witness(additive(np.zeros((3, 0))))
    values = estimator(game, rng())
    assert values.phi.shape == values.stderr.shape == (0,)
    assert values.evals == 0
    assert not game.calls


def test_a_walk_that_does_not_add_up_is_caught() -> None:
    twice = np.array([[0, 0, 1]])
    with pytest.raises(AssertionError, match="do not sum"):
        rows.walk_gains(majority(3), np.array([0]), twice, np.ones(1), np.zeros(1), inner=2)


# First order.


def random_float_game(n_images: int, n: int = 4) -> FunctionGame:
    """Smooth, with interactions, and with row-wise arithmetic that no batch size changes."""
    w = rng(12).normal(size=(n_images, n))
    return FunctionGame(n, n_images, lambda images, s: np.tanh((s * w[images]).sum(axis=1) + 0.3))


INTEGERS = np.array([(3, -2, 0), (-1, 2, 0), (5, 4, 0), (1, 0, 0)], np.float64)


@pytest.mark.parametrize(
    ("estimator", "phi"),
    [
        (Taylor(), (2.5, 2, 0)),
        (Taylor("signed"), (2, 1, 0)),
        (Taylor("square"), (4, 1, 0)),
        (Taylor("square", batch=4), (4, 1, 0)),
        (Taylor("square", batch=3), (5, 2, 0)),  # two batches of two
        (Taylor("square", batch=1), (9, 6, 0)),
        (Fisher(), (9, 6, 0)),
    ],
    ids=str,
)
def test_first_order_is_exact_on_a_linear_payoff(estimator: Estimator, phi: tuple[float, ...]) -> None:
    assert estimator(additive(INTEGERS), rng()).phi.tolist() == list(phi)


def test_standard_errors_of_first_order_scores() -> None:
    game = additive(INTEGERS)
    close(Taylor()(game, rng()).stderr, abs(INTEGERS).std(axis=0, ddof=1) / 2)
    close(Fisher()(game, rng()).stderr, (INTEGERS**2).std(axis=0, ddof=1) / 2)
    close(Taylor("square", batch=2)(game, rng()).stderr, (4, 2, 0))  # batches (1, 9), (0, 4), (0, 0)
    close(Taylor("square")(game, rng()).stderr, 0)


@pytest.mark.parametrize(
    ("kind", "phi"), [("abs", (0.1, 0.1, 0.5, 0.1)), ("signed", (0.1, 0.1, 0.5, -0.1))], ids=["abs", "signed"]
)
def test_first_order_has_the_signs_and_figures_of_torchpruner(kind: Any, phi: tuple[float, ...]) -> None:
    game = SOLVED["max_v2"].game
    close(Taylor(kind)(game, rng()).phi, phi, atol=0.02)
    close(Taylor(kind, eps=2.0**-20)(game, rng()).phi, phi, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_small_steps_are_derivatives(seed: int) -> None:
    w = rng(seed).normal(size=(3, 5))
    game = FunctionGame(5, 3, lambda images, s: np.tanh((s * w[images]).sum(axis=1)))
    slopes = w * (1 - np.tanh(w.sum(axis=1, keepdims=True)) ** 2)
    close(Taylor("signed")(game, rng()).phi, slopes.mean(axis=0), atol=0.05)
    close(replace(Fisher(), eps=2.0**-18)(game, rng()).phi, (slopes**2).mean(axis=0), atol=1e-3)


def test_a_step_of_one_is_leave_one_out() -> None:
    game = SOLVED["max_v1"].game
    assert Taylor("signed", eps=1)(game, rng()).phi.tobytes() == LeaveOneOut()(game, rng()).phi.tobytes()


# Images that are alike.


ALIKE = Alike(np.array([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]), np.arange(12) % 3)
"""Of three kinds, number % 3."""


def kinds_game(n: int, images: int, kinds: int) -> FunctionGame:
    """A game whose values depend on the image's kind above all."""
    weights = rng(11).normal(size=(kinds, n))
    return FunctionGame(n, images, lambda i, s: (s * weights[i % kinds]).sum(axis=1))


@pytest.mark.parametrize("used", [1, 3, 5, 12])
def test_every_image_is_drawn_as_likely_as_any_other(used: int) -> None:
    drawn = [draw_images(12, used, rng(seed), ALIKE) for seed in range(3000)]
    assert all(len(set(found.tolist())) == used for found in drawn)
    first = np.bincount([int(found[0]) for found in drawn], minlength=12) / 250  # and so is the first of them
    assert (abs(np.bincount(np.concatenate(drawn), minlength=12) / (250 * used) - 1) < 0.25).all()
    assert (abs(first - 1) < 0.25).all()


@pytest.mark.parametrize("used", [3, 6, 9])
def test_every_kind_of_image_gets_its_share(used: int) -> None:
    for seed in range(20):
        assert np.bincount(draw_images(12, used, rng(seed), ALIKE) % 3).tolist() == [used // 3] * 3
        single = Alike(np.arange(8), np.zeros(8, np.int64))
        assert sorted((draw_images(8, 8, rng(seed), single)[:4] % 2).tolist()) in ([0] * 4, [1] * 4)


def test_images_by_their_kinds_leave_less_error() -> None:
    game, kinds = kinds_game(5, 60, 6), np.arange(60) % 6
    alike, truth = Alike(np.argsort(kinds, kind="stable"), kinds), Exact()(game, rng()).phi

    def error(alike: Alike | None) -> float:
        found = []
        for seed in range(40):
            schedule = Permutation().plan(Scope(60, 5, 12 * 10, alike), rng(seed))
            assert schedule.rows.sum() <= 12 * 10
            found.append(((Permutation().per_image(game, schedule).mean(axis=0) - truth) ** 2).mean())
        return float(np.mean(found))

    assert error(alike) < error(None) / 10


KINDS = rng(5).normal(size=(6, 3))
"""What units are worth to images of six kinds, on average."""


class Drawn:
    """A game on images that were drawn, with labels, from all that there might be: a kind's values and its own."""

    n_units = 3

    def __init__(self, n_images: int, rng: np.random.Generator) -> None:
        self.n_images = n_images
        kinds = rng.integers(0, 6, n_images)
        self.alike = Alike(np.argsort(kinds, kind="stable"), kinds)
        self._weights = 3 * KINDS[kinds] + rng.normal(size=(n_images, self.n_units))

    def __call__(self, images: np.ndarray, coalitions: np.ndarray) -> FloatArray:
        return np.asarray((coalitions * self._weights[images]).sum(axis=1))


@pytest.mark.parametrize(("estimator", "played"), [
    (Permutation(), 32), (Permutation(), 96), (LeaveOneOut(), 40), (Taylor("signed", eps=1.0), 32),
])  # fmt: skip
def test_standard_errors_know_that_images_are_drawn_by_their_kinds(estimator: PerImage, played: int) -> None:
    """Over calibration sets drawn anew, the first images of which are played, as where a group is decided early."""
    found, variances, blind = [], [], []
    for seed in range(400):
        game = Drawn(96, rng(seed))
        schedule = estimator.plan(Scope(96, 3, alike=game.alike), rng(seed + 1000)).part(0, played)
        figures = estimator.per_image(game, schedule)
        values = estimator.reduce(figures, schedule)
        found.append(values.phi)
        variances.append(values.stderr**2)
        blind.append(figures.var(axis=0, ddof=1) / played)
    real = np.var(found, axis=0).sum()
    assert np.mean(variances, axis=0).sum() == pytest.approx(real, rel=0.15)
    assert np.mean(blind, axis=0).sum() > (1.6 if played < 96 else 0.8) * real


def test_lone_images_of_a_kind_are_told_apart_from_those_of_the_next() -> None:
    """Kinds with one image, or none, are taken together with the next."""
    figures, kinds = rng(3).normal(size=(6, 2)), np.array([7, 0, 0, 7, 3, 9])
    every = np.repeat([0, 1, 3, 7, 9], 10)
    mean, whole = figures.mean(axis=0), figures.var(axis=0, ddof=1)
    wanted = whole / 50
    for at, share in (([1, 2], 0.2), ([4, 0, 3, 5], 0.8)):
        wanted += len(at) / 6 * figures[at].var(axis=0, ddof=1) * (1 / 6 - 1 / 50)
        wanted += ((len(at) / 6 - share) * (figures[at].mean(axis=0) - mean)) ** 2
    assert rows.over_images(figures, 0, kinds=(kinds, every)).stderr ** 2 == pytest.approx(wanted)
    assert (rows.over_images(figures[:1], 0, kinds=(kinds[:1], every)).stderr == 0).all()


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 6), pairs=st.integers(1, 3), max_evals=st.integers(8, 400))
def test_pairs_come_before_further_images_where_kinds_are_known(n: int, pairs: int, max_evals: int) -> None:
    schedule = Permutation(pairs).plan(Scope(12, n, max_evals, ALIKE), rng())
    inner = n - 1
    whole = 12 * (2 + 2 * pairs * inner)
    assert schedule.rows.sum() <= max_evals
    assert schedule.rows.sum() == whole or max_evals - schedule.rows.sum() < 2 + inner
    assert schedule.rows.tolist() == (2 + inner * schedule.walks).tolist()
    assert (schedule.walks[:-1] >= 2).all() and schedule.walks[0] <= max(3, 2 * pairs)
    assert len(schedule) >= min(12, max_evals // (2 + 2 * inner))
    assert Permutation(pairs, antithetic=False).plan(Scope(12, n, n + 1, ALIKE), rng()).walks.tolist() == [1]


def test_images_are_alike_however_their_scores_are_rounded() -> None:
    def order(scores: FloatArray) -> list[int]:
        found = alike_images(KL(), [scores], None)
        assert found is not None
        return [int(image) for image in found.order]

    scores = rng(3).normal(size=(60, 3))
    found = order(scores)
    assert sorted(found) == list(range(60)) and found != np.argsort(scores.argmax(axis=1), kind="stable").tolist()
    assert order(scores * (1 + 1e-7 * rng(4).normal(size=scores.shape))) == found
    scores[7, 1] = np.inf  # by class alone
    assert order(scores) == np.argsort(scores.argmax(axis=1), kind="stable").tolist()
