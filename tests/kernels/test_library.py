import pytest
import torch

from fxquant.kernels import library


def test_an_op_runs_on_real_tensors_and_its_fake_on_meta_tensors():
    library.define("double_for_test(Tensor x) -> Tensor", lambda x: x * 2, lambda x: x.new_empty(x.shape))
    op = torch.ops.fxquant.double_for_test
    assert op(torch.tensor([3.0])).item() == 6.0
    assert op(torch.empty(4, device="meta")).shape == (4,)
    torch.library.opcheck(op.default, (torch.randn(3),))


def test_asking_for_a_gradient_warns_and_the_operations_inside_are_not_recorded():
    library.define("triple_for_test(Tensor x) -> Tensor", lambda x: x * 3, lambda x: x.new_empty(x.shape))
    x = torch.ones(2, requires_grad=True)
    y = torch.ops.fxquant.triple_for_test(x)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        y.sum().backward()
    assert x.grad is None


def test_a_kind_of_device_may_have_its_own_implementation():
    library.define("where_for_test(Tensor x) -> Tensor", lambda x: x + 1, lambda x: x.new_empty(x.shape))
    x = torch.zeros(2, requires_grad=True)
    assert torch.ops.fxquant.where_for_test(x.detach()).tolist() == [1.0, 1.0]
    library.implement("where_for_test", lambda x: x + 2, "CPU")
    assert torch.ops.fxquant.where_for_test(x.detach()).tolist() == [2.0, 2.0]
    assert torch.ops.fxquant.where_for_test(torch.empty(3, device="meta")).shape == (3,)
