"""Where operands come from: rows of linears, heads that are repeated."""

import pytest
import torch
from graphs import Call

import fxquant as fxq
from fxquant.graph import edit
from fxquant.passes.attention_operands import flattens, operand, unrepeated
from fxquant.passes.canonicalize import canonicalize

X = torch.randn(2, 5, 64)


def result(function, *inputs):
    """Return the node of a function's result, and of its first input."""
    gm = canonicalize(fxq.capture(Call(function).eval(), inputs))
    return gm.graph.output_node().args[0][0], next(iter(gm.graph.nodes))


ROWS = {
    "view and transpose": lambda x: x.view(x.shape[0], x.shape[1], 4, 16).transpose(1, 2),
    "unflatten": lambda x: x.unflatten(2, (4, 16)).transpose(1, 2),
    "permute": lambda x: x.view(x.shape[0], x.shape[1], 4, 16).permute(0, 2, 1, 3),
    "transpose from behind": lambda x: x.view(x.shape[0], x.shape[1], 4, 16).transpose(-3, -2),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_a_view(case):
    node, x = result(ROWS[case], X)
    assert operand(node).rows is x


def test_positions_of_another_view_are_its_four_axes():
    node, _ = result(lambda x: x.view(-1, 4, 4, 16).transpose(1, 2), torch.randn(6, 8, 64))
    assert len(edit.info(operand(node).rows).shape) == 4


def test_heads_before_positions_have_no_rows():
    node, _ = result(lambda x: x.relu(), torch.randn(2, 4, 5, 16))
    assert operand(node).rows is None


def test_what_flattens():
    yes, _ = result(lambda x: x.view(x.shape[0], x.shape[1], 4, 16).relu().flatten(2), X)
    other, _ = result(lambda x: x.flatten(0, 1), torch.randn(2, 5, 4, 16))
    assert flattens(yes)
    assert not flattens(other)


REPEATS = {
    "groups": (lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], 4, -1, 16), True),
    "one for all": (lambda x: x[:, :1].expand(-1, 4, -1, -1), True),
    "in turn": (lambda x: x[:, None].expand(-1, 2, -1, -1, -1).reshape(x.shape[0], 4, -1, 16), False),
    "a copy": (lambda x: torch.cat([x, x], 1), False),
}


@pytest.mark.parametrize("case", REPEATS)
def test_repeated_heads(case):
    function, expected = REPEATS[case]
    node, _ = result(function, torch.randn(3, 2, 5, 16))
    once = unrepeated(node, node)
    assert (once[0] is not node) == expected
    assert edit.info(once[0]).shape[1] == (4 if not expected else 1 if case == "one for all" else 2)


def test_keys_and_values_are_both_repeated_or_neither():
    groups, _ = result(REPEATS["groups"][0], torch.randn(3, 2, 5, 16))
    plain, _ = result(lambda x: x.relu(), torch.randn(3, 4, 5, 16))
    assert unrepeated(groups, plain) == (groups, plain)
