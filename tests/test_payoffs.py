"""What a payoff says of outputs, which one is chosen, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, log_softmax, softmax

from onnxshap.core import Array, FloatArray, Payoff
from onnxshap.errors import DataError
from onnxshap.payoffs import KL, MSE, NAMES, Accuracy, CrossEntropy, Custom, Joint, choose

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 4.0]], dtype=np.float32)
PROBABILITIES = softmax(LOGITS, axis=1)
LABELS = np.array([0, 1])

ALL: list[Payoff] = [
    *(CrossEntropy(), CrossEntropy(probabilities=True), KL(), KL(probabilities=True), MSE(), Accuracy()),
    Joint((KL(), MSE()), (0.5, 2.0)),
]


def floats(*shape: int) -> st.SearchStrategy[FloatArray]:
    return hnp.arrays(np.float64, shape, elements=st.floats(-50.0, 50.0))


def refused(call: Callable[[], object], *fragments: str) -> None:
    """The call raises one line that says all of this."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


# Cross entropy --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(floats(4, 5), hnp.arrays(np.int64, 4, elements=st.integers(0, 4)))
def test_cross_entropy_of_logits_is_scipys_log_softmax_at_the_label(logits: FloatArray, labels: Array) -> None:
    expected = log_softmax(logits, axis=1)[np.arange(4), labels]
    np.testing.assert_allclose(CrossEntropy()([logits], [], labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("payoff", ALL, ids=lambda payoff: payoff.name)
@pytest.mark.parametrize("classes", [11, 130])
def test_a_row_is_worth_the_same_to_the_last_bit_alone_and_beside_others(payoff: Payoff, classes: int) -> None:
    rng = np.random.default_rng(0)
    reference, outputs = softmax(rng.normal(size=(2, 9, classes)), axis=2).astype(np.float32)
    labels = rng.integers(0, classes, 9)
    found = payoff([outputs] * 2, [reference] * 2, labels)
    rows = [slice(k, k + 1) for k in range(9)]
    alone = [payoff([outputs[row]] * 2, [reference[row]] * 2, labels[row]) for row in rows]
    assert found.tobytes() == np.concatenate(alone).tobytes()


@settings(deadline=None)
@given(floats(3, 4), st.floats(-1e6, 1e6))
def test_logits_may_be_shifted(logits: FloatArray, shift: float) -> None:
    labels = np.array([0, 1, 3])
    for payoff in (CrossEntropy(), KL()):
        there, here = payoff([logits + shift], [logits], labels), payoff([logits], [logits], labels)
        np.testing.assert_allclose(there, here, atol=1e-8)


def test_cross_entropy_of_probabilities_equals_that_of_their_logits() -> None:
    of_logits = CrossEntropy()([LOGITS], [], LABELS)
    of_probabilities = CrossEntropy(probabilities=True)([PROBABILITIES], [], LABELS)
    np.testing.assert_allclose(of_probabilities, of_logits, atol=1e-6)
    # The mistake that the field is there for: a softmax of a softmax.
    assert not np.allclose(CrossEntropy()([PROBABILITIES], [], LABELS), of_logits, atol=0.1)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[3e38, -3e38], [0.0, 1000.0]], dtype=np.float32)
    scores = CrossEntropy()([logits], [], np.array([0, 0]))
    assert scores.tolist() == [0.0, -1000.0]


def test_a_probability_of_zero_costs_a_finite_amount() -> None:
    certain = np.array([[1.0, 0.0]], dtype=np.float32)
    wrong = CrossEntropy(probabilities=True)([certain], [], np.array([1]))
    assert wrong == pytest.approx(np.log(1e-12), rel=1e-6)
    assert np.isfinite(KL(probabilities=True)([certain[:, ::-1]], [certain], None)).all()


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_labels_may_be_of_any_integer_dtype(dtype: type[np.generic]) -> None:
    labels = np.array([0, 1], dtype=dtype)
    for payoff in (CrossEntropy(), Accuracy()):
        np.testing.assert_array_equal(payoff([LOGITS], [], labels), payoff([LOGITS], [], LABELS))
    assert choose("ce", [LOGITS], labels, ["y"]) == CrossEntropy()


