"""Quantizations that no kernel took over come to stand before their readers, and numbers stay what they are."""

import pytest
import torch
from captured import converted
from golden import check_golden
from graphs import applied, nodes
from torch import nn

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native
from fxquant.passes.fuse_attention import ATTENTION
from fxquant.passes.fuse_rows import ROW_PROGRAM
from fxquant.passes.sink_quantize import QUANTIZE, SinkQuantize
from fxquant.stages import unfused

LINEAR = torch.ops.fxquant.packed_linear_int8.default


@pytest.fixture(autouse=True)
def own_kernels():
    if not native.available():
        pytest.skip("torch's own ops quantize")


def x(*shape):
    return torch.randn(shape or (2, 6, 8), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """`function` of the model, which has two linears, and of its input."""

    def __init__(self, function, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.linear, self.other = function, nn.Linear(width, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self, x)


def pair(function, width=8):
    """Return a static graph before the pass and after it, and the count of its changes."""
    model, given = Model(function, width).eval(), (x(),)
    prepared = fxq.prepare(fxq.capture(model, given, dynamic=False), "x86", "static")
    qdq = fxq.convert(fxq.calibrate(prepared, [given], progress=False))
    before = unfused(fxq.lower(qdq))
    after, count = applied(before, SinkQuantize())
    assert torch.equal(after(*given), before(*given))
    return before, after, count


def sources(gm):
    """What the quantizations read."""
    return [node.args[0].target for node in nodes(gm, QUANTIZE)]


MOVES = {
    "transpose and reshape": (lambda x: x.view(2, 3, 2, 8).transpose(1, 2).reshape(2, 6, 8), 8, 3),
    "permute": (lambda x: x.permute(2, 0, 1).flatten(1), 12, 2),
    "select": (lambda x: x[:, 0], 8, 1),
    "slice": (lambda x: x[:, 1:3], 8, 1),
    "unflatten": (lambda x: x.unflatten(-1, (2, 4)), 4, 1),
    "unsqueeze": (lambda x: x[None], 8, 1),
}


@pytest.mark.parametrize("case", MOVES)
def test_it_comes_to_stand_before_the_linear(case):
    between, width, moves = MOVES[case]
    before, after, count = pair(lambda model, x: model.linear(between(x)), width)
    assert count == moves
    assert sources(before) == ["x"], "it was moved up to the input"
    (linear,), (quantize,) = nodes(after, LINEAR), nodes(after, QUANTIZE)
    assert linear.args[0] is quantize
    assert edit.info(quantize).dtype is torch.uint8
    assert edit.info(quantize.args[0]).dtype is torch.float32


def test_golden():
    before, after, _ = pair(lambda model, x: model.linear(x.transpose(1, 2).flatten(1)[:, :6]), 6)
    check_golden("sink_quantize", f"before sink_quantize:\n{to_text(before)}\nafter:\n{to_text(after)}")


def test_a_second_time_there_is_nothing_to_do():
    _, after, _ = pair(lambda model, x: model.linear(x.transpose(1, 2).flatten(1)), 48)
    assert SinkQuantize().apply(after) == 0


STAYS = {
    "repeated values": lambda model, x: model.linear(x[:, None].expand(-1, 3, -1, -1)),
    "all values read twice": lambda model, x: model.linear(x.transpose(0, 1)) + model.other(x.reshape(6, 2, 8)),
    "values of several": lambda model, x: model.linear(torch.cat([x, x.flip(0)])),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_would_be_more_work_stays(case):
    _, after, _ = pair(STAYS[case])
    assert all(edit.info(node).shape in ((2, 6, 8), (2, 1, 6, 8)) for node in nodes(after, QUANTIZE))
    assert all(node.args[0].target is not QUANTIZE for node in nodes(after, LINEAR))


def test_a_reader_of_the_integers_goes_on_reading_them():
    _, after, count = pair(lambda model, x: (model.linear(x), model.other(x[:, 0]))[0])
    assert count == 0, "nothing reads the second"
    _, after, count = pair(lambda model, x: model.linear(x) + model.other(x[:, :1]))
    assert count == 1
    assert sorted(edit.info(node.args[0]).shape for node in nodes(after, LINEAR)) == [(2, 1, 8), (2, 6, 8)]
    assert {node.args[0].target for node in nodes(after, LINEAR)} == {QUANTIZE}


def test_a_kernel_that_requantizes_goes_on_doing_so():
    _, after, count = pair(lambda model, x: model.linear(model.other(x).transpose(0, 1)))
    assert count == 0
    assert sources(after) == ["x"]


@pytest.mark.parametrize(("name", "layers"), [("bert", 2), ("gpt2", 1)])
def test_static_graphs_fuse_as_dynamic_ones(name, layers):
    def kernels(recipe):
        lowered = fxq.lower(converted(name, recipe))
        assert not nodes(lowered, QUANTIZE), "each is a step of a program"
        calls = [node.target for node in lowered.graph.nodes if node.target in (ATTENTION, ROW_PROGRAM)]
        return calls[: 1 + 2 * layers]

    assert kernels("static") == kernels("dynamic") == [ROW_PROGRAM, *[ATTENTION, ROW_PROGRAM] * layers]
