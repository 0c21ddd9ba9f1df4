"""Differences of outputs: worst of all, equal infinities aside, and NaN never taken for agreement."""

import math

import pytest
import torch

from fxquant.errors import DataError
from fxquant.verification.difference import difference

REFERENCE = [torch.tensor([1.0, -2.0, 4.0]), torch.tensor([1, 2])]


def test_units():
    found = difference(REFERENCE, [torch.tensor([1.0, -2.5, 4.0]), torch.tensor([9, 9])], (0.25, 0.0))
    assert (found.largest, found.steps, found.relative) == (0.5, 2.0, 0.125)
    assert found.sqnr == pytest.approx(10 * math.log10(21 / 0.25))
    assert found.cosine == pytest.approx(22 / math.sqrt(21 * 23.25))


def test_equal_outputs_with_infinities():
    left = [torch.tensor([1.0, -math.inf])]
    found = difference(left, [left[0].clone()], (0.1,))
    assert (found.largest, found.steps, found.sqnr, found.cosine) == (0.0, 0.0, math.inf, 1.0)


def test_the_worst_output_counts():
    pair = [torch.ones(2), torch.ones(2)]
    found = difference(pair, [torch.ones(2), torch.tensor([1.0, 1.5])], (1e-3, 0.25))
    assert (found.largest, found.steps) == (0.5, 2.0)


def test_nan_differs_by_infinitely_many_steps():
    found = difference([torch.ones(2)], [torch.tensor([1.0, math.nan])], (0.1,))
    assert (found.largest, found.steps, found.sqnr, found.cosine) == (math.inf, math.inf, -math.inf, 0.0)


def test_other_outputs_are_refused():
    with pytest.raises(DataError, match="it gave 1 outputs; expected 2"):
        difference(REFERENCE, REFERENCE[:1], (1.0, 1.0))
    with pytest.raises(DataError, match=r"output 0 is \(2,\); expected \(3,\)"):
        difference(REFERENCE, [torch.ones(2), torch.ones(2)], (1.0, 1.0))
