"""Query, key and value that are cut out of one tensor are found as its columns, however models write that."""

import pytest
import torch
from graphs import Call, nodes
from torch import nn

import fxquant as fxq
from fxquant.passes.attention_columns import Merged, merged
from fxquant.passes.attention_operands import operand
from fxquant.passes.canonicalize import canonicalize

LAST = torch.tensor([-1])


def heads(x):
    return x.view(x.shape[0], x.shape[1], -1, 4).transpose(1, 2)


def by_head(x, parts=3):
    return x.view(x.shape[0], x.shape[1], -1, parts, 4)


def grouped(x):
    """Two queries, a key and a value, twice."""
    x = by_head(x, 4)
    return [part.flatten(2, 3).transpose(1, 2) for part in (x[..., :2, :], x[..., 2:3, :], x[..., 3:, :])]


def two_more(x):
    x = x.view(x.shape[0], x.shape[1], -1, 4)
    return [part.transpose(1, 2) for part in (x[:, :, :-2], x[:, :, [-2]], x[:, :, LAST])]


# What cuts 12 columns a head, or 8 for queries that share a key, and in how many groups they are found.
CUTS = {
    "slices": (lambda x: [heads(x[..., a : a + 8]) for a in (0, 8, 16)], 1),
    "split": (lambda x: [heads(y) for y in x.split(8, -1)], 1),
    "split by sizes": (lambda x: [heads(y) for y in x.split([16, 4, 4], -1)], 1),
    "chunks of a view": (lambda x: x.view(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0), 1),
    "one key for all": (two_more, 1),
    "by head": (lambda x: [by_head(x)[..., part, :].transpose(1, 2) for part in range(3)], 2),
    "heads first": (lambda x: heads(x.flatten(2)).view(x.shape[0], 3, 2, -1, 4).unbind(1), None),
    "chunks behind moved heads": (
        lambda x: x.view(x.shape[0], x.shape[1], -1, 12).transpose(1, 2).chunk(3, -1),
        2,
    ),
    "groups of two queries": (grouped, None),
    "columns left over": (lambda x: [heads(x[..., a : a + 4]) for a in (0, 4, 8)], None),
    "a gap": (lambda x: [heads(x[..., a : a + 4]) for a in (0, 4, 12)], None),
    "another order": (lambda x: [heads(x[..., a : a + 8]) for a in (8, 0, 16)], None),
    "another order by head": (lambda x: [by_head(x)[..., part, :].transpose(1, 2) for part in (1, 0, 2)], None),
    "rows, not columns": (lambda x: [heads(x[:, a : a + 2]) for a in (0, 2, 4)], None),
    "positions of another view": (
        lambda x: [heads(y.reshape(y.shape[1], y.shape[0], -1)) for y in x.split(8, -1)],
        None,
    ),
    "tokens one by one": (lambda x: [heads(y)[:, :, [0, 1]] for y in x.split(8, -1)], None),
    "another tensor": (lambda x: [heads(y) for y in (x[..., :8], (x * 2)[..., 8:16], x[..., 16:])], None),
}


@pytest.mark.parametrize("case", CUTS)
def test_columns_of_one_tensor(case):
    function, groups = CUTS[case]
    linear = nn.Linear(5, 32 if case == "groups of two queries" else 24)
    model = nn.Sequential(linear, Call(lambda x: tuple(function(x)))).eval()
    gm = canonicalize(fxq.capture(model, (torch.randn(2, 6, 5),)))
    found = merged(*(operand(node) for node in gm.graph.output_node().args[0]))
    (source,) = nodes(gm, torch.ops.aten.linear.default)
    assert found == (None if groups is None else Merged(source, groups))
