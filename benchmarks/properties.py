"""Draws random networks, cuts them at random, holds masked == rewritten == zeroed: the property tests, for long.

    python benchmarks/properties.py [--graphs 20000] [--seed 0] [--most 12]

What is drawn and what is checked are those of `tests/test_properties.py`. A mismatch is shrunk and printed as ONNX
text; the run goes on behind it, and its last line counts graphs and mismatches.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import onnx.printer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.drawing import nets, sizes_of
from tests.exactness import check_exact
from tests.test_properties import SHARES, TOLERANCE

CHUNK = 500
"""Graphs a hypothesis run; each has a seed of its own."""


class Tally:
    """What has been drawn so far."""

    def __init__(self) -> None:
        self.graphs = self.nodes = self.cut = self.dropped = self.mismatches = 0

    def chunk(self, number: int, graphs: int, most: int) -> None:
        """Draw and check `graphs` networks of up to `most` ops."""
        left, failing = graphs, ModelProto()

        @seed(number)
        @settings(
            max_examples=graphs,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(nets(most=most, free=True), st.sampled_from(SHARES), st.integers(0, 9))
        def check(model: ModelProto, share: float, plan: int) -> None:
            nonlocal left
            failing.CopyFrom(model)
            seen = check_exact(model, share, plan, tolerance=TOLERANCE, input_shapes=sizes_of(model))
            if left > 0:  # while it shrinks, hypothesis draws what is not counted
                left -= 1
                self.graphs += 1
                self.nodes += len(model.graph.node)
                self.cut += seen.dropped > 0
                self.dropped += seen.dropped

        try:
            check()
        except Exception as error:  # noqa: BLE001 - every failure is counted and shown
            self.mismatches += 1
            print(f"MISMATCH (seed {number}): {type(error).__name__}: {error}")
            print(onnx.printer.to_text(failing), flush=True)


@click.command(help=__doc__)
@click.option("--graphs", default=20000, show_default=True)
@click.option("--seed", "first", default=0, show_default=True, help="Of the first 500 graphs; counts up.")
@click.option("--most", default=12, show_default=True, help="Ops a graph, not counting layers put between them.")
def main(graphs: int, first: int, most: int) -> None:
    """Draw, check and count."""
    tally, start, number = Tally(), time.perf_counter(), first
    while tally.graphs < graphs:
        tally.chunk(number, min(CHUNK, graphs - tally.graphs), most)
        number += 1
        print(
            f"{tally.graphs} graphs of {tally.nodes / max(1, tally.graphs):.1f} nodes, {tally.cut} of them cut, "
            f"{tally.dropped} units dropped: {tally.mismatches} mismatches, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
