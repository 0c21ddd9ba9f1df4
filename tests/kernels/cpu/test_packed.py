"""The packed ops: what they mean without a compiler, and the C++ kernels on each instruction set against that."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, FLOAT_OUTPUT, integer_layer

import fxquant.kernels
from fxquant.kernels.cpu import native, packed
from fxquant.kernels.cpu.isa import NATIVE

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
BIT_EQUAL = ["none", "relu", "gelu"]  # the others go through exponentials, of which torch's differ in the last bits
SCHEMES = [("uint8", False, "restricted"), ("uint8", True, "restricted"), ("int8", False, "restricted")]
SCHEMES += [("int8", True, "restricted"), ("int8", True, "full")]
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
batches = st.sampled_from([(), (0,), (1,), (2,), (5,), (6,), (7,), (3, 4), (97,)])


def reference(op, *arguments):
    """Run an op's Python implementation, whatever is registered before it."""
    return getattr(packed, op)(*arguments)


def assert_close(y, expected, slack=1e-5):
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    torch.testing.assert_close(
        y, expected, rtol=slack, atol=slack * max(1.0, expected.abs().max().item() if y.numel() else 1)
    )


@examples
@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 9))
def test_unpack_undoes_pack(n, k, seed):
    weight, _, _ = integer_layer(n, k, seed)
    blocks = packed.pack(weight)
    assert blocks.shape == (-(-n // 64), -(-k // 4), 64, 4)
    assert torch.equal(packed.unpack(blocks, n, k), weight)


def test_packing_is_the_documented_permutation():
    weight, _, _ = integer_layer(70, 9, 0)
    blocks = packed.pack(weight)
    assert blocks[1, 2, 3, 0] == weight[64 + 3, 8]
    assert blocks[1, 2, 3, 1] == 0, "beyond K"
    assert blocks[1, 0, 6, 0] == 0, "beyond N"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(map(str, scheme)))
@examples
@given(
    batches,
    st.integers(1, 70),
    st.integers(1, 140),
    st.sampled_from(list(ACTIVATIONS)),
    st.booleans(),
    st.integers(0, 99),
)
def test_dynamic_equals_the_reference(native_isa, scheme, batch, k, n, activation, full, seed):
    weight, scale, bias = integer_layer(n, k, seed)
    x = torch.randn(*batch, k, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    residual = torch.randn(*batch, n) if full else None
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), bias if full else None, residual, activation)
    y = ops.packed_linear_dynamic_int8(x, *arguments, *scheme)
    assert_close(y, reference("linear_dynamic_int8", x, *arguments, *scheme))
    if activation in BIT_EQUAL:
        assert torch.equal(y, reference("linear_dynamic_int8", x, *arguments, *scheme))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=["u8", "s8"])
@examples
@given(
    batches,
    st.integers(1, 70),
    st.integers(1, 140),
    st.sampled_from(list(ACTIVATIONS)),
    st.booleans(),
    st.integers(0, 99),
)
def test_static_equals_the_reference(native_isa, dtype, batch, k, n, activation, requantized, seed):
    weight, scale, bias = integer_layer(n, k, seed)
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(info.min, info.max + 1, (*batch, k), dtype=dtype, generator=generator)
    qparams = (torch.tensor(0.013), torch.tensor(info.min + 9, dtype=torch.int32))
    output = (
        (torch.tensor(0.05), torch.tensor(3, dtype=torch.int32), info.min, info.max, dtype)
        if requantized
        else FLOAT_OUTPUT
    )
    weights = (packed.pack(weight), scale, packed.column_sums(weight))
    arguments = (x, *qparams, *weights, bias, torch.randn(n), activation, *output)
    y, expected = ops.packed_linear_int8(*arguments), reference("linear_int8", *arguments)
    if activation in BIT_EQUAL:
        assert torch.equal(y, expected)
    elif requantized:
        assert y.dtype is dtype
        assert (y.int() - expected.int()).abs().max() <= 1 if y.numel() else y.shape == expected.shape
    else:
        assert_close(y, expected)


