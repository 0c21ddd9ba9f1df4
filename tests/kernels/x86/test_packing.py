import copy
import gc

import torch

from fxquant.kernels.x86 import packing
from fxquant.kernels.x86.packing import packed_weight


def weight_and_scale():
    return torch.randint(-127, 128, (5, 12), dtype=torch.int8), torch.rand(5)


def test_derived_arrays_are_made_once():
    weight, scale = weight_and_scale()
    assert packed_weight(weight, scale) is packed_weight(weight, scale)
    assert torch.equal(packed_weight(weight, scale).sums, weight.sum(1).int())


def test_a_change_in_place_or_another_scale_makes_them_anew():
    weight, scale = weight_and_scale()
    before = packed_weight(weight, scale)
    weight.fill_(1)
    after = packed_weight(weight, scale)
    assert after is not before
    assert after.sums.tolist() == [12] * 5
    scale.mul_(2)
    assert torch.equal(packed_weight(weight, scale).scale, scale)
    weight.data = torch.full((5, 12), 2, dtype=torch.int8)
    assert packed_weight(weight, scale).sums.tolist() == [24] * 5


def test_a_copy_has_its_own_and_the_dead_are_forgotten():
    gc.collect()
    known = len(packing._PACKED)
    weight, scale = weight_and_scale()
    twin = copy.deepcopy(weight)
    assert packed_weight(weight, scale) is not packed_weight(twin, scale)
    assert len(packing._PACKED) == known + 2
    del weight, twin
    gc.collect()
    assert len(packing._PACKED) == known


def test_a_scalar_scale_becomes_one_per_row_and_inference_tensors_work():
    with torch.inference_mode():
        weight = torch.ones(3, 4, dtype=torch.int8)
        assert packed_weight(weight, torch.tensor(0.5)).scale.tolist() == [0.5] * 3
