"""Each rule against the op itself: where it says that tokens stay apart, the op gives the same on packed tokens."""

import pytest
import torch
from graphs import Call

import fxquant as fxq
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.token_exits import Exit, exit_of, is_zero_at_padding
from fxquant.passes.token_rules import result_axis, token_operands
from fxquant.passes.token_shapes import resize
from fxquant.passes.token_views import Use

aten, ops = torch.ops.aten, torch.ops.fxquant
B, S, H, D = 3, 5, 2, 4
LIVE = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
WEIGHT, ROW, OVER, FILTER = torch.randn(6, D), torch.randn(D), torch.randn(5, S), torch.randn(D, D, 3)
QPARAMS = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(x, axis):
    """Return the tokens of x, with sequences along 0 and tokens along `axis`, as one row."""
    x = x.expand(B, *x.shape[1:]) if x.shape[0] == 1 else x
    return x.transpose(1, axis)[LIVE][None].transpose(1, axis)


def graph_of(function, *inputs):
    return CANONICAL.run(fxq.capture(Call(function), inputs, dynamic=False))


def result(gm):
    (found,) = gm.graph.output_node().args[0]
    return found


def three():
    return draw(B, S, D)


# What is computed, of which tensors, and where tokens lie in the result.
APART = {
    "sum of two": (lambda x, y: x + y, (three(), draw(B, S, D, seed=1)), 1),
    "scaled by a row": (lambda x: x * ROW, (three(),), 1),
    "a number for each": (lambda x, y: x * y, (three(), draw(B, S, 1)), 1),
    "one for all sequences": (lambda x, y: x + y, (three(), draw(1, S, D)), 1),
    "one for all tokens": (lambda x, y: x + y, (three(), draw(1, 1, D)), 1),
    "behind the heads": (lambda x, y: x * y, (draw(B, H, S, D), draw(1, 1, S, D)), 2),
    "gelu": (torch.nn.functional.gelu, (three(),), 1),
    "cast": (lambda x: x.to(torch.int32), (three(),), 1),
    "where": (lambda x, y: torch.where(y > 0, x, 0.5), (three(), draw(B, S, 1)), 1),
    "linear": (lambda x: torch.nn.functional.linear(x, WEIGHT), (three(),), 1),
    "layer norm": (lambda x: torch.nn.functional.layer_norm(x, (D,), ROW), (three(),), 1),
    "layer norm of heads": (lambda x: torch.nn.functional.layer_norm(x, (H, D)), (draw(B, S, H, D),), 1),
    "rms norm": (lambda x: torch.nn.functional.rms_norm(x, (D,), ROW), (three(),), 1),
    "embedding": (lambda i: torch.nn.functional.embedding(i, WEIGHT), (torch.arange(B * S).reshape(B, S) % 6,), 1),
    "quantize": (lambda x: ops.quantize(x, *QPARAMS, None, 0, 255, torch.uint8).int(), (three(),), 1),
    "softmax of columns": (lambda x: x.softmax(-1), (three(),), 1),
    "log softmax of heads": (lambda x: x.log_softmax(2), (draw(B, S, H, D),), 1),
    "columns": (lambda x: x[..., 1:3], (three(),), 1),
    "halves": (lambda x: x.chunk(2, -1)[1], (three(),), 1),
    "split": (lambda x: x.split([1, 3], -1)[0], (three(),), 1),
    "joined columns": (lambda x, y: torch.cat([x, y], -1), (three(), three()), 1),
    "heads apart": (lambda x: x.reshape(B, S, H, D // H), (three(),), 1),
    "heads together": (lambda x: x.reshape(B, S, H * D), (draw(B, S, H, D),), 1),
    "unflatten": (lambda x: x.unflatten(-1, (H, D // H)), (three(),), 1),
    "expanded": (lambda x: x.expand(B, S, D), (draw(B, S, 1),), 1),
    "unsqueeze behind": (lambda x: x.unsqueeze(-1), (three(),), 1),
    "unsqueeze before": (lambda x: x.unsqueeze(1), (three(),), 2),
    "squeeze behind": (lambda x: x.squeeze(-1), (draw(B, S, 1),), 1),
    "squeeze before": (lambda x: x.squeeze(1), (draw(B, 1, S, D),), 1),
    "a column": (lambda x: x.select(-1, 2), (three(),), 1),
    "heads before tokens": (lambda x: x.transpose(1, 2), (draw(B, S, H, D),), 2),
    "tokens before heads": (lambda x: x.transpose(1, 2), (draw(B, H, S, D),), 1),
    "permuted": (lambda x: x.permute(0, 2, 3, 1), (draw(B, S, H, D),), 3),
    "mean of columns": (lambda x: x.mean(-1), (three(),), 1),
    "mean of columns, kept": (lambda x: x.mean(-1, keepdim=True), (three(),), 1),
    "sum of heads": (lambda x: x.sum(1), (draw(B, H, S, D),), 1),
    "largest column": (lambda x: x.amax(-1), (three(),), 1),
    "best column": (lambda x: x.argmax(-1), (three(),), 1),
}


@pytest.mark.parametrize("case", APART)
def test_tokens_apart(case):
    function, inputs, axis = APART[case]
    gm = graph_of(function, *inputs)
    expected = gm(*inputs)
    nodes = {result(gm): axis}
    placeholders = gm.graph.find_nodes(op="placeholder")
    waiting = [(result(gm), axis)]
    while waiting:
        node, own = waiting.pop()
        uses = token_operands(node, own) if node.op == "call_function" else ()
        assert uses is not None, node.format_node()
        for use in uses:
            assert use.missing == 0
            if use.value not in nodes and use.value.op == "call_function":
                assert result_axis(node, use.value, use.axis) == own
            nodes[use.value] = use.axis
            waiting.append((use.value, use.axis))
    given = [packed(x, nodes[node]) if node in nodes else x for node, x in zip(placeholders, inputs, strict=True)]
    for node, own in nodes.items():
        resize(node, own)
    gm.recompile()
    found = torch.fx.Interpreter(gm).run(*given, enable_io_processing=False)[0]
    torch.testing.assert_close(found, packed(expected, axis), rtol=1e-6, atol=1e-6)


TOGETHER = {
    "softmax of tokens": (lambda x: x.softmax(1), (three(),), 1),
    "softmax of sequences": (lambda x: x.softmax(0), (three(),), 1),
    "cumulative sum": (lambda x: x.cumsum(1), (three(),), 1),
    "mean of tokens": (lambda x: x.mean(1, keepdim=True), (three(),), 1),
    "mean of all": (lambda x: x.mean(), (three(),), 1),
    "norm of tokens": (lambda x: torch.nn.functional.layer_norm(x, (S, D)), (three(),), 1),
    "linear over tokens": (lambda x: torch.nn.functional.linear(x, OVER), (draw(B, D, S),), 2),
    "some tokens": (lambda x: x[:, 1:3], (three(),), 1),
    "some sequences": (lambda x: x[1:], (three(),), 1),
    "tokens joined": (lambda x: torch.cat([x, x], 1), (three(),), 1),
    "sequences joined": (lambda x: torch.cat([x, x]), (three(),), 1),
    "tokens and columns mixed": (lambda x: x.reshape(B, D, S), (three(),), 1),
    "sequences and tokens merged": (lambda x: x.reshape(B * S, D), (three(),), 1),
    "sequences and tokens exchanged": (lambda x: x.transpose(0, 1), (three(),), 1),
    "sequences permuted": (lambda x: x.permute(1, 0, 2), (three(),), 1),
    "matrix product": (lambda x, y: x @ y, (draw(B, S, D), draw(B, D, S)), 1),
    "convolution": (lambda x: torch.nn.functional.conv1d(x, FILTER, padding=1), (draw(B, D, S),), 2),
    "random": (lambda x: torch.bernoulli(x.sigmoid()), (three(),), 1),
    "flipped": (lambda x: x.flip(1), (three(),), 1),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_tokens_that_meet(case):
    function, inputs, axis = TOGETHER[case]
    assert token_operands(result(graph_of(function, *inputs)), axis) is None


def test_an_operand_without_axis_of_sequences_is_one_axis_short():
    gm = graph_of(lambda x, y: x + y, three(), draw(S, D))
    x, y = gm.graph.find_nodes(op="placeholder")
    assert token_operands(result(gm), 1) == (Use(x, 1), Use(y, 1, 1))


ZERO = {
    "a product": (lambda x, mask: x * mask.unsqueeze(-1), True),
    "a product, wide": (lambda x, mask: mask.unsqueeze(-1).expand(B, S, S).float() * x, True),
    "a product, split and cut": (lambda x, mask: (x * mask.unsqueeze(-1)).unflatten(-1, (1, S))[..., :1], True),
    "one column of a product": (lambda x, mask: (x * mask.unsqueeze(-1))[..., 0], True),
    "a product, transposed": (lambda x, mask: (x * mask.unsqueeze(-1)).transpose(1, 2), False),
    "a product along the other axis, transposed": (lambda x, mask: (x * mask.unsqueeze(1)).transpose(1, 2), True),
    "a product along the other axis": (lambda x, mask: x * mask.unsqueeze(1), False),
    "a sum": (lambda x, mask: x + mask.unsqueeze(-1), False),
    "where": (lambda x, mask: torch.where((mask != 0).unsqueeze(-1), x, 0.0), True),
    "where not": (lambda x, mask: torch.where((mask == 0).unsqueeze(-1), x, 0.0), False),
    "where, another number": (lambda x, mask: torch.where((mask != 0).unsqueeze(-1), x, -1.0), False),
    "masked_fill": (lambda x, mask: x.masked_fill((mask == 0).unsqueeze(-1), 0.0), True),
    "masked_fill, a negated mask": (lambda x, mask: x.masked_fill(~(mask != 0).unsqueeze(-1), 0.0), True),
    "masked_fill, another number": (lambda x, mask: x.masked_fill((mask == 0).unsqueeze(-1), -1.0), False),
    "masked_fill of tokens": (lambda x, mask: x.masked_fill((mask != 0).unsqueeze(-1), 0.0), False),
}


@pytest.mark.parametrize("case", ZERO)
def test_what_is_zero_at_padding(case):
    function, expected = ZERO[case]
    x, mask = draw(B, S, S), LIVE.long()
    gm = graph_of(lambda x, mask: (function(x, mask), mask != 0), x, mask)
    value, test = gm.graph.output_node().args[0]
    found, live = gm(x, mask)
    assert is_zero_at_padding(value, 1, test) is expected
    if expected:
        assert not found[~live].any()


def test_a_value_without_an_axis_of_tokens_is_not_served():
    gm = graph_of(
        lambda x, mask: (x * mask.unsqueeze(-1), (x * mask.unsqueeze(-1)).sum(1), mask != 0), three(), LIVE.long()
    )
    value, reader, test = gm.graph.output_node().args[0]
    assert exit_of(reader, value, 1, test) is Exit.UNPACK
    assert exit_of(value, value, 1, test) is None
