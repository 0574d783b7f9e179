"""What other images are expected to lose: labels are draws, of which the original's probabilities tell the mean."""

from __future__ import annotations

import numpy as np
import pytest

from onnxshap import payoffs
from onnxshap.core import Dataset, FloatArray
from onnxshap.plan.judging import Drop, Estimate, Judge
from onnxshap.tracing import Traced

CLASSES = 4


def logits_of(images: int, sharpness: float, rng: np.random.Generator) -> FloatArray:
    return sharpness * rng.standard_normal((images, CLASSES))


def drawn(logits: FloatArray, rng: np.random.Generator) -> np.ndarray:
    """Return labels as the softmax of logits says."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.array([rng.choice(CLASSES, p=row / row.sum()) for row in p])


def judge_of(logits: FloatArray, labels: np.ndarray | None) -> Judge:
    data = Dataset({"x": np.zeros((len(logits), 1), np.float32)}, labels)
    judge = payoffs.Accuracy()
    return Judge(_UNREAD, data, [logits], {"accuracy" if labels is not None else "agreement": judge})


_UNREAD: Traced = None  # type: ignore[assignment]  # of a model that is run; outputs are given here


@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.4, 1000.0, 0.01])  # the last is of cosines
def test_the_expectation_of_few_images_is_nearer_to_what_many_lose_than_their_labels_are(temperature: float) -> None:
    rng = np.random.default_rng(7)
    true = logits_of(20_000, 2.0, rng)
    changed = true + 0.15 * rng.standard_normal(true.shape)
    labels, given = drawn(true, rng), true * temperature  # too sure of itself, or not sure enough
    many = judge_of(given, labels).lost([changed]).mean
    measured, expected, covered = [], [], 0
    for start in range(0, len(true), 400):
        some = slice(start, start + 400)
        drop = judge_of(given[some], labels[some]).lost([changed[some]])
        assert drop.expected is not None
        measured.append(drop.mean - many)
        expected.append(drop.expected.mean - many)
        covered += many <= drop.bound
    assert np.square(expected).mean() < 0.5 * np.square(measured).mean()
    assert covered >= 0.75 * len(expected)


def test_many_labels_decide_where_probabilities_are_wrong() -> None:
    """Whatever changed was right for sure, and the original thought little of it."""
    rng = np.random.default_rng(3)
    logits = logits_of(20_000, 2.0, rng)
    changed = logits + 0.5 * rng.standard_normal(logits.shape)
    labels = np.where(changed.argmax(axis=1) == logits.argmax(axis=1), drawn(logits, rng), logits.argmax(axis=1))
    drop = judge_of(logits, labels).lost([changed])
    assert drop.expected is not None
    assert drop.expected.mean > 0.85 * drop.mean > 0.05


def test_images_sorted_by_their_labels_calibrate_alike() -> None:
    rng = np.random.default_rng(5)
    logits = logits_of(10_000, 2.0, rng)
    labels = np.concatenate([logits[:5000].argmax(axis=1), rng.integers(0, CLASSES, 5000)])
    mixed = rng.permutation(len(labels))
    found = [payoffs.Expectation.of(payoffs.Accuracy(), [logits[at]], labels[at]) for at in (slice(None), mixed)]
    assert found[0].temperature == pytest.approx(found[1].temperature, rel=0.1)


def test_a_few_labels_that_are_all_right_are_no_certainty() -> None:
    logits = logits_of(10, 2.0, np.random.default_rng(2))
    closest = np.argsort(np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2])[0]
    changed = logits.copy()
    changed[closest] *= -1
    lost, _ = payoffs.Expectation.of(payoffs.Accuracy(), [logits], logits.argmax(axis=1)).lost([changed])
    assert 0 < lost[closest] < 0.9


def test_class_scores_of_one_place_are_those_of_an_image() -> None:
    rng = np.random.default_rng(4)
    logits = logits_of(100, 1.0, rng)
    labels, changed = drawn(logits, rng), logits + rng.standard_normal(logits.shape)
    flat = judge_of(logits, labels).lost([changed])
    assert judge_of(logits[:, :, None, None], labels).lost([changed[:, :, None, None]]) == flat
    assert flat.expected is not None


def test_what_nobody_saw_change_may_change_still() -> None:
    logits = logits_of(50, 2.0, np.random.default_rng(1))
    drop = judge_of(logits, logits.argmax(axis=1)).lost([2 * logits])
    assert drop.expected == Estimate(0.0, 1 / 50)


def test_agreement_is_counted_as_it_is() -> None:
    logits = logits_of(50, 2.0, np.random.default_rng(1))
    drop = judge_of(logits, None).lost([logits[:, ::-1]])
    assert drop.expected is None
    assert drop.estimate == Estimate(drop.mean, drop.stderr)


def test_a_gain_counts_as_no_loss() -> None:
    assert Drop("accuracy", -0.02, 0.01, 100).bound == 0.01
    assert Drop("accuracy", 0.02, 0.01, 100, Estimate(-0.01, 0.002)).bound == 0.002
