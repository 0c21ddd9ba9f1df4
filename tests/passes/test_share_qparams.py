"""Quantize nodes move to where values are computed, and never further than their numbers allow."""

import pytest
import torch
from graphs import Call
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE
from fxquant.passes.share_qparams import ShareQParams

aten = torch.ops.aten


def x(*shape, seed=0):
    return torch.randn(shape or (3, 8), generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """`between` stands between the two linears; it is given the model, what the first computes, and the inputs."""

    def __init__(self, between, width=8, first=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8) if first else nn.Identity()
        self.second = nn.Linear(width, 4)
        self.between = between

    def forward(self, x, *rest):
        return self.second(self.between(self, self.first(x), *rest))


def prepared(model, *inputs, recipe="static", backend="reference"):
    gm = fxq.prepare(fxq.capture(model.eval(), inputs, dynamic=False), backend, recipe)
    return fxq.calibrate(gm, [inputs], progress=False) if recipe != "dynamic" else gm


def converted(model, *inputs, **options):
    return fxq.convert(prepared(model, *inputs, **options))


def calls(gm, target):
    return [node for node in gm.graph.nodes if node.op == "call_function" and node.target is target]


def check_numbers(gm, *inputs):
    """The Q/DQ graph and both kernel sets compute the same, to one output step."""
    expected = gm(*inputs)
    for backend in ("reference", "x86"):
        torch.testing.assert_close(fxq.lower(gm, backend)(*inputs), expected, atol=3e-2, rtol=0)


@pytest.mark.parametrize(
    ("between", "width"),
    [
        (lambda model, h: h.view(-1, 4, 2).transpose(1, 2), 4),
        (lambda model, h: h[:, None].expand(-1, 3, -1).repeat(1, 2, 1), 8),
        (lambda model, h: torch.cat([h, h.flip(0)], -1), 16),
        (lambda model, h: torch.stack([h, h], 1), 8),
        (lambda model, h: functional.max_pool2d(h[:, None, :, None].expand(-1, 2, 8, 2), 2)[:, :, :, 0], 4),
    ],
    ids=["views", "repeats", "cat", "stack", "pool"],
)
def test_a_quantize_moves_past_what_hands_values_on(between, width):
    gm = converted(Model(between, width), x())
    moved = [node for node in gm.graph.nodes if node.op == "call_function" and node.target is not QUANTIZE]
    integer = [node for node in moved if edit.info(node) and edit.info(node).dtype is torch.int8]
    assert integer, "the ops in between work on integers"
    for node in calls(gm, QUANTIZE):
        assert node.args[0].target is not DEQUANTIZE
    check_numbers(gm, x())


def test_a_value_that_is_also_read_in_float_is_not_quantized_before():
    gm = converted(Model(lambda model, h: (h := h.view(-1, 4)) + functional.pad(model.second(h), (0, 0)), 4), x())
    view = next(node for node in calls(gm, aten.reshape.default))
    assert edit.info(view).dtype is torch.float32
    check_numbers(gm, x())


def test_a_graph_output_stays_float():
    class Two(Model):
        def forward(self, x):
            hidden = self.first(x).view(-1, 4)
            return hidden, self.second(hidden)

    gm = converted(Two(None, 4), x())
    hidden, _ = gm(x())
    assert hidden.dtype is torch.float32
    lowered, _ = fxq.lower(gm)(x())
    torch.testing.assert_close(lowered, hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=["integers", "double"])
def test_a_join_that_also_converts_is_left_alone(dtype):
    """cat makes floats of its integer part; quantizing that part before would hand integers to a float kernel."""
    model = Model(lambda model, h, extra: torch.cat([h, extra], -1).float(), 16)
    inputs = (x(), torch.ones(3, 8, dtype=dtype))
    gm = converted(model, *inputs)
    (cat,) = calls(gm, aten.cat.default)
    assert not [part for part in cat.args[0] if part.target is QUANTIZE]
    check_numbers(gm, *inputs)


def test_two_equal_quantizes_of_one_value_become_one():
    class Branches(Model):
        def forward(self, x):
            return self.second(x.view(-1, 8)) + self.second(x.reshape(-1, 1, 8).squeeze(1))

    gm = converted(Branches(None), x())
    assert len(calls(gm, QUANTIZE)) == 1
    check_numbers(gm, x())


def test_what_survives_a_merge_moves_on():
    """Two branches end in one quantize of a view, which then goes in front of that view."""
    gm = converted(Model(lambda model, h: h, first=False), x())
    (quantize,) = calls(gm, QUANTIZE)
    source = quantize.args[0]
    with gm.graph.inserting_before(quantize):
        view = edit.call(gm.graph, aten.reshape.default, (source, [3, 8]), like=source, value=edit.info(source))
        inner = edit.call(gm.graph, aten.reshape.default, (view, [3, 8]), like=source, value=edit.info(source))
        twins = [
            edit.call(gm.graph, QUANTIZE, (value, *quantize.args[1:]), like=value, value=edit.info(quantize))
            for value in (view, inner)
        ]
        sum_of = edit.call(gm.graph, aten.add.Tensor, tuple(twins), like=source, value=edit.info(quantize), alpha=1)
    edit.replace(quantize, sum_of)
    assert ShareQParams().apply(gm) > 0
    (one,) = calls(gm, QUANTIZE)
    assert one.args[0] is source, "in front of both views"


def test_a_quantize_of_other_parameters_stays_between():
    class Branches(Model):
        def __init__(self):
            super().__init__(None)
            self.third = nn.Linear(4, 2)

        def forward(self, x):
            return self.second(x), self.third(x[:, :4] * 1.0)

    gm = converted(Branches(), torch.cat([x(3, 4) / 10, x(3, 4)], 1))
    scales = {str(node.args[1].target) for node in calls(gm, QUANTIZE)}
    assert len(scales) == 2


def test_dynamic_quantization_does_not_move():
    gm = converted(Model(lambda model, h: h.view(-1, 4, 2).transpose(1, 2), 4), x(), recipe="dynamic")
    assert ShareQParams().apply(gm) == 0
    for node in calls(gm, QUANTIZE):
        assert node.args[1].op == "call_function", "its scale is computed"


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_relu_becomes_a_clamp_at_the_zero_point(symmetric):
    recipe = fxq.Recipe(base="static", specs={"activation": {"symmetric": symmetric}})
    gm = converted(Model(lambda model, h: h.tanh().relu().view(3, 8)), x(), recipe=recipe)
    (clamp,) = calls(gm, aten.clamp_min.default)
    (source,) = [node for node in calls(gm, QUANTIZE) if clamp.args[0] is node]
    assert clamp.args[1] == int(edit.get_tensor(gm, source.args[2]))
    assert (clamp.args[1] == 0) is symmetric
    check_numbers(gm, x())


def test_a_relu_of_a_claimed_op_stays_with_it():
    gm = converted(Model(lambda model, h: h.relu()), x())
    assert len(calls(gm, aten.relu.default)) == 1
    assert calls(gm, aten.clamp_min.default) == []


def test_applying_again_changes_nothing():
    gm = converted(Model(lambda model, h: torch.cat([h, h.view(3, 8)], -1), 16), x())
    before = str(gm.graph)
    assert ShareQParams().apply(gm) == 0
    assert str(gm.graph) == before


def test_a_matrix_product_of_views_reads_integers():
    gm = converted(Call(lambda a, b: torch.matmul(a.transpose(1, 2), b[:, :3])), x(2, 3, 4), x(2, 5, 6, seed=1))
    (product,) = calls(gm, aten.matmul.default)
    for read in product.args:
        assert edit.info(read.args[0]).dtype is torch.int8
    check_numbers(gm, x(2, 3, 4), x(2, 5, 6, seed=1))