def test_labels_may_have_axes_of_length_one() -> None:
    np.testing.assert_array_equal(CrossEntropy()([LOGITS], [], LABELS[:, None]), CrossEntropy()([LOGITS], [], LABELS))
    pooled = LOGITS[:, :, None, None]
    np.testing.assert_array_equal(CrossEntropy()([pooled], [], LABELS), CrossEntropy()([LOGITS], [], LABELS))


# KL -------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(floats(4, 5), floats(4, 5))
def test_kl_is_never_positive_and_is_scipys(logits: FloatArray, other: FloatArray) -> None:
    scores = KL()([other], [logits], None)
    assert (scores <= 0.0).all()
    expected = (softmax(logits, axis=1) * (log_softmax(other, axis=1) - log_softmax(logits, axis=1))).sum(axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-10)


@settings(deadline=None)
@given(floats(3, 4))
def test_kl_to_itself_is_zero(logits: FloatArray) -> None:
    assert (KL()([logits], [logits], None) == 0.0).all()
    assert (KL(probabilities=True)([softmax(logits, axis=1)], [softmax(logits, axis=1)], None) == 0.0).all()


def test_kl_of_probabilities_equals_that_of_their_logits() -> None:
    other = LOGITS[::-1]
    of_probabilities = KL(probabilities=True)([softmax(other, axis=1)], [PROBABILITIES], None)
    np.testing.assert_allclose(of_probabilities, KL()([other], [LOGITS], None), atol=1e-5)


def test_kl_looks_from_the_original() -> None:
    sure, unsure = np.array([[8.0, 0.0]]), np.array([[0.0, 0.0]])
    assert KL()([unsure], [sure], None)[0] == pytest.approx(-np.log(2.0), abs=0.01)
    assert KL()([sure], [unsure], None)[0] < -3.0


# Dense outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "axis", "last"),
    [
        (3, None, (0, 1, 2)),
        (4, None, (0, 2, 3, 1)),
        (5, None, (0, 2, 3, 4, 1)),
        (3, 1, (0, 2, 1)),
        (4, -1, (0, 1, 2, 3)),
    ],
)
def test_dense_scores_are_means_over_positions(rank: int, axis: int | None, last: tuple[int, ...]) -> None:
    rng = np.random.default_rng(rank)
    output, original = rng.normal(size=(2, 2, 3, 4, 5, 2)[: rank + 1])  # two tensors of that rank
    scores, reference = output.transpose(last), original.transpose(last)
    labels = rng.integers(0, scores.shape[-1], scores.shape[:-1])
    flat, flat_reference = (a.reshape(-1, scores.shape[-1]) for a in (scores, reference))
    cases: list[tuple[Payoff, Payoff]] = [
        (CrossEntropy(axis=axis), CrossEntropy()),
        (KL(axis=axis), KL()),
        (Accuracy(axis=axis), Accuracy()),
    ]
    for dense, single in cases:
        expected = single([flat], [flat_reference], labels.ravel()).reshape(len(output), -1).mean(axis=1)
        np.testing.assert_allclose(dense([output], [original], labels), expected, atol=1e-12)


def test_an_axis_that_holds_no_classes_is_refused() -> None:
    for axis in (0, 2, -2):
        refused(lambda axis=axis: KL(axis=axis)([LOGITS], [LOGITS], None), "output 0", "[2, 3]", "class axis", "mse")  # type: ignore[misc]
    refused(lambda: CrossEntropy()([LOGITS[:, 0]], [], LABELS), "output 0", "[2]", "mse")


# MSE ------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(floats(3, 2, 4), floats(3, 2, 4))
def test_mse_is_minus_the_mean_square_of_each_row(output: FloatArray, reference: FloatArray) -> None:
    expected = [-float(np.mean((a - b) ** 2)) for a, b in zip(output, reference, strict=True)]
    np.testing.assert_allclose(MSE()([output], [reference], None), expected, rtol=1e-12)


