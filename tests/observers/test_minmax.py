import pytest
import torch

from fxquant import observers
from fxquant.errors import ConfigError
from fxquant.numerics import choose_qparams
from fxquant.spec import QuantSpec


def test_range_is_that_of_all_batches():
    observer = observers.create(QuantSpec())
    for values in ([3.0, 1.0], [-4.0], [2.0, 5.0]):
        observer(torch.tensor(values))
    assert (float(observer.low), float(observer.high)) == (-4.0, 5.0)
    assert float(observer.qparams().scale) == pytest.approx(9 / 255)


def test_range_always_holds_zero():
    observer = observers.create(QuantSpec(dtype="uint8"))
    observer(torch.tensor([3.0, 5.1]))
    scale, zero_point, *_ = observer.qparams()
    assert float(scale) == pytest.approx(5.1 / 255)
    assert int(zero_point) == 0


def test_per_token_range_is_that_of_the_latest_batch():
    spec = QuantSpec(granularity="per-token", dynamic=True, symmetric=True)
    observer = observers.create(spec)
    observer(torch.full((2, 9, 4), 100.0))
    x = torch.tensor([[[1.0, -127.0], [0.0, 0.0], [254.0, 3.0]]])
    observer(x)
    scale, zero_point, axis, _ = observer.qparams()
    assert scale.tolist() == [[[1.0], [1.0], [2.0]]]
    assert axis is None
    assert torch.equal(scale, choose_qparams(x, spec).scale)
    assert torch.equal(zero_point, torch.zeros(1, 3, 1, dtype=torch.int32))


def test_per_token_state_resumes_and_does_not_merge():
    spec = QuantSpec(granularity="per-token", dynamic=True)
    observer, other = observers.create(spec), observers.create(spec)
    observer(torch.randn(2, 3, 4))
    other.load_state_dict(observer.state_dict())
    assert torch.equal(other.qparams().scale, observer.qparams().scale)
    with pytest.raises(ConfigError, match="per-token ranges belong to one batch"):
        observer.merge(other)