def test_accumulators_are_exact_at_the_extremes(native_isa):
    """u8 255 times s8 127 or −128 over K = 4096 would saturate int16 in every pair."""
    k, n = 4096, 65
    weight = torch.full((n, k), 127, dtype=torch.int8)
    weight[1::2] = -128
    x = torch.full((7, k), 255, dtype=torch.uint8)
    one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
    weights = (packed.pack(weight), torch.ones(n), packed.column_sums(weight))
    y = ops.packed_linear_int8(x, one, zero, *weights, None, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y.double(), (x.double() @ weight.double().t()).float().double())


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
@pytest.mark.parametrize("value", [-128, 127])
def test_sums_of_weights_are_exact_at_the_greatest_depth(native_isa, value, zero_point):
    k = packed.DEEPEST
    weight = torch.full((5, k), value, dtype=torch.int8)
    weight[1, ::2] = 0
    x = torch.randint(0, 256, (3, k), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0, 255
    one, zero = torch.ones(()), torch.tensor(zero_point, dtype=torch.int32)
    weights = (packed.pack(weight), torch.ones(5), packed.column_sums(weight))
    y = ops.packed_linear_int8(x, one, zero, *weights, None, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y, ((x.double() - zero_point) @ weight.double().t()).float())


def test_a_deeper_weight_is_refused(native_isa):
    weight = torch.zeros(1, packed.DEEPEST + 1, dtype=torch.int8)
    arguments = (packed.pack(weight), torch.ones(()), packed.column_sums(weight), None, None, "none", *SCHEMES[0])
    with pytest.raises(RuntimeError, match="the weight has 32768 features; these kernels are exact up to 32767"):
        ops.packed_linear_dynamic_int8(torch.ones(1, packed.DEEPEST + 1), *arguments)


@examples
@given(
    st.sampled_from([(0,), (1,), (15,), (16,), (33,), (3, 70)]),
    st.sampled_from([1e-38, 1e-3, 1.0, 1e30]),
    st.integers(0, 99),
)
def test_quantize_is_bit_equal(native_isa, shape, magnitude, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * magnitude
    for arguments in (
        (torch.tensor(0.02), torch.tensor(131, dtype=torch.int32), 0, 255, torch.uint8),
        (torch.tensor(0.3), torch.tensor(-5, dtype=torch.int32), -128, 127, torch.int8),
    ):
        assert torch.equal(ops.quantize_static(x, *arguments), reference("quantize", x, *arguments))


@examples
@given(st.sampled_from([(0,), (1,), (2, 3)]), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_embedding_is_bit_equal(native_isa, shape, width, per_row, seed):
    table, scale, _ = integer_layer(11, width, seed)
    indices = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))
    arguments = (table, scale if per_row else scale[0], indices)
    assert torch.equal(ops.rows_embedding_int8(*arguments), reference("embedding_int8", *arguments))


def test_embedding_refuses_an_index_outside_the_table(native_isa):
    table, scale, _ = integer_layer(11, 4, 0)
    with pytest.raises(IndexError, match="index 11 is out of range for a table of 11"):
        ops.rows_embedding_int8(table, scale, torch.tensor([3, 11]))


@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1e-6, 1e6, 1e37], ids=str)
def test_dynamic_survives_extreme_rows(native_isa, magnitude):
    weight, scale, bias = integer_layer(8, 12, 0)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * magnitude
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), bias, None, "none", *SCHEMES[0])
    assert_close(ops.packed_linear_dynamic_int8(x, *arguments), reference("linear_dynamic_int8", x, *arguments))