@settings(deadline=None)
@given(st.sampled_from([1e-3, 1.0, 1e4]), st.sampled_from([1e-3, 1.0, 1e4]))
def test_mse_weighs_outputs_of_any_scale_alike(a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    plain = [rng.normal(size=(6, 3)), rng.normal(size=(6, 2, 2))]
    noisy = [array + rng.normal(size=array.shape) for array in plain]
    expected = choose("mse", plain, None, ["a", "b"])(noisy, plain, None)
    reference, outputs = [plain[0] * a, plain[1] * b], [noisy[0] * a, noisy[1] * b]
    np.testing.assert_allclose(choose("mse", reference, None, ["a", "b"])(outputs, reference, None), expected)


def test_mse_counts_every_float_output_of_any_rank_and_no_other() -> None:
    reference = [np.ones((4, 2, 3, 3)), np.arange(4), np.ones((4,)), np.ones((1, 7)), np.ones((4, 0)), np.float32(1.0)]
    payoff = choose("mse", [np.asarray(a) for a in reference], None, list("abcdef"))
    assert payoff == MSE(outputs=(0, 2), scales=(1.0, 1.0))


def test_mse_reads_float_labels_as_targets_of_the_output_of_their_shape() -> None:
    reference = [np.full((3, 2), 2.0), np.full((3, 1), 4.0)]
    labels = np.array([4.0, 5.0, 6.0], dtype=np.float32)
    payoff = choose("mse", reference, labels, ["a", "b"])
    assert payoff == MSE(outputs=(1,), scales=(2 / 3,), targets=True)
    np.testing.assert_allclose(payoff(reference, reference, labels), [0.0, -1.5, -6.0], rtol=1e-6)


def test_mse_of_targets_is_in_units_of_the_targets() -> None:
    """An original that hardly moves scores 1 - R squared like any other, not its error over next to nothing."""
    targets = np.array([[1.0, 0.0], [3.0, 8.0], [2.0, 1.0]])
    still = np.array([[2.0, 3.0], [2.0, 3.0], [2.0 + 1e-6, 3.0]])
    found = choose(None, [still], targets, ["y"])
    assert found([targets.mean(axis=0) * np.ones_like(targets)], [still], targets).mean() == pytest.approx(-1.0)
    assert found([targets], [still], targets).tolist() == [0.0, 0.0, 0.0]


def test_mse_ignores_class_labels() -> None:
    assert choose("mse", [LOGITS], LABELS, ["y"]) == choose("mse", [LOGITS], None, ["y"])


def test_an_output_of_zeros_is_not_divided_by() -> None:
    zeros = np.zeros((2, 3))
    assert choose("mse", [zeros], None, ["y"])([zeros + 2.0], [zeros], None).tolist() == [-4.0, -4.0]


@pytest.mark.parametrize("units", [[1000.0, 1.0, 1.0], [1e5, 1.0, 1e-2]])
def test_columns_in_different_units_count_alike(units: list[float]) -> None:
    rng = np.random.default_rng(0)
    reference, output = rng.normal(size=(2, 40, 3))
    payoff = choose("mse", [reference * units], None, ["y"])
    plain = MSE(scales=(tuple(reference.var(axis=0)),))
    found = payoff([output * units], [reference * units], None)
    np.testing.assert_allclose(found, plain([output], [reference], None))
    mean = np.broadcast_to(reference.mean(axis=0), reference.shape)
    assert payoff([mean * units], [reference * units], None).mean() == pytest.approx(-1.0)
    targets = choose("mse", [output * units], reference * units, ["y"])
    np.testing.assert_allclose(targets([output * units], [], reference * units), found)


@pytest.mark.parametrize(("shape", "axis"), [((60, 7, 300), 1), ((60, 300, 7), 2), ((60, 5, 4, 4), 1)])
def test_channels_of_dense_outputs_in_different_units_count_alike(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    boxes = np.where(np.arange(shape[axis]) < 2, 300.0, 0.05)  # pixels beside probabilities
    units = boxes.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    reference = rng.normal(size=shape) * units + 5 * units
    payoff = choose(None, [reference], None, ["y"])
    for channel in range(shape[axis]):
        lost = np.arange(shape[axis]).reshape(units.shape) == channel
        flat = np.where(
            lost, reference.mean(axis=tuple(k for k in range(len(shape)) if k != axis), keepdims=True), reference
        )
        assert payoff([flat], [reference], None).mean() == pytest.approx(-1 / shape[axis], rel=0.02)


def test_columns_that_stay_as_they_are_have_no_unit() -> None:
    rng = np.random.default_rng(0)
    wide, constant = rng.normal(size=(50, 3)) * [1e3, 1e-2, 1.0], np.full((50, 1), 7.0)
    payoff = choose("mse", [np.concatenate([wide, constant + 1e-9 * rng.normal(size=(50, 1))], axis=1)], None, ["y"])
    assert isinstance(payoff, MSE)
    assert payoff.scales[0] == pytest.approx((*wide.var(axis=0), wide.var(axis=0).max()))


# Joint ----------------------------------------------------------------------------------------------------------------


def test_a_class_that_no_row_has_leaves_the_unit_of_an_output_as_it_is() -> None:
    """Of scores in the thousands its probability is 0 everywhere, and the unit was 1, with numpy's warnings."""
    scores = np.repeat(1e4 * (np.eye(3)[:2] - 1 / 3), 4, axis=0)
    payoff = choose("joint", [scores, np.arange(8.0)[:, None]], None, ["a", "b"])
    assert isinstance(payoff, Joint) and payoff.scales[0] == pytest.approx(np.log(2))


def test_an_output_that_is_its_mean_loses_one_of_either_kind() -> None:
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(60, 5)) * 4, rng.normal(7.0, 3.0, (60, 4))
    logits -= logits.mean(axis=1, keepdims=True)
    for names in (["classes", "boxes"], ["boxes", "classes"]):
        whole = {"classes": logits, "boxes": boxes}
        flat = {
            "classes": np.log(softmax(logits, axis=1).mean(axis=0) + 0 * logits),
            "boxes": boxes.mean(axis=0) + 0 * boxes,
        }
        reference = [whole[n] for n in names]
        payoff = choose(None, reference, None, names)
        assert isinstance(payoff, Joint)
        assert {names[k]: one.name for k, one in payoff.each()} == {"classes": "accuracy", "boxes": "mse"}
        for lost in names:
            outputs = [flat[n] if n == lost else whole[n] for n in names]
            assert payoff(outputs, reference, None).mean() == pytest.approx(-0.5)


def test_an_output_that_is_constant_is_not_divided_by() -> None:
    reference = [TARGETS - TARGETS.mean(axis=1, keepdims=True), np.full((50, 2), 3.0)]
    payoff = choose("joint", reference, None, ["a", "b"])
    assert payoff([reference[0], reference[1] + 3.0], reference, None).mean() == pytest.approx(-0.5)


# Accuracy and custom --------------------------------------------------------------------------------------------------


def test_accuracy_is_top_one_against_labels_or_agreement_with_the_original() -> None:
    labels = np.array([0, 1])
    assert Accuracy()([LOGITS], [LOGITS[::-1]], labels).tolist() == [1.0, 0.0]
    assert Accuracy()([LOGITS], [LOGITS], None).tolist() == [1.0, 1.0]
    assert Accuracy()([LOGITS], [LOGITS[::-1]], None).tolist() == [0.0, 0.0]


def test_an_entry_that_tells_two_classes_apart_is_scored_as_both() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 1]])
    both = np.stack([np.zeros_like(LOGITS), LOGITS], axis=1)  # [n, 2, columns]: their scores on an axis
    for ours, whole in ((CrossEntropy(binary=True), CrossEntropy(axis=1)), (Accuracy(binary=True), Accuracy(axis=1))):
        assert ours([LOGITS], [LOGITS[::-1]], labels) == pytest.approx(whole([both], [both[::-1]], labels))
    sigmoids = CrossEntropy(probabilities=True, binary=True)
    assert sigmoids([expit(LOGITS)], [], labels) == pytest.approx(CrossEntropy(binary=True)([LOGITS], [], labels))
    agreement = Accuracy(probabilities=True, binary=True)
    assert agreement([np.array([0.4, 0.6])], [np.array([0.1, 0.2])], None).tolist() == [1.0, 0.0]


