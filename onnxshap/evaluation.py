"""The original on the images that judge: what changed models score, lose and take beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from onnx import ModelProto

from onnxshap.calibrate import run_all, usual_batch
from onnxshap.core import Array, Dataset, Payoff
from onnxshap.endings import complete
from onnxshap.graph.writing import file_size
from onnxshap.measure import Figures, label_notes, latencies, notes_on, scores, unchanged
from onnxshap.plan.judging import Judge
from onnxshap.reference import judged
from onnxshap.tracing import Traced


@dataclass(frozen=True)
class Evaluation:
    """What changed models are held against.

    Attributes:
        traced: the original.
        data: the images that judge.
        reference: its outputs for them.
        payoffs: what they are worth, each by its own name; of what two give by one name the first one's counts.
    """

    traced: Traced
    data: Dataset
    reference: Sequence[Array]
    payoffs: Sequence[Payoff]

    @classmethod
    def of(cls, traced: Traced, data: Dataset, payoff: str | Callable[..., object] | None) -> Evaluation:
        """Run the original.

        Raises:
            DataError: as `reference.judged`: the payoff does not fit the data, or the model does not run on them.
        """
        reference, fitted = judged(traced, data, payoff)
        return cls(traced, data, reference, [fitted])

    def with_payoffs(self, more: Sequence[Payoff]) -> Evaluation:
        """Return one that judges by further payoffs, too."""
        return replace(self, payoffs=[*self.payoffs, *more])

    @cached_property
    def judge(self) -> Judge:
        """What tells what is lost, by the last payoff."""
        return Judge.of(self.traced, self.data, self.reference, self.payoffs[-1])

    def outputs(self, model: ModelProto) -> list[Array]:
        """Return those of a changed model."""
        return run_all(self.traced, model, self.data)

    def scores(self, outputs: Sequence[Array]) -> dict[str, float]:
        """Return the scores of outputs: name -> mean over the images (`measure.scores`)."""
        found = dict[str, float]()
        for payoff in reversed(self.payoffs):
            found |= scores(outputs, self.reference, self.data.labels, self.traced.outputs, payoff)
        return found

    def latencies(self, model: ModelProto) -> list[float]:
        """Return the milliseconds that a run of the original and one of a changed model take, measured in turn."""
        models = [complete(self.traced, one) for one in (self.traced.source, model)]
        return latencies(self.traced.backend, models, usual_batch(self.traced, self.data))

    def figures(
        self, model: ModelProto, outputs: Sequence[Array], macs: int, params: int, latency: float | None
    ) -> Figures:
        """Return the figures of the original or of a changed model."""
        return Figures(macs, params, file_size(complete(self.traced, model)), latency, self.scores(outputs))

    def unchanged(self, outputs: Sequence[Array]) -> bool:
        """Return whether outputs are the original's to the bit."""
        return unchanged(outputs, self.reference)

    def doubts(self, first: int = 0) -> tuple[str, ...]:
        """Return what the user should know of the labels by which payoffs judge, the first ones left out."""
        every = self.payoffs[first:]
        return tuple(note for one in every for note in label_notes(one, self.reference, self.data.labels))

    def notes(self, score: Mapping[str, float], outputs: Sequence[Array], *, changed: bool = True) -> tuple[str, ...]:
        """Return what the user should know of the model, of a form of it that was `changed`, its score and outputs."""
        still = self.data.source if changed and self.unchanged(outputs) else None
        return (*self.traced.notes, *self.doubts(), *notes_on(score, still))
