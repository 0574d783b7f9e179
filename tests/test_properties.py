"""Random networks, random plans: the cut is exact for every model, not for the ones we thought of."""

from __future__ import annotations

import os

import onnx.printer
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.drawing import nets, sizes_of
from tests.exactness import check_exact

LONG = int(os.environ.get("ONNXSHAP_EXAMPLES", "3000"))
"""Examples of the slow run."""
TOLERANCE = 3e-5
SHARES = (0.0, 0.3, 0.6, 0.9)
_SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=300, deadline=None, suppress_health_check=_SLOW_DRAWS)
@given(model=nets(most=9, free=True), share=st.sampled_from(SHARES), seed=st.integers(0, 9))
def test_cuts_of_random_nets_are_exact(model: ModelProto, share: float, seed: int) -> None:
    note(onnx.printer.to_text(model))
    check_exact(model, share, seed, tolerance=TOLERANCE, input_shapes=sizes_of(model))


@pytest.mark.slow
@settings(max_examples=LONG, derandomize=False, deadline=None, suppress_health_check=_SLOW_DRAWS)
@given(model=nets(most=20, free=True), share=st.sampled_from(SHARES), seed=st.integers(0, 9))
def test_cuts_of_many_random_nets_are_exact(model: ModelProto, share: float, seed: int) -> None:
    note(onnx.printer.to_text(model))
    check_exact(model, share, seed, tolerance=TOLERANCE, input_shapes=sizes_of(model))