def test_a_custom_payoff_gets_outputs_and_labels() -> None:
    def margin(outputs: Sequence[Array], labels: Array | None) -> Array:
        assert labels is not None
        return outputs[0][np.arange(len(labels)), labels].astype(np.float32)

    payoff = Custom(margin, "margin")
    scores = payoff([LOGITS], [], LABELS)
    assert payoff.name == "margin"
    assert scores.dtype == np.float64
    assert scores.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("function", "fragments"),
    [
        (lambda o, _: o[0], ("shape [2, 3]", "2 rows", "shape [2]")),
        (lambda o, _: o[0].sum(), ("shape []", "one number a row")),
        (lambda o, _: np.array([0.0, np.nan]), ("nan in row 1", "finite")),
        (lambda o, _: None, ("'mine'", "it returned nothing", "mend it")),
        (lambda o, _: o[9], ("IndexError", "list index out of range", "mend it")),
        (lambda o, _: ["a", "b"], ("ValueError", "mend it")),
        (lambda o, _: sys.exit("enough"), ("SystemExit: enough", "mend it")),
    ],
)
@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_custom_payoff_that_is_none_is_refused(
    function: Callable[..., object], fragments: tuple[str, ...], labels: Array | None
) -> None:
    refused(lambda: Custom(function, "mine")([LOGITS], [LOGITS], labels), "payoff 'mine'", *fragments)


