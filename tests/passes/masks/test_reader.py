"""Every term that is read of a mask's graph gives the tensor's values, at other sizes than those of the example."""

import itertools
import math

import pytest
import torch
from graphs import Call
from torch import fx

from fxquant.graph.capture import capture
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.masks.arithmetic import shown
from fxquant.passes.masks.reader import Reader
from fxquant.passes.masks.terms import ALWAYS, Affine, All, Choice, Element, Not, NotNegative, as_condition
from fxquant.passes.simplify_masks import MEANINGS

LEAST = torch.finfo(torch.float32).min


def length(mask):
    return torch.arange(mask.shape[1])


def packed(mask):
    """What transformers does with positions where no mask is given: sequences begin where they do not rise by one."""
    positions = length(mask)[None].expand(mask.shape[0], -1)
    return (torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1).cumsum(-1)


# What is computed of a mask (B, S) of 0 and 1, and how many parts its condition has; None: a number.
READ = {
    "padding": (lambda m: m.bool()[:, None, None, :], 1),
    "padding by view": (lambda m: m.bool().view(m.shape[0], 1, 1, m.shape[1]), 1),
    "padding gathered": (lambda m: m.bool()[torch.arange(m.shape[0])[:, None], length(m)[None]], 1),
    "causal": (lambda m: length(m)[None] <= length(m)[:, None], 1),
    "causal, reversed": (lambda m: length(m)[:, None] >= length(m)[None], 1),
    "not after": (lambda m: ~(length(m)[None] > length(m)[:, None]), 1),
    "strictly before": (lambda m: length(m)[None] < length(m)[:, None], 1),
    "transposed": (lambda m: (length(m)[None] <= length(m)[:, None]).transpose(0, 1), 1),
    "permuted": (lambda m: (length(m)[None] <= length(m)[:, None])[None].permute(2, 0, 1), 1),
    "window": (lambda m: (length(m)[None] > length(m)[:, None] - 3) & (length(m)[None] <= length(m)[:, None]), 2),
    "triangle": (lambda m: torch.ones(m.shape[1], m.shape[1], dtype=torch.bool).tril(), 1),
    "triangle, shifted": (lambda m: torch.ones(m.shape[1], m.shape[1], dtype=torch.bool).tril(-1), 1),
    "upper triangle": (lambda m: torch.ones(m.shape[1], m.shape[1], dtype=torch.bool).triu(1), 1),
    "always": (lambda m: length(m)[None, :, None] >= 0, 0),
    "never, or padding": (lambda m: (length(m) < 0)[None] | m.bool(), 1),
    "either of two": (lambda m: ~(~m.bool()[:, None] & (length(m)[:, None] > 2)), None),
    "cut": (lambda m: length(m)[2:][None] <= length(m)[:, None], 1),
    "a row": (lambda m: (length(m)[None] <= length(m)[:, None])[2], 1),
    "one sequence": (lambda m: packed(m)[:, :, None] == packed(m)[:, None], 0),
    "ramp": (lambda m: 2 * length(m)[None] - length(m)[:, None] + 1, None),
    "added, inverted": (lambda m: (1.0 - m[:, None, None].float()) * LEAST, None),
    "added, where": (lambda m: torch.where(m.bool()[:, None], 0.0, -math.inf), None),
    "added, filled": (
        lambda m: torch.zeros(m.shape[1], m.shape[1]).masked_fill(length(m)[None] > length(m)[:, None], LEAST),
        None,
    ),
    "added, triangle": (lambda m: torch.full((m.shape[1], m.shape[1]), -math.inf).triu(1), None),
    "added, filled twice": (
        lambda m: (
            torch.zeros(m.shape[1], m.shape[1])
            .masked_fill(length(m)[None] > length(m)[:, None], LEAST)
            .masked_fill(length(m)[None] < length(m)[:, None] - 1, LEAST)
        ),
        None,
    ),
    "a mask from a mask": (lambda m: ((1.0 - m.float()) * LEAST)[:, None] == 0, 1),
    "negated number": (lambda m: -(m.bool()[:, None].float()), None),
}


