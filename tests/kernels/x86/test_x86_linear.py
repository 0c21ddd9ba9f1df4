import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, FLOAT_OUTPUT, int32, integer_layer

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.errors import ConfigError
from fxquant.kernels.qdq import dynamic_spec
from fxquant.kernels.x86.gemm import accumulate
from fxquant.kernels.x86.packing import packed_weight

ops = torch.ops.fxquant
SPECS = {
    "uint8-affine-per-token": ("uint8", "per-token", False, "restricted"),
    "int8-symmetric-per-token": ("int8", "per-token", True, "restricted"),
    "uint8-affine-per-tensor": ("uint8", "per-tensor", False, "restricted"),
    "int8-full-per-tensor": ("int8", "per-tensor", True, "full"),
}
# A fixture that only sets the environment may serve every example.
on_each = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.tuples(
    st.sampled_from([(), (0,), (1,), (2,), (17,), (2, 3), (130,)]), st.integers(0, 70), st.integers(0, 40)
)


def assert_near(y, reference, x, weight, weight_scale):
    """Compare up to float32 rounding of the largest sums there may be."""
    assert y.shape == reference.shape
    assert y.dtype == reference.dtype
    if y.numel():
        bound = x.abs().amax() * weight.float().abs().sum(1).amax() * weight_scale.amax() + 2
        assert (y - reference).abs().amax() <= 2.0**-22 * bound


def by_three_ops(x, weight, weight_scale, bias, residual, activation, spec):
    full = dynamic_spec(spec[0], spec[1], None, *spec[2:])
    scale, zero_point = ops.choose_qparams(x, spec[0], spec[1], None, *spec[2:])
    q = ops.quantize(x, scale, zero_point, None, full.qmin, full.qmax, full.format.torch_dtype)
    common = (weight, weight_scale, bias, residual, activation)
    return ops.linear_int8(q, scale, zero_point, *common, *FLOAT_OUTPUT)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@on_each
@given(shapes, st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.booleans(), st.integers(0, 99))
def test_dynamic_equals_its_three_ops(each_isa, spec, sizes, activation, with_bias, with_residual, seed):
    batch, depth, width = sizes
    weight, weight_scale, bias = integer_layer(width, depth, seed)
    x = torch.randn(*batch, depth) * 2 + 0.5
    arguments = (weight, weight_scale, bias if with_bias else None, torch.randn(width) if with_residual else None)
    y = ops.x86_linear_dynamic_int8(x, *arguments, activation, *spec)
    reference = by_three_ops(x, *arguments, activation, spec)
    if x.numel():
        assert_near(y, reference, x, weight, weight_scale)
    assert y.shape == (*batch, width)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("rows", [1, 5, 300], ids=["one-row", "few-rows", "many-rows"])
def test_dynamic_accumulators_are_exact(each_isa, spec, rows):
    weight, *_ = integer_layer(200, 384)
    one = torch.tensor(1.0)
    x = torch.randint(-127, 128, (rows, 384)).float()
    # These ends make the scale 1: 255/255 affine, 127/127 restricted, 2·127.5/255 full.
    x[:, 0] = -127.5 if spec[3] == "full" else -127.0
    x[:, 1] = 128.0 if spec[0] == "uint8" else 127.0
    y = ops.x86_linear_dynamic_int8(x, weight, one, None, None, "none", *spec)
    assert torch.equal(y.long(), x.round().long() @ weight.long().t())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=["uint8", "int8"])