def test_a_custom_payoff_may_work_in_place() -> None:
    def shifted(outputs: Sequence[Array], labels: Array | None) -> Array:
        assert labels is not None
        labels += 1
        return labels.astype(np.float64)

    labels = LABELS.copy()
    assert Custom(shifted)([LOGITS], [], labels).tolist() == [1.0, 2.0]
    assert labels.tolist() == LABELS.tolist()


def test_an_exception_in_a_custom_payoff_is_chained_and_told_in_one_line() -> None:
    def broken(outputs: Sequence[Array], labels: Array | None) -> Array:
        raise RuntimeError("first\nsecond")

    with pytest.raises(DataError, match="RuntimeError: first second") as caught:
        Custom(broken)([LOGITS], [], None)
    assert isinstance(caught.value.__cause__, RuntimeError)


# What holds for all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payoff", ALL, ids=repr)
def test_a_rows_payoff_depends_on_that_row_alone(payoff: Payoff) -> None:
    outputs, reference = PROBABILITIES, PROBABILITIES[::-1]
    whole = payoff([outputs], [reference], LABELS)
    assert whole.dtype == np.float64
    assert whole.shape == (2,)
    for row in range(2):
        at = slice(row, row + 1)
        assert payoff([outputs[at]], [reference[at]], LABELS[at]) == whole[at]


@pytest.mark.parametrize("payoff", ALL, ids=repr)
def test_no_rows_score_nothing(payoff: Payoff) -> None:
    assert payoff([LOGITS[:0]], [LOGITS[:0]], LABELS[:0]).shape == (0,)


