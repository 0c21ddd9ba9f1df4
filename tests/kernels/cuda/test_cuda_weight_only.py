"""Float activations times weights in tiles: the reference, the Triton kernels as interpreted, and their PTX."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, WEIGHT_KINDS, in_float64, quantized_weight, weight_spec
from torch.nn import functional

import fxquant as fxq
import fxquant.kernels
from fxquant.errors import ConfigError
from fxquant.graph import edit
from fxquant.kernels.cpu.weight_only import pack_parameter
from fxquant.kernels.cuda import tiles
from fxquant.kernels.cuda.choice import VARIABLE
from fxquant.kernels.cuda.device import codes
from fxquant.kernels.cuda.launch_gemm import row_class
from fxquant.kernels.cuda.launch_weight_only import blocks, ways
from fxquant.kernels.int4 import pack_int4
from fxquant.numerics import dequantize

assert fxquant.kernels  # defines the ops
op = torch.ops.fxquant.tiled_linear_weight_only
# What a result loses in its dtype; the interpreter cuts bits off instead of rounding.
LAST_PLACE = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
fixtures = [HealthCheck.function_scoped_fixture]
# 1/(1 + e^u) is 0 where e^u is infinite; numpy, which the interpreter computes with, warns.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def layer(n, k, spec, seed=0):
    """Return the arguments of a packed weight, N with the group and the bits, and what the reference op takes."""
    integers, qparams = quantized_weight(n, k, spec, seed)
    scale, zero_point = (pack_parameter(each, (n, k), spec) for each in (qparams.scale, qparams.zero_point))
    packed = (tiles.pack(integers, spec), scale, None if spec.symmetric else zero_point)
    shape = (n, tiles.tiling(spec, k).group, 4 if spec.format.packed else 8)
    stored = pack_int4(integers) if spec.format.packed else integers
    return packed, shape, (stored, qparams, dequantize(integers, qparams))


def run(x, packed, shape, bias=None, residual=None, activation="none", dtype=torch.float32, activated=None):
    return op(x, *packed, bias, residual, activation, *shape, dtype, activated)


def assert_near(y, expected, x, weight):
    """Each of the K sums may round, the result does to its dtype, and with many rows each weight to that of x."""
    magnitude = x.double().abs() @ weight.double().abs().t() + 1
    place = 2.0**-23 * (x.shape[-1] + 8) + (LAST_PLACE[x.dtype] if x.numel() > 16 * x.shape[-1] else 0)
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= magnitude * place + LAST_PLACE[y.dtype] * expected.abs() + 2e-6).all()


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("group", [None, "tensor", 12, 32], ids=str)
def test_the_reference_means_linear_weight_only(dtype, group):
    spec = weight_spec(dtype, False, group)
    packed, shape, (stored, qparams, _) = layer(70, 50, spec)
    x, bias, residual = torch.randn(2, 3, 50), torch.randn(70), torch.randn(2, 3, 70)
    y = run(x, packed, shape, bias, residual, "gelu")
    plain = (stored, qparams.scale, qparams.zero_point, bias, residual, "gelu", dtype, spec.group_size)
    torch.testing.assert_close(y, torch.ops.fxquant.linear_weight_only(x, *plain), rtol=1e-5, atol=1e-5)
    assert run(x.bfloat16(), packed, shape, dtype=torch.bfloat16).dtype is torch.bfloat16


@settings(deadline=None, max_examples=25, suppress_health_check=fixtures)
@given(
    st.sampled_from([1, 3, 8, 9, 16, 17, 40]), st.sampled_from([1, 16, 63, 65]),
    st.sampled_from([1, 7, 31, 64, 70]), st.sampled_from([None, "tensor", 5, 16, 20, 32, 64]),
    st.sampled_from(WEIGHT_KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_the_kernels_equal_the_dequantized_layer(interpreted, m, n, k, group, kind, dtype, activation, full, seed):
    packed, shape, (*_, weight) = layer(n, k, weight_spec(*kind, group), seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator).to(dtype)
    bias = torch.randn(n, generator=generator) if full else None
    residual = torch.randn(m, n, generator=generator) if full else None
    y = run(x, packed, shape, bias, residual, activation, dtype if full else torch.float32)
    assert y.dtype is (dtype if full else torch.float32)
    assert_near(y, in_float64(x, weight, bias, residual, activation), x, weight)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("kind", WEIGHT_KINDS, ids=lambda kind: f"{kind[0]}-{'symmetric' if kind[1] else 'affine'}")
def test_nothing_is_filled_up(interpreted, kind, rows):
    """The way without masks, where groups of 32 share tiles of 64 values by two."""
    packed, shape, (*_, weight) = layer(64, 512, weight_spec(*kind, 32))
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert_near(run(x, packed, shape), in_float64(x, weight, None, None, "none"), x, weight)


@pytest.mark.parametrize("rows", [3, 20])
def test_whole_numbers_are_multiplied_exactly(interpreted, rows):
    spec = weight_spec("int4", False, 32)
    integers = torch.randint(-8, 8, (65, 70), dtype=torch.int8)
    scale = 2.0 ** torch.randint(-3, 4, (65, 3))
    zeros = torch.randint(-8, 8, (65, 3), dtype=torch.int32)
    scales, zero_points = (pack_parameter(each, (65, 70), spec) for each in (scale, zeros))
    x = torch.randint(-9, 10, (rows, 70)).bfloat16()
    weight = (integers - zeros.repeat_interleave(32, 1)[:, :70]) * scale.repeat_interleave(32, 1)[:, :70]
    y = run(x, (tiles.pack(integers, spec), scales, zero_points), (65, 32, 4))
    assert torch.equal(y, (x.double() @ weight.double().t()).float())


def test_an_activation_of_the_first_columns(interpreted):
    packed, shape, _ = layer(130, 20, weight_spec("int4", False, None))
    x, bias, residual = torch.randn(3, 20), torch.randn(130), torch.randn(3, 130)
    with_it, without = run(x, packed, shape, bias, residual, "silu"), run(x, packed, shape, bias, residual)
    for some in (0, 64, 128):
        expected = torch.cat((with_it[:, :some], without[:, some:]), 1)
        y = run(x, packed, shape, bias, residual, "silu", activated=some)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 40])
def test_every_way_to_block_a_product_gives_the_same(interpreted, monkeypatch, rows):
    packed, shape, (*_, weight) = layer(70, 130, weight_spec("int4", False, 32))
    x = torch.randn(rows, 130, generator=torch.Generator().manual_seed(1)).half()
    known = ways(rows if rows <= 16 else row_class(rows), 70, tiles.Tiling(130, 32, 2), 2, 1)
    assert len(known) >= 3
    assert next(iter(known.values())).few is (rows <= 16)
    for name in known:
        monkeypatch.setenv(VARIABLE, f"tiled_linear_weight_only={name}")
        assert_near(run(x, packed, shape), in_float64(x, weight, None, None, "none"), x, weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows_fit_into_the_shared_memory_of_every_gpu(rows, item, bits):
    cut = tiles.Tiling(4096, 128, 8 // bits)
    default, *others = ways(rows, 4096, cut, item, 132).values()
    assert default == blocks(rows, 4096, cut, item, 132)
    for each in (default, *others):
        step = each.slices * cut.width * (each.columns + cut.parts * each.rows * item)
        assert each.stages >= 2
        assert (each.stages - 1) * step <= 99 * 1024


def test_strides_batches_and_a_broadcast_residual(interpreted):
    packed, shape, _ = layer(20, 24, weight_spec("int8", True, None))
    for x in (torch.randn(24, 5).t(), torch.randn(2, 3, 48)[:, ::2, ::2], torch.randn(24).expand(4, 24)):
        assert torch.equal(run(x, packed, shape), run(x.contiguous(), packed, shape))
    x, residual = torch.randn(2, 3, 24), torch.randn(3, 1)
    torch.testing.assert_close(run(x, packed, shape, None, residual), run(x, packed, shape) + residual)
    assert run(torch.randn(0, 24), packed, shape).shape == (0, 20)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.randn(2, 90)}, r"20 columns for 90 features in groups of 4 is packed as uint8 \[1, 12, 64, 16\]"),
        ({"shape": (70, 4, 4)}, r"70 columns.*uint8 \[2, 3, 64, 16\] with scales \[2, 6, 64\].*torch.uint8 \[1, 3"),
        ({"packed": torch.zeros(1, 3, 64, 16, dtype=torch.int8)}, r"this one is torch.int8 \[1, 3, 64, 16\]"),
        ({"activation": "gelu_tan"}, r"unknown activation 'gelu_tan'.*did you mean 'gelu_tanh'"),
    ],
    ids=["features", "columns", "packed", "activation"],
)
def test_what_does_not_fit_is_named(interpreted, change, text):
    (packed, scale, zero_point), shape, _ = layer(20, 24, weight_spec("int4", False, 4))
    weight = (change.get("packed", packed), scale, zero_point)
    with pytest.raises(ConfigError, match=text):
        run(
            change.get("x", torch.randn(2, 24)),
            weight,
            change.get("shape", shape),
            activation=change.get("activation", "none"),
        )


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_opcheck(dtype):
    packed, shape, _ = layer(10, 12, weight_spec(dtype, False, 4))
    arguments = (torch.randn(2, 12), *packed, torch.randn(10), torch.randn(10), "relu", *shape, torch.float32, None)
    torch.library.opcheck(op.default, arguments)


class Heads(torch.nn.Module):
    """Two linears on one input that merge, of widths that fill no block, and one behind them."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = torch.nn.Linear(40, 70), torch.nn.Linear(40, 10), torch.nn.Linear(70, 5)

    def forward(self, x):
        return self.out(functional.silu(self.query(x))), self.key(x)


