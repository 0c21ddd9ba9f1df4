import copy
import gc

import torch

from fxquant.kernels.memo import Memo


def test_made_once_until_one_of_the_tensors_changes():
    memo, made = Memo[object](), []
    weight, scale, bias = torch.ones(3), torch.ones(2), torch.ones(1)

    def get(*others):
        return memo.get(weight, others, lambda: made.append(object()) or made[-1])

    first = get(scale, bias)
    assert get(scale, bias) is first
    assert get(scale, None) is not first
    assert get(torch.ones(2), bias) is made[-1]
    assert len(made) == 3
    latest = get(scale, bias)
    bias.add_(1)
    assert get(scale, bias) is not latest
    latest = get(scale, bias)
    weight.data = torch.zeros(3)
    assert get(scale, bias) is not latest


def test_a_copy_has_its_own_and_the_dead_are_forgotten():
    memo = Memo[object]()
    weight = torch.ones(3)
    twin = copy.deepcopy(weight)
    assert memo.get(weight, (), object) is not memo.get(twin, (), object)
    assert len(memo) == 2
    del weight, twin
    gc.collect()
    assert len(memo) == 0


def test_inference_tensors_work():
    memo = Memo[object]()
    with torch.inference_mode():
        weight = torch.ones(3)
        assert memo.get(weight, (weight,), object) is memo.get(weight, (weight,), object)