def test_strided_inputs(native_isa):
    weight, scale, bias = integer_layer(20, 16, 0)
    x = torch.randn(5, 32)[:, ::2]
    residual = torch.randn(20, 5).t()
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), bias, residual, "gelu", *SCHEMES[0])
    y = ops.packed_linear_dynamic_int8(x, *arguments)
    assert_close(y, reference("linear_dynamic_int8", x.contiguous(), *arguments))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(native_isa, activation):
    """One input feature of scale 1 lets any value reach the activation: the bias is the value."""
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -100.0, 100.0, 1e4, 0.0, -0.0])])
    weight = torch.zeros(len(values), 4, dtype=torch.int8)
    arguments = (packed.pack(weight), torch.ones(()), packed.column_sums(weight), values, None, activation, *SCHEMES[0])
    y = ops.packed_linear_dynamic_int8(torch.ones(1, 4), *arguments)
    expected = reference("linear_dynamic_int8", torch.ones(1, 4), *arguments)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1.5e-6)
    assert activation not in BIT_EQUAL or torch.equal(y, expected)


def test_unknown_activation_is_refused(native_isa):
    weight, scale, _ = integer_layer(8, 4, 0)
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), None, None, "tanh", *SCHEMES[0])
    with pytest.raises(RuntimeError, match="unknown activation 'tanh'; known: none, relu"):
        ops.packed_linear_dynamic_int8(torch.ones(1, 4), *arguments)


def test_a_weight_of_another_depth_is_refused(native_isa):
    weight, scale, _ = integer_layer(8, 4, 0)
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), None, None, "none", *SCHEMES[0])
    with pytest.raises(RuntimeError, match="x has 9 features"):
        ops.packed_linear_dynamic_int8(torch.ones(1, 9), *arguments)


def test_many_rows_on_two_threads_equal_one(native_isa):
    weight, scale, bias = integer_layer(256, 384, 0)
    x = torch.randn(211, 384)
    arguments = (packed.pack(weight), scale, packed.column_sums(weight), bias, None, "none", *SCHEMES[0])
    together = ops.packed_linear_dynamic_int8(x, *arguments)
    apart = torch.cat([ops.packed_linear_dynamic_int8(row, *arguments) for row in x.split(13)])
    assert torch.equal(together, apart), "a row's result does not depend on its neighbours"


def test_instruction_sets_agree_on_integers():
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    weight, _, _ = integer_layer(70, 33, 0)
    x = torch.randint(0, 256, (9, 33), dtype=torch.uint8)
    weights = (packed.pack(weight), torch.ones(()), packed.column_sums(weight))
    before, results = native.use_isa(""), []
    for name in NATIVE:
        try:
            native.use_isa(name)
        except RuntimeError:
            continue
        zero_point = torch.tensor(7, dtype=torch.int32)
        results.append(
            ops.packed_linear_int8(x, torch.ones(()), zero_point, *weights, None, None, "none", *FLOAT_OUTPUT)
        )
    native.use_isa(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_ops_pass_opcheck(native_isa):
    weight, scale, bias = integer_layer(20, 16, 0)
    weights = (packed.pack(weight), scale, packed.column_sums(weight))
    dynamic = (torch.randn(3, 16), *weights, bias, None, "relu", *SCHEMES[0])
    static = (torch.randint(0, 9, (3, 16), dtype=torch.uint8), torch.ones(()), torch.zeros((), dtype=torch.int32))
    quantize = (torch.randn(3, 4), torch.ones(()), torch.zeros((), dtype=torch.int32), 0, 255, torch.uint8)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.packed_linear_dynamic_int8.default, dynamic, test_utils=tests)
    torch.library.opcheck(
        ops.packed_linear_int8.default, (*static, *weights, bias, None, "none", *FLOAT_OUTPUT), test_utils=tests
    )
    torch.library.opcheck(ops.quantize_static.default, quantize, test_utils=tests)
    torch.library.opcheck(ops.rows_embedding_int8.default, (weight, scale, torch.tensor([1, 2])), test_utils=tests)


def test_packed_tensors_are_plain(native_isa):
    weight, _, _ = integer_layer(20, 16, 0)
    assert torch.equal(copy.deepcopy(packed.pack(weight)), packed.pack(weight))