def read(function):
    """Return the canonical graph of a function of a mask, its result, and what is read of it."""
    gm = CANONICAL.run(capture(Call(function).eval(), (torch.ones(2, 5, dtype=torch.long),)))
    (result,) = gm.graph.output_node().args[0]
    return gm, result, Reader(gm, MEANINGS).read(result)


def held(term, place, values):
    """Return what a term says is held at an index, given the values of all nodes."""
    match term:
        case Affine(factors, constant):
            return sum(factor * place[axis] for axis, factor in factors) + constant
        case Element(node, places, zero):
            element = values[node][tuple(held(each, place, values) for each in places)].item()
            return not element if zero else element
        case NotNegative(value):
            return held(value, place, values) >= 0
        case All(parts):
            return all(held(part, place, values) for part in parts)
        case Not(condition):
            return not held(condition, place, values)
        case Choice(condition, yes, no):
            return yes if held(condition, place, values) else no
    raise AssertionError(term)


class Values(fx.Interpreter):
    """Keeps what every node gives."""

    def run_node(self, n):
        self.kept = getattr(self, "kept", {})
        self.kept[n] = super().run_node(n)
        return self.kept[n]


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("shape", [(2, 5), (3, 7), (1, 4)], ids=str)
def test_a_term_gives_the_values(case, shape):
    function, parts = READ[case]
    gm, result, term = read(function)
    assert not (isinstance(term, Element) and term.node is result), "nothing was read"
    assert parts is None or len(as_condition(term).parts) == parts
    mask = (torch.arange(shape[0] * shape[1]).view(shape) % 3 > 0).long()
    run = Values(gm)
    run.run(mask, enable_io_processing=False)
    value = run.kept[result]
    for place in itertools.product(*map(range, value.shape)):
        assert held(term, place, run.kept) == value[place].item(), place


def test_two_masks_that_are_added_hide_what_either_hides():
    def both(mask):
        causal = torch.full((mask.shape[1], mask.shape[1]), LEAST).triu(1)
        return causal[None, None] + (1.0 - mask[:, None, None].float()) * LEAST

    _, _, term = read(both)
    assert len(shown(term).parts) == 2


NOT_READ = {
    "positions that an input holds": lambda m: m.cumsum(1)[:, None] <= m.cumsum(1)[..., None],
    "indices from the end": lambda m: m.bool()[:, length(m) - 1],
    "a cut from the end": lambda m: length(m)[-2:],
    "every second": lambda m: length(m)[::2],
    "numbers that are compared": lambda m: m > 1,
    "a sum of float inputs": lambda m: m.float().sqrt() + 1.0,
    "a choice of data": lambda m: torch.where(m.bool(), m.float().sin(), LEAST),
}


@pytest.mark.parametrize("case", NOT_READ)
def test_what_is_not_known_is_an_element_of_the_tensor_itself(case):
    _, result, term = read(NOT_READ[case])
    assert isinstance(term, Element)
    assert term.node is result or NOT_READ[case] is NOT_READ["indices from the end"]


def test_a_stored_triangle_is_causal():
    class Stored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("bias", torch.ones(8, 8, dtype=torch.bool).tril()[None, None])

        def forward(self, mask):
            return self.bias[:, :, : mask.shape[1], : mask.shape[1]]

    gm = CANONICAL.run(capture(Stored().eval(), (torch.ones(2, 5),)))
    (result,) = gm.graph.output_node().args[0]
    (part,) = Reader(gm, MEANINGS).read(result).parts
    assert part == NotNegative(Affine(((2, 1), (3, -1))))


def test_numbers_are_constants():
    reader = Reader(fx.GraphModule({}, fx.Graph()), MEANINGS)
    assert reader.read(True) == ALWAYS
    assert reader.read(3) == Affine((), 3)
    assert reader.read(None) is None
