"""Every kernel on a GPU against its reference on the CPU; graphs recorded, compiled, and artifacts both ways.

`make test-cuda` runs them. An op on CPU tensors takes its reference, so each test calls one op twice.
"""

import pytest
import torch
from captured import captured, converted
from generative import decoder, prompts
from linears import integers, random

import fxquant as fxq
import fxquant.kernels
from fxquant.graph import edit
from fxquant.kernels.cpu.weight_only import pack_parameter
from fxquant.kernels.cuda import choice, conv, gemm, launch_fp8, tiles, triton_support
from fxquant.kernels.int4 import pack_int4
from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

assert fxquant.kernels  # defines the ops
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
ops = torch.ops.fxquant
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LAST_PLACE = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SIZES = [(1, 1, 1), (1, 4096, 4096), (3, 70, 50), (16, 130, 257), (17, 64, 64), (200, 384, 1536), (513, 777, 1000)]
FLOAT8 = pytest.mark.skipif(
    torch.cuda.is_available() and triton_support.float8_refusal(torch.device("cuda", 0)) is not None,
    reason="this GPU has no float8",
)


def moved(value, device="cuda"):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def both(op, *arguments):
    """Return what an op gives on the GPU and, by its reference, on the CPU."""
    found, expected = op(*map(moved, arguments)), op(*arguments)
    if isinstance(found, torch.Tensor):
        return found.cpu(), expected
    return [each.cpu() for each in found], list(expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "scheme",
    [
        ("int8", True, "restricted"),
        ("uint8", False, "full"),
        pytest.param(("float8_e4m3fn", True, "full"), marks=FLOAT8),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (5, 7, 768), (2, 8192)], ids=str)