@pytest.mark.parametrize("payoff", ALL, ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(payoff: Payoff, bad: float) -> None:
    broken = LOGITS.copy()
    broken[1, 2] = bad
    refused(lambda: payoff([broken], [LOGITS], LABELS), "output 0", "NaN or Inf", "row 1", "overflow")


@pytest.mark.parametrize("payoff", [KL(), MSE(), Accuracy()], ids=repr)
def test_outputs_of_another_shape_than_the_original_are_refused(payoff: Payoff) -> None:
    refused(lambda: payoff([LOGITS[:, :2]], [LOGITS], None), "output 0", "[2, 2]", "[2, 3]", "payoff of your own")


@pytest.mark.parametrize("payoff", [CrossEntropy(), Accuracy()], ids=repr)
@pytest.mark.parametrize(
    ("labels", "fragments"),
    [
        (np.array([0, 3]), ("labels: 3 is not", "[0, 3)", "from 0")),
        (np.array([-1, 0]), ("labels: -1 is not", "[0, 3)")),
        (np.array([0, 1, 2]), ("labels: shape [3]", "shape [2]")),
        (np.array(0), ("labels: shape []", "shape [2]")),
        (np.array([0.5, 1.0]), ("labels are float64", "integer", "'mse'")),
    ],
)
def test_labels_that_are_no_classes_are_refused(payoff: Payoff, labels: Array, fragments: tuple[str, ...]) -> None:
    refused(lambda: payoff([LOGITS], [LOGITS], labels), *fragments)


@pytest.mark.parametrize("payoff", [CrossEntropy(), Accuracy()], ids=repr)
@pytest.mark.parametrize("none", [255, -1, -100])
def test_positions_of_no_class_are_left_out(payoff: Payoff, none: int) -> None:
    labels = DENSE[:, :, ::-1].argmax(axis=1)
    kept = labels.copy()
    labels[0, 1:], labels[1] = none, none
    found = payoff([DENSE], [], labels)
    assert found[0] == pytest.approx(payoff([DENSE[:1, :, :1]], [], kept[:1, :1])[0])
    assert found[1] == 0
    assert choose(None, [DENSE], labels, ["y"]) == CrossEntropy()


def test_payoffs_that_need_labels_say_so() -> None:
    refused(lambda: CrossEntropy()([LOGITS], [LOGITS], None), "payoff 'ce'", "no labels", "'kl'")
    refused(lambda: MSE(targets=True)([LOGITS], [LOGITS], None), "payoff 'mse'", "no labels", "float targets")


# Choosing -------------------------------------------------------------------------------------------------------------

EMBEDDING = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
DENSE = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
SIGMOIDS = expit(LOGITS)
ZERO_ONE = np.array([[1, 0, 1], [0, 1, 1]])
TARGETS = np.random.default_rng(1).normal(size=(50, 4))  # what a regression gives


@pytest.mark.parametrize(
    ("reference", "labels", "expected"),
    [
        ([LOGITS], LABELS, CrossEntropy()),
        ([PROBABILITIES], LABELS, CrossEntropy(probabilities=True)),
        ([PROBABILITIES.astype(np.float16)], LABELS, CrossEntropy(probabilities=True)),
        ([LOGITS], None, KL()),
        ([LOGITS[:, :2]], None, KL()),
        ([LOGITS[:, :2]], LABELS, CrossEntropy()),
        ([PROBABILITIES], None, KL(probabilities=True)),
        ([np.array([[1.0, 0.0], [0.3, 0.7]])], None, KL(probabilities=True)),  # a softmax that underflows
        ([np.abs(LOGITS)], None, "mse"),  # features behind a Relu
        ([1 / (1 + np.exp(-LOGITS))], None, "mse"),  # sigmoids
        ([EMBEDDING], None, "mse"),
        ([LOGITS[:, :1]], None, "mse"),
        ([LOGITS[:, 0]], None, "mse"),
        ([DENSE], None, "mse"),
        ([LOGITS], LOGITS * 2, "mse"),
        ([LOGITS[:, :1]], np.array([0.5, 1.5]), "mse"),
        ([LOGITS.argmax(axis=1), LOGITS], None, KL(output=1)),  # integers are passed over
        ([DENSE, LOGITS], None, "joint"),  # one output of each kind
        ([LOGITS, LOGITS], None, "joint"),
        ([DENSE, DENSE], None, "mse"),
        ([TARGETS], None, "mse"),
        ([TARGETS - TARGETS.mean(axis=1, keepdims=True)], None, KL()),  # their sum stays
        ([DENSE, LOGITS], LABELS, CrossEntropy(output=1)),
        ([LOGITS[:, :1], LOGITS[:, :2], LOGITS], np.array([0, 2]), CrossEntropy(output=2)),  # where the classes fit
        ([LOGITS, DENSE], np.zeros((2, 4, 4), np.int64), CrossEntropy(output=1)),
        ([np.ones((1, 5), np.float32), LOGITS], LABELS, CrossEntropy(output=1)),  # one entry a row
        # two classes an entry: one sigmoid, many, masks
        ([LOGITS[:, :1]], ZERO_ONE[:, 0], CrossEntropy(binary=True)),
        ([SIGMOIDS[:, 0]], ZERO_ONE[:, 0], CrossEntropy(probabilities=True, binary=True)),
        ([SIGMOIDS[:, :1]], ZERO_ONE[:, :1].astype(np.float32), CrossEntropy(probabilities=True, binary=True)),
        ([SIGMOIDS], ZERO_ONE, CrossEntropy(probabilities=True, binary=True)),
        ([DENSE[:, :1]], DENSE[:, 0] > 0, CrossEntropy(binary=True)),
        ([SIGMOIDS[:, :1], LOGITS], ZERO_ONE[:, 0], CrossEntropy(output=1)),  # classes on an axis come first
        ([SIGMOIDS], ZERO_ONE + 0.5, "mse"),
        ([SIGMOIDS], np.array([[1.0, -1.0, 0.0], [255.0, 0.0, 1.0]]), CrossEntropy(probabilities=True, binary=True)),
        (
            [np.abs(DENSE[:, 0, 0]), LOGITS[:, :1]],
            ZERO_ONE[:, 0],
            CrossEntropy(output=1, binary=True),
        ),  # beside features
        ([LOGITS[:, :1]], np.array([0.0, 2.0]), "mse"),
    ],
)
def test_the_default_follows_labels_and_outputs(
    reference: list[Array], labels: Array | None, expected: Payoff | str
) -> None:
    payoff = choose(None, reference, labels, [f"out{i}" for i in range(len(reference))])
    assert payoff.name == expected if isinstance(expected, str) else payoff == expected


@pytest.mark.parametrize(
    ("name", "reference", "expected"),
    [
        ("kl", [np.abs(LOGITS)], KL()),
        ("kl", [DENSE], KL()),
        ("kl", [softmax(DENSE, axis=1)], KL(probabilities=True)),
        ("kl", [softmax(DENSE[0], axis=2)], KL(probabilities=True)),
        ("kl", [softmax(DENSE[0], axis=1)], KL()),  # rank 3: classes last
        ("kl", [DENSE, LOGITS], KL(output=1)),
        ("kl", [LOGITS[:, :1], LOGITS], KL(output=1)),
        ("accuracy", [LOGITS], Accuracy()),
        ("accuracy", [DENSE, LOGITS], Accuracy(output=1)),
    ],
)
def test_a_name_is_fitted_to_the_outputs(name: str, reference: list[Array], expected: Payoff) -> None:
    assert choose(name, reference, None, [f"out{i}" for i in range(len(reference))]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_payoff_of_that_name(name: str) -> None:
    payoff = choose(name, [LOGITS], LABELS, ["y"])
    assert payoff.name == name
    assert payoff([LOGITS], [LOGITS], LABELS).shape == (2,)


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("reference", [LOGITS, PROBABILITIES])
def test_higher_is_better(name: str | None, reference: Array) -> None:
    labels = reference.argmax(axis=1)
    payoff = choose(name, [reference], labels, ["y"])
    good, fair, bad = (
        payoff([output], [reference], labels).mean()
        for output in (reference, 0.5 * reference + 0.5 * reference[:, ::-1], reference[:, ::-1])
    )
    assert good >= fair >= bad
    assert good > bad


@pytest.mark.parametrize(
    ("name", "reference", "labels", "fragments"),
    [
        ("hinge", [LOGITS], LABELS, ("'hinge'", "unknown", "'ce', 'kl', 'mse', 'joint' or 'accuracy'")),
        ("ce", [LOGITS], None, ("'ce'", "no labels", "'kl'")),
        ("ce", [LOGITS], np.array([0, 3]), ("labels: 3 is not", "[0, 3)", "'out0'", "from 0")),
        (None, [LOGITS], np.array([-1, 0]), ("labels: -1 is not", "'out0'")),
        ("accuracy", [LOGITS], np.array([0, 7]), ("labels: 7 is not", "'out0'")),
        ("ce", [LOGITS], np.array([0.5, 1.0]), ("'ce'", "float64", "integer", "'mse'")),
        ("accuracy", [LOGITS], np.array([0.5, 1.0]), ("'accuracy'", "float64")),
        ("ce", [LOGITS], np.array([0, 1, 1]), ("labels: 3 entries", "2 rows", "'out0'", "one label a row")),
        ("kl", [LOGITS], np.array(1), ("labels: 0 entries", "2 rows")),
        (None, [SIGMOIDS], 2 * ZERO_ONE - 1, ("'ce'", "labels are -1 and 1", "give 0 and 1")),
        (None, [LOGITS[:, :1]], LABELS + 1, ("'ce'", "'out0' [2, 1]", "labels [2]", "'mse'")),
        ("ce", [DENSE], LABELS, ("'ce'", "'out0' [2, 3, 4, 4]", "labels [2]")),
        ("kl", [LOGITS[:, :1]], None, ("'kl'", "no output holds class scores", "'out0' [2, 1]", "'mse'")),
        ("accuracy", [LOGITS[:, 0]], None, ("'accuracy'", "'out0' [2]")),
        (None, [LABELS], None, ("no output can be scored", "'out0' int64[2]", "float output")),
        (None, [], None, ("no output can be scored", "none")),
        ("mse", [LOGITS], np.zeros((2, 4)), ("'mse'", "targets are [2, 4]", "'out0' [2, 3]", "targets of")),
        ("mse", [LOGITS], np.array([[0, 0, np.nan]] * 2), ("labels", "NaN or Inf in row 0", "finite targets")),
        (None, [LOGITS * np.float32(np.nan)], None, ("'out0'", "NaN or Inf in row 0", "overflow")),
        ("mse", [np.full((2, 3), -np.inf)], None, ("'out0'", "NaN or Inf in row 0")),
        ("ce", [LOGITS * np.float32(np.nan)], LABELS, ("'out0'", "NaN or Inf in row 0")),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str | None, reference: list[Array], labels: Array | None, fragments: tuple[str, ...]
) -> None:
    names = [f"out{i}" for i in range(len(reference))]
    refused(lambda: choose(name, reference, labels, names), *fragments)


def test_targets_of_the_wrong_shape_are_refused_when_scoring_too() -> None:
    payoff = MSE(targets=True)
    refused(lambda: payoff([LOGITS], [LOGITS], np.zeros((2, 2))), "'mse'", "[2, 2]", "output 0", "[2, 3]")


@pytest.mark.parametrize("shape", [(7,), (300,), (1000,), (5, 6), (4, 3, 3)])
@pytest.mark.parametrize("payoff", [KL(), MSE(scales=(2.0,)), Accuracy()])
def test_rows_of_one_image_may_be_held_to_a_view_of_its_outputs(payoff: Payoff, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(60, *shape)).astype(np.float32)
    outputs[::2] *= 0.1
    reference = rng.normal(size=(1, *shape)).astype(np.float32)
    seen = payoff([outputs], [np.broadcast_to(reference[0], outputs.shape)], None)
    assert seen.tobytes() == payoff([outputs], [np.repeat(reference, 60, axis=0)], None).tobytes()


def test_where_an_output_has_its_zero_does_not_matter() -> None:
    """What a constant output loses is 1: temperatures in kelvin are not easier than in degrees."""
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal((50, 1)), rng.standard_normal((50, 3, 4)) + rng.standard_normal((3, 4))):
        for offset in (0.0, 300.0):
            reference = [values + offset]
            around = [np.broadcast_to(reference[0].mean(axis=0), values.shape)]
            assert choose("mse", reference, None, ["y"])(around, reference, None).mean() == pytest.approx(-1)
    still = [np.full((5, 2), 3.0)]
    assert choose("mse", still, None, ["y"])([still[0] + 3], still, None).mean() == pytest.approx(-1)