@pytest.mark.parametrize(("recipe", "bits"), [("weight-only", 8), ("weight-only-int4", 4)])
def test_a_graph_has_tiles_and_gives_its_plain_weights_back(recipe, bits, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 40)
    qdq = fxq.convert(fxq.prepare(fxq.capture(Heads().eval(), (x,)), "cuda", recipe))
    lowered = fxq.lower(qdq)
    calls = lowered.graph.find_nodes(op="call_function", target=op.default)
    assert [edit.info(call).shape[-1] for call in calls] == [192, 5], "query and key are one, in whole blocks"
    assert {call.args[9] for call in calls} == {bits}
    for found, expected in zip(lowered(x), qdq(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    loaded = fxq.load(fxq.save(lowered, tmp_path / "artifact"))
    for found, expected in zip(loaded(x), lowered(x), strict=True):
        assert torch.equal(found, expected)


# ── the code for GPUs, which the interpreter does not run ─────────────────────────────────────────────────────────


def floats(words, kind):
    """Return the two 16-bit floats in each 32-bit word, lower half first, as float64."""
    halves = torch.from_numpy(words.view(numpy.int16).copy())
    return halves.view(torch.bfloat16 if kind == "bf16x2" else torch.float16).double()


def bits_of(values, kind):
    halves = values.to(torch.bfloat16 if kind == "bf16x2" else torch.float16)
    return halves.view(torch.int16).numpy().view(numpy.uint32)


def execute(ptx, operands):
    """Run the few PTX instructions that codes.py uses on uint32 arrays; `operands` are $0, $1, … and are written."""
    registers = {f"${number}": array for number, array in enumerate(operands)}

    def value(name):
        return registers[name] if name in registers else numpy.uint32(int(name, 0))

    for line in re.findall(r"^(?!\.reg)([a-z].*);", ptx, re.MULTILINE):
        name, _, arguments = line.partition(" ")
        to, *given = (part.strip() for part in arguments.split(","))
        a = [value(each) for each in given]
        if name == "mov.b32":
            registers[to] = a[0]
        elif name == "and.b32":
            registers[to] = a[0] & a[1]
        elif name == "prmt.b32":
            # Each nibble of the selector names one of eight bytes, those of the second operand behind the first's.
            whole = a[0].astype(numpy.uint64) | (numpy.uint64(a[1]) << numpy.uint64(32))
            picks = [(int(a[2]) >> 4 * place) & 15 for place in range(4)]
            assert max(picks) < 8
            found = [(whole >> numpy.uint64(8 * pick) & numpy.uint64(255)) << numpy.uint64(8 * p)
                     for p, pick in enumerate(picks)]  # fmt: skip
            registers[to] = sum(found).astype(numpy.uint32)
        elif name.startswith("fma.rn."):
            kind = name.removeprefix("fma.rn.")
            x, y, z = (floats(numpy.broadcast_to(each, operands[0].shape).copy(), kind) for each in a)
            registers[to] = bits_of(x * y + z, kind)  # exact in float64, so rounded once
        else:
            raise AssertionError(f"an instruction that is not known: {line}")
    return registers


@pytest.mark.parametrize(
    ("ptx", "kind", "unit"),
    [
        (codes.BF16_NIBBLES, "bf16x2", codes.BF16_UNIT),
        (codes.F16_NIBBLES, "f16x2", codes.F16_UNIT),
        (codes.BF16_BYTES, "bf16x2", codes.BF16_UNIT),
        (codes.F16_BYTES, "f16x2", codes.F16_UNIT),
    ],
    ids=["int4-bf16", "int4-fp16", "int8-bf16", "int8-fp16"],
)
def test_ptx_gives_exact_floats(ptx, kind, unit):
    nibbles = "$8" in ptx
    words = numpy.random.default_rng(0).integers(0, 2**32, 512, dtype=numpy.uint32)
    zero = torch.arange(1024) % 16 if nibbles else torch.arange(1024) % 256
    offsets = bits_of(-unit * zero.double(), kind)
    outputs = 4 if nibbles else 2
    registers = execute(ptx, [numpy.zeros_like(words)] * outputs + [words] + [offsets] * outputs)
    stored = words.view(numpy.uint8).reshape(-1, 4)
    parts = [stored & 15, stored >> 4] if nibbles else [stored]
    expected = [part[:, pair : pair + 2].reshape(-1) for part in parts for pair in (0, 2)]
    for place, values in enumerate(expected):
        found = floats(numpy.ascontiguousarray(registers[f"${place}"]), kind)
        assert torch.equal(found, (torch.from_numpy(values.astype("int64")) - zero).double() * unit), place


LAUNCHES = {
    # name: rows of x, its dtype, bits, group, zero points, compute capability
    "int4": (1, "bf16", 4, 128, False, 90),
    "int4 in small groups, affine": (4, "fp16", 4, 32, True, 80),
    "int8": (8, "bf16", 8, 4096, False, 80),
    "int4, many rows": (512, "bf16", 4, 128, True, 90),
}


def launch_of(name):
    """Return a launch for a weight of 8192 columns by 4096, on a GPU of 132 multiprocessors, as data."""
    rows, dtype, bits, group, affine, capability = LAUNCHES[name]
    cut = tiles.Tiling(4096, group, 8 // bits)
    chosen = blocks(rows, 8192, cut, 2, 132)
    layout = (cut.group, cut.segments, cut.width, cut.tiles, cut.parts, cut.aligned(chosen.slices))
    constants = (*layout, "silu", 8192, True, chosen.rows, chosen.columns, chosen.slices)
    found = {"name": name, "few": chosen.few, "dtype": dtype, "affine": affine, "capability": capability}
    return found | {"constants": constants, "warps": chosen.warps, "stages": chosen.stages}


def test_the_kernels_compile_for_gpus():
    pytest.importorskip("triton", reason="Triton is not installed")
    script, launches = Path(__file__).with_name("compile_weight_only.py"), json.dumps([*map(launch_of, LAUNCHES)])
    done = subprocess.run([sys.executable, script, launches], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {facts.pop("kernel"): facts for facts in map(json.loads, done.stdout.splitlines())}
    assert set(found) == set(LAUNCHES)
    for name, facts in found.items():
        assert facts["stack"] == 0, f"{name} spills registers"
        assert facts["mma"], f"{name} uses no tensor cores"
        assert facts["async16"] >= 4, f"{name} reads with less than 16 bytes a thread"
        assert facts["pairs"], f"{name} does not convert two codes at once"
    few = [facts for name, facts in found.items() if "many" not in name]
    assert max(facts["shared"] for facts in few) <= 99 * 1024, "the smallest of the GPUs has no more"
    assert found["int4"]["conversions"] == 0, "codes become floats by bits"