@on_each
@given(shapes, st.sampled_from(list(ACTIVATIONS)), st.sampled_from(["none", "vector", "full"]), st.integers(0, 99))
def test_static_equals_the_reference(each_isa, dtype, sizes, activation, residual_kind, seed):
    batch, depth, width = sizes
    weight, weight_scale, bias = integer_layer(width, depth, seed)
    limits = torch.iinfo(dtype)
    x = torch.randint(limits.min, limits.max + 1, (*batch, depth), dtype=dtype)
    residual = {"none": None, "vector": torch.randn(width), "full": torch.randn(*batch, width)}[residual_kind]
    zero_point = int32(limits.min + 100)
    start = (x, torch.tensor(0.02), zero_point, weight, weight_scale, bias, residual, activation)
    reference = ops.linear_int8(*start, *FLOAT_OUTPUT)
    y = ops.x86_linear_int8(*start, *FLOAT_OUTPUT)
    assert_near(y, reference, (x.float() - zero_point) * 0.02, weight, weight_scale) if x.numel() else None
    for output in (
        (torch.tensor(0.05), int32(0), -127, 127, torch.int8),
        (torch.tensor(0.05), int32(120), 0, 255, torch.uint8),
    ):
        q, expected = ops.x86_linear_int8(*start, *output), ops.linear_int8(*start, *output)
        assert q.dtype is expected.dtype
        assert q.shape == expected.shape == (*batch, width)
        assert not q.numel() or (q.int() - expected.int()).abs().amax() <= 1
        assert not q.numel() or q.amin() >= output[2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=["uint8", "int8"])
def test_static_per_token_scales(each_isa, dtype):
    weight, weight_scale, bias = integer_layer(30, 50)
    limits = torch.iinfo(dtype)
    x = torch.randint(limits.min, limits.max + 1, (2, 7, 50), dtype=dtype)
    scale, zero_point = torch.rand(2, 7, 1), torch.randint(limits.min, limits.max + 1, (2, 7, 1), dtype=torch.int32)
    start = (x, scale, zero_point, weight, weight_scale, bias, None, "gelu")
    reference = ops.linear_int8(*start, *FLOAT_OUTPUT)
    assert_near(ops.x86_linear_int8(*start, *FLOAT_OUTPUT), reference, (x - zero_point) * scale, weight, weight_scale)


@pytest.mark.parametrize("value", [127, -128], ids=["positive", "negative"])
def test_the_largest_operands_do_not_saturate(each_isa, value):
    depth, rows = 4096, 20
    weight = torch.full((33, depth), value, dtype=torch.int8)
    one = torch.tensor(1.0)
    x = torch.full((rows, depth), 255, dtype=torch.uint8)
    y = ops.x86_linear_int8(x, one, int32(0), weight, one, None, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y, torch.full((rows, 33), 255.0 * value * depth))
    values = torch.full((rows, depth), 255.0)
    for rows_given in (values, values[:1]):
        y = ops.x86_linear_dynamic_int8(rows_given, weight, one, None, None, "none", *SPECS["uint8-affine-per-token"])
        torch.testing.assert_close(y, torch.full_like(y, 255.0 * value * depth), rtol=1e-6, atol=0)


def test_an_int32_bias_is_in_units_of_the_accumulator(each_isa):
    weight, weight_scale, _ = integer_layer(9, 64)
    x = torch.randint(0, 256, (5, 64), dtype=torch.uint8)
    bias = torch.randint(-9999, 9999, (9,), dtype=torch.int32)
    start = (x, torch.tensor(0.1), int32(77), weight, weight_scale, bias, None, "relu")
    reference = ops.linear_int8(*start, *FLOAT_OUTPUT)
    torch.testing.assert_close(ops.x86_linear_int8(*start, *FLOAT_OUTPUT), reference, rtol=1e-5, atol=1e-4)


def test_strided_activations(each_isa):
    weight, weight_scale, bias = integer_layer(10, 24)
    spec = SPECS["uint8-affine-per-token"]
    for x in (torch.randn(24, 50).t(), torch.randn(5, 6, 48)[:, ::2, ::2], torch.randn(24).expand(4, 24)):
        y = ops.x86_linear_dynamic_int8(x, weight, weight_scale, bias, None, "none", *spec)
        expected = ops.x86_linear_dynamic_int8(x.contiguous(), weight, weight_scale, bias, None, "none", *spec)
        assert torch.equal(y, expected)
    q = torch.randint(0, 256, (24, 50), dtype=torch.uint8).t()
    start = (torch.tensor(0.1), int32(3), weight, weight_scale, bias, None, "none")
    y = ops.x86_linear_int8(q, *start, *FLOAT_OUTPUT)
    assert torch.equal(y, ops.x86_linear_int8(q.contiguous(), *start, *FLOAT_OUTPUT))


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("strides", [(0, 1), (1, 1), (5, 1)], ids=str)
def test_odd_strides_of_a_dimension_of_size_one(depth, strides):
    weight = integer_layer(17, depth)[0]
    q = torch.randint(-128, 128, (depth,), dtype=torch.int8).as_strided((1, depth), strides)
    sums = accumulate(q, packed_weight(weight, torch.tensor(1.0)))
    assert torch.equal(sums.long(), q.long() @ weight.long().t())


