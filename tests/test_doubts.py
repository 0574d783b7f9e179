"""What is told of labels that cannot be meant for the model."""

from __future__ import annotations

import numpy as np

import onnxshap
from onnxshap import payoffs
from onnxshap.core import Array
from onnxshap.measure import label_notes
from tests.exactness import net

LABELS = np.arange(60) % 6


def notes(labels: Array | None, outputs: Array) -> list[str]:
    payoff = payoffs.choose(None if labels is None else "ce", [outputs], labels, ["y"])
    return list(label_notes(payoff, [outputs], labels))


def test_labels_that_the_original_gives_less_than_chance_would_are_told_of() -> None:
    """Classes by other numbers than the model's (a folder of some of them): every value was made of them."""
    logits = 9 * np.eye(6, dtype=np.float32)[LABELS]
    (note,) = notes((LABELS + 1) % 6, logits)
    assert note.startswith("the original gets 0.0% of the labels right, no more than chance (6 classes)")
    assert not notes(LABELS, logits) and not notes(LABELS - LABELS % 2, logits)  # of which it knows half
    assert not notes((LABELS + 1) % 6, logits / 30)  # sure of nothing, as nets are that learned nothing
    assert not notes(None, logits)
    (note,) = notes((LABELS > 2).astype(np.int64), 9.0 - 18.0 * (LABELS[:, None] > 2))
    assert "(2 classes)" in note


def test_every_job_tells_of_such_labels() -> None:
    model = net(
        "(float[N,6] x) => (float[N,6] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }",
        w=9 * np.eye(6, 8, dtype=np.float32), v=np.eye(8, 6, dtype=np.float32),
    )  # fmt: skip
    data = {"x": np.eye(6, dtype=np.float32)[LABELS], "labels": (LABELS + 1) % 6}
    for notes_of_job in (
        onnxshap.prune(model, data, keep_macs=0.9, method="l1").notes,
        onnxshap.score(model, data, samples=24).notes,
        onnxshap.unify(model, data, keep_bytes=1.0).notes,
        onnxshap.compare(model, data=data)[0].notes,
    ):
        assert any(note.startswith("the original gets 0.0% of the labels right") for note in notes_of_job)
