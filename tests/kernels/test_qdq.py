import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import numerics
from fxquant.errors import ConfigError
from fxquant.kernels import qdq
from fxquant.spec import QuantSpec

ops = torch.ops.fxquant
SPECS = [
    QuantSpec(dtype="uint8"),
    QuantSpec(dtype="uint8", granularity="per-token", dynamic=True),
    QuantSpec(dtype="uint8", granularity="per-sample", dynamic=True),
    QuantSpec(symmetric=True, granularity="per-channel", axis=0),
    QuantSpec(symmetric=True, range="full"),
    QuantSpec(granularity="per-channel", axis=-1),
]
IDS = [f"{s.dtype}-{s.granularity}-{s.range if s.symmetric else 'affine'}" for s in SPECS]


def chosen(x, spec):
    return ops.choose_qparams(x, spec.dtype, spec.granularity, spec.axis, spec.symmetric, spec.range)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 17), st.integers(0, 99))
def test_the_ops_compute_what_numerics_does(spec, batch, rows, columns, seed):
    x = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed)) * 3
    qparams = numerics.choose_qparams(x, spec)
    scale, zero_point = chosen(x, spec)
    assert torch.equal(scale, qparams.scale)
    assert torch.equal(zero_point, qparams.zero_point)
    q = ops.quantize(x, scale, zero_point, spec.axis, spec.qmin, spec.qmax, spec.format.torch_dtype)
    assert torch.equal(q, numerics.quantize(x, qparams, spec))
    assert torch.equal(ops.dequantize(q, scale, zero_point, spec.axis), numerics.dequantize(q, qparams))


@pytest.mark.parametrize("zeros", ["of-groups", "one"])
def test_groups(zeros):
    spec = QuantSpec(dtype="int4", granularity="per-group", group_size=5, symmetric=zeros == "one")
    x = torch.randn(3, 17)
    qparams = numerics.choose_qparams(x, spec)
    q = numerics.quantize(x, qparams, spec)
    zero_point = torch.tensor(0) if zeros == "one" else qparams.zero_point.to(torch.int8)
    arguments = (q, qparams.scale, zero_point, 5)
    assert torch.equal(ops.dequantize_groups(*arguments), numerics.fake_quantize(x, qparams, spec))
    torch.library.opcheck(ops.dequantize_groups.default, arguments)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_opcheck(spec):
    x = torch.randn(2, 3, 8)
    scale, zero_point = chosen(x, spec)
    q = numerics.quantize(x, numerics.choose_qparams(x, spec), spec)
    fields = (spec.dtype, spec.granularity, spec.axis, spec.symmetric, spec.range)
    stored = (spec.axis, spec.qmin, spec.qmax, spec.format.torch_dtype)
    torch.library.opcheck(ops.choose_qparams.default, (x, *fields))
    torch.library.opcheck(ops.quantize.default, (x, scale, zero_point, *stored))
    torch.library.opcheck(ops.dequantize.default, (q, scale, zero_point, spec.axis))


def test_values_outside_the_range_saturate_and_ties_go_to_even():
    x = torch.tensor([-1e30, -1.5, -0.5, 0.5, 1.5, 2.5, 1e30, float("inf")])
    one, zero_point = torch.tensor(1.0), torch.tensor(3, dtype=torch.int32)
    q = ops.quantize(x, one, zero_point, None, 0, 255, torch.uint8)
    assert q.tolist() == [0, 1, 3, 3, 5, 5, 255, 255]


def test_a_dynamic_graph_exports_with_free_sizes():
    class Model(torch.nn.Module):
        def forward(self, x):
            scale, zero_point = ops.choose_qparams(x, "uint8", "per-token", None, False, "restricted")
            q = ops.quantize(x, scale, zero_point, None, 0, 255, torch.uint8)
            return ops.dequantize(q, scale, zero_point, None)

    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Model(), (torch.randn(2, 5, 8),), dynamic_shapes=(sizes,), strict=False)
    x = torch.randn(3, 7, 8)
    assert torch.equal(program.module()(x), Model()(x))


def test_an_unknown_field_of_the_spec_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"granularity = 'per-row' is not known.*per-token"):
        ops.choose_qparams(torch.ones(2), "int8", "per-row", None, False, "restricted")


def test_specs_are_built_once():
    fields = ("uint8", "per-token", None, False, "restricted")
    assert qdq.dynamic_spec(*fields) is qdq.dynamic_spec(*fields)
