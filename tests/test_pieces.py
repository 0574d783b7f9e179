"""A model that tells its shapes piece by piece tells the same as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto, helper

from onnxshap.backend import OrtBackend, Resident, Session
from onnxshap.errors import ModelError
from onnxshap.graph import normalise, read
from onnxshap.graph.writing import digest
from onnxshap.shapes import Shaped, infer, pieces
from onnxshap.shapes.kinds import value_kinds
from onnxshap.tracing import trace
from tests.drawing import nets
from tests.exactness import net
from tests.test_branches import PLAIN, WIDE, body, on_sum
from tests.test_loops import PAIR, looped


@dataclass(frozen=True)
class Counting:
    """onnxruntime, which notes how many nodes it was given at a time, and takes no parts where it is `whole`."""

    whole: bool = False
    nodes: list[int] = field(default_factory=list)
    firsts: list[str] = field(default_factory=list)
    """The first node of each of them."""
    inner: OrtBackend = field(default_factory=lambda: OrtBackend("cpu", 1))
    memory = 2**30
    on_device = False

    def session(self, model: ModelProto, *, optimize: bool = True, frugal: bool = False) -> Session:
        self.nodes.append(sum(node.op_type != "Shape" for node in model.graph.node))
        self.firsts.append(model.graph.node[0].op_type)
        if self.whole and all(i.name != "x" for i in model.graph.input):
            raise ModelError("a part")
        return self.inner.session(model, optimize=optimize, frugal=frugal)

    def resident(self, model: ModelProto) -> Resident:
        return self.inner.resident(model)


def told(model: ModelProto, most: int, backend: Counting | None = None) -> tuple[object, ...]:
    """Return what is known of a model, by pieces of so many nodes at least."""
    source = read(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "NODES", most)
        found: Shaped = infer(normalise(source.model, source.kept), backend or Counting())
    parts = {name: part.values.tolist() for name, part in found.parts.items()}
    return (
        digest(found.graph.model), found.shapes, found.kinds, found.inputs, found.varying,
        found.told, parts, found.apart, found.whole, found.times, found.elsewhere, found.constants,
    )  # fmt: skip


CHAIN = net(
    """(float[N,3,H,W] x) => (float[N,5] y) {
        s = Shape<start=2>(x)
        a = Conv<pads=[1,1,1,1]>(x, w)
        r = Relu(a)
        n = Concat<axis=0>(two, s)
        e = Expand(b, n)
        m = Add(r, e)
        p = GlobalAveragePool(m)
        f = Flatten(p)
        y = MatMul(f, v)
    }""",
    w=(4, 3, 3, 3), b=(4, 1, 1), two=[1, 4], v=(4, 5),
)  # fmt: skip
NETS = {
    "a size that is handed on": CHAIN,
    "a loop": looped(PAIR, w=(4, 6), u=(6, 4)),
    "a branch": on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(PLAIN)),
}


@pytest.mark.parametrize("model", NETS.values(), ids=NETS)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_pieces_tell_what_the_whole_tells(model: ModelProto, most: int) -> None:
    backend = Counting()
    assert told(model, most, backend) == told(model, 1000)
    assert len(backend.nodes) > 2


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=nets())
def test_pieces_of_random_nets_tell_what_the_whole_tells(model: ModelProto) -> None:
    assert told(model, 1) == told(model, 1000)


def test_no_piece_is_longer_than_it_has_to_be() -> None:
    backend = Counting()
    told(CHAIN, 2, backend)
    assert max(backend.nodes) == 2
    backend = Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BYTES", 100)  # the Conv has more, the MatMul less
        told(CHAIN, 1000, backend)
    assert len(set(backend.nodes)) > 1


def test_where_a_piece_does_not_load_the_whole_is_asked() -> None:
    assert told(CHAIN, 2, Counting(whole=True)) == told(CHAIN, 1000)
    bad = net("(float[N,4] x) => (float[N,4] y) {\n a = Relu(x)\n b = Relu(a)\n y = nowhere.Op(b)\n}")
    bad.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(ModelError, match=r"cannot load the model: .*nowhere"):
        told(bad, 1)


def test_a_first_piece_that_refuses_sizes_is_loaded_once_for_all_that_follow() -> None:
    model = net("(float[N,4] x) => (float[N,4] y) {\n a = Add(x, w)\n b = Relu(a)\n y = Neg(b)\n}", w=(5, 4))
    source, backend = normalise((given := read(model)).model, given.kept).model, Counting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "NODES", 1)
        probe = pieces.Pieces(source, value_kinds(source), ["x", "a", "b", "y"], [], backend)
    for rows in (2, 3, 4):
        with pytest.raises(ModelError, match="Add"):
            probe.run({"x": np.zeros((rows, 4), np.float32)})
    assert backend.firsts == ["Add"]
    for rows in (1, 5):
        shapes, _ = probe.run({"x": np.zeros((rows, 4), np.float32)})
        assert [tuple(shapes[name]) for name in "xaby"] == [(rows, 4), (5, 4), (5, 4), (5, 4)]
    assert backend.firsts == ["Add", "Relu", "Neg", "Add", "Relu", "Neg"]  # none is held while others run


def test_a_sequence_is_not_handed_on() -> None:
    model = net(
        """(float[N,4] x) => (float[N,8] y) {
            m = ReduceMin<keepdims=0>(x)
            z = Sub(m, m)
            k = Cast<to=7>(z)
            s = SequenceConstruct(x, x)
            i = SequenceInsert(s, x)
            l = SequenceErase(i, k)
            y = ConcatFromSequence<axis=1>(l)
        }"""
    )
    backend = Counting()
    assert told(model, 1, backend) == told(model, 1000)
    assert max(backend.nodes) == 4


@pytest.mark.parametrize("refused", ["", "cpu"], ids=["known to the processor", "for the device alone"])
def test_a_model_for_a_device_is_traced_on_the_processor_where_that_runs_it(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's kernels leave outputs out that nothing reads, and refuse what has no entries."""
    model = net("(float[N,4] x) => (float[N,3] y) { a = Gemm(x, v) b = Relu(a) y = Gemm(b, w) }", v=(4, 5), w=(5, 3))
    opened, real = list[str](), OrtBackend.session

    def session(self: OrtBackend, made: ModelProto, *, optimize: bool = True, frugal: bool = False) -> Session:
        opened.append(self.provider if made.graph.name != "nothing" else f"{self.provider} tried")
        if self.provider == refused:
            raise ModelError("no kernel")
        return real(OrtBackend("cpu", 1), made, optimize=optimize, frugal=frugal)  # stands in for the device

    monkeypatch.setattr(OrtBackend, "session", session)
    found = trace(model, backend=OrtBackend("cuda", 1))
    assert opened[0] == "cuda tried"
    assert set(opened[1:]) == ({"cpu"} if not refused else {"cpu", "cuda"})
    assert found.backend == OrtBackend("cuda", 1)
    assert [len(group) for group in found.groups] == [5]