def test_rows(shape, scheme, dtype):
    (q, scale, zero_point), expected = both(ops.quantize_rows, random(*shape).to(dtype), *scheme)
    assert torch.equal(scale, expected[1])
    assert torch.equal(zero_point, expected[2])
    assert torch.equal(q.float(), expected[0].float())


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_rows_behind_a_norm(norm):
    x, weight = random(37, 768), random(768, seed=1)
    arguments = (x, weight, None, norm, 1e-6, "uint8", False, "full", True)
    (q, scale, zero_point, kept), expected = both(ops.norm_quantize_rows, *arguments)
    torch.testing.assert_close(kept, expected[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale, expected[1], rtol=1e-5, atol=0)
    assert (zero_point - expected[2]).abs().max() <= 1
    assert (q.int() - expected[0].int()).abs().max() <= 1


@pytest.mark.parametrize("way", ["triton", "int_mm"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_integer_products(size, way, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, f"int8_gemm={way}")
    m, n, k = size
    x, weight = integers(m, k, dtype=torch.uint8), integers(n, k, seed=1, low=-127)
    zero_point = integers(m, 1, dtype=torch.uint8, seed=2).int()
    operands = (x, random(m, 1).abs() * 0.01, zero_point, gemm.pack(weight), random(n).abs() * 0.01)
    tail = (gemm.row_sums(weight), random(n, seed=3), random(m, n, seed=4))
    y, expected = both(ops.int8_gemm, *operands, *tail, "gelu", None, None, 0, 0, torch.float32)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    out = (torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), -128, 127, torch.int8)
    q, expected = both(ops.int8_gemm, *operands, *tail, "none", *out)
    assert (q.int() - expected.int()).abs().max() <= 1
    exact = (x, torch.ones(m, 1), zero_point, gemm.pack(weight), torch.ones(()), gemm.row_sums(weight))
    y, expected = both(ops.int8_gemm, *exact, None, None, "none", None, None, 0, 0, torch.float32)
    assert torch.equal(y, expected), "integer sums are exact"


@pytest.mark.parametrize("way", ["triton", "int_mm"])
@pytest.mark.parametrize("sizes", [((2, 3, 30, 31), (64, 3, 7, 7)), ((3, 64, 14, 14), (130, 64, 3, 3))], ids=str)
def test_convolutions(sizes, way, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, f"int8_gemm={way}")
    x, weight = integers(*sizes[0], dtype=torch.uint8), integers(*sizes[1], seed=1, low=-127)
    scale = random(len(x), 1, 1, 1).abs() * 0.01
    scales, bias = random(len(weight)).abs() * 0.01, random(len(weight), seed=3)
    packed = (conv.pack(weight), scales, gemm.row_sums(weight.flatten(1)), bias)
    zero_point = integers(len(x), 1, 1, 1, dtype=torch.uint8, seed=2).int()
    options = (list(sizes[1][2:]), [2, 2], [1, 1], [1, 1])
    tail = (*packed, None, "relu", *options, None, None, 0, 0, torch.float32)
    y, expected = both(ops.int8_conv, x, scale, zero_point, *tail)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gates(size):
    m, n, k = size
    weight = integers(2 * n, k, seed=1, low=-127)
    operands = (
        integers(m, k, low=-127),
        random(m, 1).abs() * 0.01,
        None,
        gemm.pack(weight),
        random(2 * n).abs() * 0.01,
        None,
    )
    y, expected = both(ops.int8_gated_gemm, *operands, None, "silu", None, None, 0, 0, torch.float32)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", [("int4", True), ("uint4", False), ("int8", False)], ids=str)
@pytest.mark.parametrize("group", [None, 20, 32], ids=str)
@pytest.mark.parametrize("size", [SIZES[1], SIZES[2], SIZES[4], SIZES[5]], ids=str)
def test_weights_in_tiles(size, group, kind, dtype):
    m, n, k = size
    granularity = "per-channel" if group is None else "per-group"
    spec = QuantSpec(dtype=kind[0], symmetric=kind[1], granularity=granularity, group_size=group)
    weight = random(n, k, seed=1)
    qparams = choose_qparams(weight, spec)
    codes = quantize(weight, qparams, spec)
    scale, zero_point = (pack_parameter(each, (n, k), spec) for each in (qparams.scale, qparams.zero_point))
    packed = (tiles.pack(codes, spec), scale, None if spec.symmetric else zero_point)
    x, bias, residual = random(m, k).to(dtype), random(n), random(m, n)
    shape = (n, tiles.tiling(spec, k).group, 4 if spec.format.packed else 8, torch.float32, None)
    y, expected = both(ops.tiled_linear_weight_only, x, *packed, bias, residual, "silu", *shape)
    wide = qparams.scale.abs().max() * x.float().abs().sum(1, keepdim=True) * spec.format.maximum
    place = LAST_PLACE[dtype] if m > 16 else LAST_PLACE[torch.float32]
    assert ((y - expected).abs() <= 1e-4 + place * wide).all()
    stored = pack_int4(codes) if spec.format.packed else codes
    plain = (stored, qparams.scale, qparams.zero_point, bias, residual, "silu", kind[0], group)
    torch.testing.assert_close(expected, ops.linear_weight_only(x, *plain), rtol=1e-4, atol=1e-4)


@FLOAT8
@pytest.mark.parametrize("way", ["triton", "scaled_mm", "scaled_mm_rowwise"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float8_products(size, way, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, f"fp8_gemm={way}")
    m, n, k = size
    x, weight = (random(rows, k, seed=rows).mul(60).to(launch_fp8.FLOAT8) for rows in (m, n))
    rowwise = way == "scaled_mm_rowwise"
    operands = (x, random(m, 1).abs() * 0.01, weight, random(n).abs() * 0.01, random(n))
    tail = (None, "none", torch.bfloat16) if rowwise else (random(m, n), "gelu", torch.float32)
    y, expected = both(ops.fp8_gemm, *operands, *tail)
    wide = (x.float().abs() @ weight.float().abs().t()) * operands[1] * operands[3] + 1
    # Hopper adds the products of float8 numbers with 14 bits.
    assert ((y.float() - expected.float()).abs() <= wide * (2.0**-7 if rowwise else 2.0**-11)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1, 16, 4, 32), (2, 128, 12, 64), (3, 100, 2, 128)], ids=str)
def test_attention(shape, causal):
    batch, positions, heads, features = shape
    qkv = random(batch, positions, 3 * heads * features)
    arguments = (qkv, None, None, None, None, heads, heads, features**-0.5, causal)
    y, expected = both(ops.attention, *arguments)
    assert (y - expected).abs().max() < 0.03, "factors are rounded to bfloat16"


# ── graphs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def on_gpu(inputs):
    return {name: moved(value) for name, value in inputs.items()}


def result(graph, inputs):
    with torch.no_grad():
        return graph(**inputs)[0]


@pytest.fixture(scope="module")
def lowered():
    """Return BERT, tiny, lowered on the GPU, with inputs there, and the Q/DQ graph's result."""
    _, inputs, _ = captured("bert")
    qdq = converted("bert", "dynamic")
    return fxq.lower(qdq, "cuda", device="cuda"), on_gpu(inputs), result(qdq, inputs)


def assert_near(found, expected):
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


def test_a_lowered_graph(lowered):
    graph, inputs, expected = lowered
    assert_near(result(graph, inputs), expected)


@pytest.mark.parametrize("outputs", ["copied", "shared"])
def test_recorded_graphs(lowered, outputs, recwarn):
    graph, inputs, _ = lowered
    recorded = fxq.cuda_graphs(graph, max_graphs=2, outputs=outputs)
    for size in (2, 1, 2):
        some = {name: value[:size] for name, value in inputs.items()}
        assert torch.equal(result(recorded, some), result(graph, some))
    assert not recwarn.list, "it was recorded"
    with torch.no_grad():
        constant = next(each for each in edit.constants(recorded.module).values() if each.dtype is torch.float32)
        before = result(recorded, inputs).clone()
        constant.mul_(1.5)
        try:
            assert not torch.equal(result(recorded, inputs), before)
            assert torch.equal(result(recorded, inputs), result(graph, inputs))
        finally:
            constant.div_(1.5)


def test_a_call_that_waits_is_not_recorded():
    class Waits(torch.nn.Module):
        def forward(self, x):
            return x * float(x.sum().item())

    x = torch.ones(3, device="cuda")
    with pytest.warns(fxq.FxQuantWarning, match="run without a CUDA graph"):
        assert torch.equal(fxq.cuda_graphs(Waits())(x), 3 * x)
    assert torch.equal(fxq.cuda_graphs(torch.nn.ReLU())(x), x), "the next recording is not disturbed"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_decoders_tokens_are_replayed(name, recwarn):
    """Beyond the first length of the caches, and a window; greedy and by beams, which reorder caches."""
    program = fxq.quantize(decoder(name).to("cuda"), on_gpu(prompts()), backend="cuda", recipe="weight-only")
    recorded, ids = fxq.cuda_graphs(program, tokens=12), prompts(1, 20)["input_ids"].to("cuda")
    past, other = None, None
    for first, last in ((0, 8), *((place, place + 1) for place in range(8, 20))):
        given = {"input_ids": ids[:, first:last], "use_cache": True}
        found, expected = recorded(**given, past_key_values=past), program(**given, past_key_values=other)
        past, other = found.past_key_values, expected.past_key_values
        assert_near(found.logits, expected.logits.cpu())
    for options in ({}, {"num_beams": 3}):
        tokens = recorded.generate(**on_gpu(prompts()), max_new_tokens=8, do_sample=False, **options)
        assert tokens.shape[1] > 9
    assert not recwarn.list, "all was recorded"


def test_torch_compile(lowered):
    graph, inputs, expected = lowered
    assert_near(result(torch.compile(graph), inputs), expected)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_artifacts_both_ways(recipe, tmp_path):
    inputs, qdq = captured("bert")[1], converted("bert", recipe)
    here = fxq.lower(qdq, "reference")
    expected = result(here, inputs)
    loaded = fxq.load(fxq.save(here, tmp_path / "cpu"), backend="cuda", device="cuda")
    assert_near(result(loaded, on_gpu(inputs)), expected)
    back = fxq.load(fxq.save(loaded, tmp_path / "cuda"), backend="reference")
    assert torch.equal(result(back, inputs), expected)


def test_ways_are_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FXQUANT_CACHE", str(tmp_path))
    choice.choices_on.cache_clear()
    try:
        runs = {"slow": lambda: torch.cuda._sleep(10_000_000), "fast": lambda: 1, "broken": lambda: 1 / 0}
        x = torch.ones(1, device="cuda")
        assert choice.run_fastest(choice.Question("op", (1,)), x, runs) == 1
        (file,) = tmp_path.glob("cuda_choices_*.json")
        assert "ZeroDivisionError" in file.read_text()
    finally:
        choice.choices_on.cache_clear()