def test_rows_do_not_depend_on_their_batch(each_isa):
    weight, weight_scale, bias = integer_layer(21, 40)
    x = torch.randn(12, 40)
    arguments = (weight, weight_scale, bias, None, "gelu", *SPECS["uint8-affine-per-token"])
    together = ops.x86_linear_dynamic_int8(x, *arguments)
    alone = torch.cat([ops.x86_linear_dynamic_int8(row, *arguments) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 90], ids=["few-rows", "many-rows"])
def test_weight_only_equals_the_reference(each_isa, rows):
    weight, weight_scale, bias = integer_layer(12, 35)
    x = torch.randn(rows, 2, 35)
    for scale in (weight_scale, torch.tensor(0.02)):
        arguments = (weight, scale, bias, torch.randn(rows, 2, 12), "silu")
        torch.testing.assert_close(ops.x86_linear_weight_int8(x, *arguments), ops.linear_weight_int8(x, *arguments))


def test_embedding_equals_the_reference():
    table, scale, _ = integer_layer(50, 16)
    indices = torch.randint(0, 50, (3, 4))
    for each in (scale, torch.tensor(0.5)):
        assert torch.equal(ops.x86_embedding_int8(table, each, indices), ops.embedding_int8(table, each, indices))


@pytest.mark.parametrize("rows", [1, 3])
def test_an_unknown_activation_names_the_nearest(each_isa, rows):
    weight, weight_scale, _ = integer_layer(4, 8)
    x, q = torch.randn(rows, 8), torch.zeros(rows, 8, dtype=torch.uint8)
    common = (weight, weight_scale, None, None, "gelu_tan")
    for call in (
        lambda: ops.x86_linear_dynamic_int8(x, *common, *SPECS["uint8-affine-per-token"]),
        lambda: ops.x86_linear_dynamic_int8(x, *common, *SPECS["uint8-affine-per-tensor"]),
        lambda: ops.x86_linear_int8(q, torch.tensor(1.0), int32(0), *common, *FLOAT_OUTPUT),
        lambda: ops.x86_linear_weight_int8(x, *common),
    ):
        with pytest.raises(ConfigError, match=r"unknown activation 'gelu_tan': did you mean 'gelu_tanh'"):
            call()


def test_opcheck(each_isa):
    weight, weight_scale, bias = integer_layer(5, 16)
    x, check = torch.randn(2, 3, 16), torch.library.opcheck
    common = (weight, weight_scale, bias, torch.randn(5), "gelu")
    q = torch.randint(0, 256, (2, 3, 16), dtype=torch.uint8)
    static = (q, torch.tensor(0.1), int32(3), *common)
    check(ops.x86_linear_dynamic_int8.default, (x, *common, *SPECS["uint8-affine-per-token"]))
    check(ops.x86_linear_int8.default, (*static, *FLOAT_OUTPUT))
    check(ops.x86_linear_int8.default, (*static, torch.tensor(0.1), int32(0), -127, 127, torch.int8))
    check(ops.x86_linear_weight_int8.default, (x, *common))
    check(ops.x86_embedding_int8.default, (weight, weight_scale, torch.tensor([[1, 0]])))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in zip(("weight", "scale", "bias"), integer_layer(5, 16), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x):
        spec = SPECS["uint8-affine-per-token"]
        return ops.x86_linear_dynamic_int8(x, self.weight, self.scale, self.bias, None, "gelu", *spec)


def test_models_are_copied_saved_exported_and_compiled(tmp_path):
    model, x = Model(), torch.randn(3, 16)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    loaded = Model()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(loaded(x), y)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    assert torch.equal(program.module()(x), y)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), y)
    assert torch.equal(compiled(x[:2]), model(x[:2]))
