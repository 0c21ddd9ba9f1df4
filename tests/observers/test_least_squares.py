import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import observers
from fxquant.errors import CalibrationError, ConfigError
from fxquant.numerics import choose_qparams, fake_quantize, sqnr
from fxquant.observers import least_squares
from fxquant.spec import QuantSpec

GROUPS = {"dtype": "int4", "granularity": "per-group"}


def fitted(x, **fields):
    spec = QuantSpec(observer="least_squares", **fields)
    observer = observers.create(spec)
    assert observer(x) is x
    return spec, observer.qparams()


def squares(x, qparams, spec):
    return (fake_quantize(x, qparams, spec).double() - x.double()).square()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=40),
    dtype=st.sampled_from(["int4", "uint4", "int8"]),
    symmetric=st.booleans(),
    range=st.sampled_from(["restricted", "full"]),
    size=st.sampled_from([1, 5, 32]),
)
def test_no_group_is_worse_than_by_its_extremes(values, dtype, symmetric, range, size):
    x = torch.tensor([values])
    spec, qparams = fitted(x, dtype=dtype, granularity="per-group", group_size=size, symmetric=symmetric, range=range)
    whole = choose_qparams(x, spec)
    found, known = (squares(x, each, spec)[0].split(size) for each in (qparams, whole))
    for mine, theirs, scale in zip(found, known, whole.scale[0], strict=True):
        # quotients at a tie fall either way in float32, which moves the error by as much as that rounding
        assert float(mine.sum()) <= float(theirs.sum()) * (1 + 1e-4) + float(scale.double() * 1e-4) ** 2


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_groups_come_near_the_best_of_a_dense_search(symmetric):
    x = drawn(100, 32)
    spec, qparams = fitted(x, **GROUPS, symmetric=symmetric)
    whole = choose_qparams(x, spec)
    shares = torch.linspace(0.4, 1.2, 401)
    tried = [squares(x, whole._replace(scale=whole.scale * share), spec).sum(1) for share in shares]
    dense = torch.stack(tried).amin(0)
    found = squares(x, qparams, spec).sum(1)
    assert float(found.sum()) < 1.03 * float(dense.sum())
    assert float(squares(x, whole, spec).sum()) > 1.1 * float(found.sum())


def test_scale_suits_the_integers_it_gives():
    x = drawn(64, 32)
    spec, qparams = fitted(x, **GROUPS)
    k = (x / qparams.scale).round().add(qparams.zero_point).clamp(-8, 7) - qparams.zero_point
    best = (x * k).sum(1, keepdim=True) / k.square().sum(1, keepdim=True)
    assert float((best / qparams.scale - 1).abs().max()) < 0.02
    assert torch.equal(qparams.zero_point, choose_qparams(x, spec).zero_point)


@pytest.mark.parametrize(
    ("fields", "gain"), [({}, 0.4), ({"symmetric": True}, 0.5), ({"group_size": 128}, 0.4)], ids=str
)
def test_weights_of_four_bits_lose_less(fields, gain):
    x = drawn(64, 512)
    spec, qparams = fitted(x, **GROUPS, **fields)
    before = sqnr(x, fake_quantize(x, choose_qparams(x, spec), spec))
    assert sqnr(x, fake_quantize(x, qparams, spec)) > before + gain


def test_values_on_the_grid_stay_exact():
    x = torch.arange(-8, 8).float().repeat(3, 2) * torch.tensor([[0.5], [3.0], [1e-20]])
    spec, qparams = fitted(x, **GROUPS)
    torch.testing.assert_close(fake_quantize(x, qparams, spec), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [1, 31, 33, 70])
def test_a_short_last_group_is_fitted_by_its_own_values(columns):
    x = drawn(5, columns)
    _, together = fitted(x, **GROUPS)
    _, alone = fitted(x[:, columns // 32 * 32 :], **GROUPS) if columns % 32 else (None, together)
    assert together.scale.shape == (5, -(-columns // 32))
    torch.testing.assert_close(together.scale[:, -1], alone.scale[:, -1], rtol=1e-6, atol=0)


def test_rows_do_not_depend_on_what_is_fitted_beside_them(monkeypatch):
    x = drawn(37, 96)
    _, once = fitted(x, **GROUPS)
    monkeypatch.setattr(least_squares, "VALUES_AT_ONCE", 100)
    _, parts = fitted(x, **GROUPS)
    assert torch.equal(once.scale, parts.scale) and torch.equal(once.zero_point, parts.zero_point)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_along_any_axis_and_a_whole_tensor(axis):
    x = drawn(4, 3, 6) * torch.tensor([1.0, 9.0, 100.0])[None, :, None]
    fields = {"dtype": "int4", "symmetric": True}
    _, together = fitted(x, granularity="per-channel", axis=axis, **fields)
    for channel in range(x.shape[axis]):
        _, alone = fitted(x.select(axis, channel), **fields)
        assert alone.scale.shape == ()
        torch.testing.assert_close(together.scale[channel], alone.scale, rtol=1e-6, atol=0)


def test_groups_of_zeros_get_scale_one():
    x = torch.cat([torch.zeros(2, 32), drawn(2, 32)], 1)
    _, qparams = fitted(x, **GROUPS)
    assert qparams.scale[:, 0].tolist() == [1.0, 1.0]
    assert not qparams.zero_point.isnan().any()


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e30])
def test_extreme_magnitudes_change_nothing_but_the_scale(magnitude):
    x = drawn(8, 32)
    _, plain = fitted(x, **GROUPS)
    _, scaled = fitted(x * magnitude, **GROUPS)
    torch.testing.assert_close(scaled.scale / magnitude, plain.scale, rtol=1e-3, atol=0)


def test_it_serves_one_constant():
    observer = observers.create(QuantSpec(observer="least_squares", **GROUPS))
    observer(drawn(2, 32))
    with pytest.raises(CalibrationError, match="fits one constant tensor, such as a weight: for values that change"):
        observer(drawn(2, 32))
    other = observers.create(observer.spec)
    other(drawn(2, 32))
    with pytest.raises(CalibrationError, match="fits one constant tensor"):
        observer.merge(other)
    with pytest.raises(ConfigError, match="per-tensor or per-channel or per-group ranges, not per-token"):
        observers.create(QuantSpec(observer="least_squares", granularity="per-token", dynamic=True))


def test_state_is_saved_and_loaded():
    observer, other = (observers.create(QuantSpec(observer="least_squares", **GROUPS)) for _ in range(2))
    observer(drawn(3, 70))
    other.load_state_dict(observer.state_dict())
    for mine, theirs in itertools.zip_longest(observer.qparams(), other.qparams()):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
