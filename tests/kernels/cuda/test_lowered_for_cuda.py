"""Models lowered for CUDA, run on a CPU: the Q/DQ graph's numbers, saved and loaded, compiled, without padding."""

import warnings
from functools import cache

import pytest
import torch
from captured import captured, converted
from torch import nn

import fxquant as fxq
from fxquant import manifest
from fxquant.errors import FxQuantError, InputError
from fxquant.graph import edit
from fxquant.kernels.cuda import emitters, triton_support

ops = torch.ops.fxquant


@cache
def lowered(name, recipe="dynamic"):
    """Return a tiny model lowered for CUDA, and its Q/DQ graph, prepared for CUDA; they must not be changed."""
    _, inputs, graph = captured(name)
    prepared = fxq.prepare(graph, "cuda", recipe)
    if recipe == "static":
        prepared = fxq.calibrate(prepared, [inputs], progress=False)
    qdq = fxq.convert(prepared)
    return fxq.lower(qdq), qdq


def called(gm, target):
    return gm.graph.find_nodes(op="call_function", target=target)


def results(gm, inputs):
    with torch.no_grad():
        return gm(**inputs)[0]


def test_an_encoder_is_nine_kernels_a_layer():
    gm, _ = lowered("bert")
    layers = len(called(gm, ops.attention.default))
    assert layers > 0
    assert not called(gm, torch.ops.aten.scaled_dot_product_attention.default)
    assert not called(gm, torch.ops.aten.linear.default)
    products = len(called(gm, ops.int8_gemm.default))
    # In a layer query, key and value are one product; a pooler's is the last.
    assert products == 4 * layers + 1
    # A norm leaves the integers that the next product reads; attention's, GELU's and the pooler's are alone.
    assert len(called(gm, ops.norm_quantize_rows.default)) == 2 * layers
    assert len(called(gm, ops.quantize_rows.default)) == 2 * layers + 1


def test_a_decoder_has_its_gates_and_norms_fused():
    gm, _ = lowered("llama")
    layers = len(called(gm, ops.attention.default))
    assert layers > 0
    assert len(called(gm, ops.int8_gated_gemm.default)) == layers
    assert len(called(gm, ops.norm_quantize_rows.default)) >= 2 * layers
    assert all(node.args[-1] is False for node in called(gm, ops.norm_quantize_rows.default)), "integers alone"


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_qdq_graphs_numbers(name, recipe):
    gm, qdq = lowered(name, recipe)
    inputs = captured(name)[1]
    expected = results(qdq, inputs)
    # Queries, keys and values are rounded to bfloat16, which may turn an integer to the next.
    torch.testing.assert_close(results(gm, inputs), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    assert fxq.ledger(gm).coverage > 0.9


def test_triton_gives_the_references_numbers(interpreted, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 10)).eval()
    x = torch.randn(3, 40)
    for recipe in ("dynamic", "static"):
        gm = fxq.quantize(model, (x,), backend="cuda", recipe=recipe, calibration=[(x,)], progress=False)
        found = gm(x)
        with monkeypatch.context() as patch:
            patch.delenv("TRITON_INTERPRET")
            expected = gm(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_lie_in_any_order(interpreted):
    linear, x = nn.Linear(32, 16).eval(), torch.randn(3, 32)
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    gm = fxq.quantize(linear, (x,), backend="cuda")
    torch.testing.assert_close(gm(x), linear(x), rtol=0, atol=0.05)


def test_symmetric_activations_have_no_zero_point():
    recipe = {"name": "symmetric", "spec": {"activation": {"symmetric": True}}}
    gm = fxq.quantize(nn.Linear(32, 16).eval(), (torch.randn(3, 32),), backend="cuda", recipe=recipe)
    (node,) = called(gm, ops.int8_gemm.default)
    assert node.args[2] is None
    assert node.args[5] is None


def test_a_tied_weight_is_packed_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(15, 15)

        def forward(self, x):
            return self.linear(torch.tanh(self.linear(x)))

    gm = fxq.quantize(Twice().eval(), (torch.randn(3, 15),), backend="cuda")
    first, second = called(gm, ops.int8_gemm.default)
    assert first.args[3] is second.args[3]
    assert edit.get_tensor(gm, first.args[3]).shape == (15, 16)


# ── artifacts ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_an_artifact_made_for_a_cpu_runs_on_cuda_and_back(recipe, tmp_path):
    inputs, qdq = captured("bert")[1], converted("bert", recipe)
    fxq.save(fxq.lower(qdq), tmp_path / "cpu")
    gm = fxq.load(tmp_path / "cpu", backend="cuda")
    assert called(gm, ops.int8_gemm.default)
    expected = results(qdq, inputs)
    torch.testing.assert_close(results(gm, inputs), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    fxq.save(gm, tmp_path / "cuda")
    again = fxq.load(tmp_path / "cuda", backend="reference")
    assert torch.equal(results(again, inputs), results(fxq.load(tmp_path / "cpu", "reference"), inputs))


class Counting(nn.Module):
    """A linear, and positions that are made while running."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return (self.linear(x) + torch.arange(x.shape[0], device=x.device).cumsum(0)[:, None],)


def test_an_artifact_runs_elsewhere_than_it_was_made(tmp_path):
    x = {"x": torch.randn(3, 8)}
    gm = fxq.quantize(Counting().eval(), x, backend="cuda")
    folder = fxq.save(gm, tmp_path / "artifact")
    text = (folder / "graph.json").read_text()
    assert '"device":"cpu"' in text
    (folder / "graph.json").write_text(text.replace('"device":"cpu"', '"device":"cuda:1"'))
    manifest.write(folder, [path.name for path in folder.iterdir() if path.name != manifest.FILE])
    for lower in (True, False):
        again = fxq.load(folder, lower=lower)
        torch.testing.assert_close(results(again, x), results(gm, x), rtol=0, atol=1e-6)
    elsewhere = fxq.load(folder, lower=False, device="meta")
    assert {tensor.device.type for tensor in edit.constants(elsewhere).values()} == {"meta"}
    assert results(elsewhere, {"x": x["x"].to("meta")}).device.type == "meta"


# ── compiled, without padding ─────────────────────────────────────────────────────────────────────────────────────


def test_torch_compile_takes_the_graph_whole():
    inputs = captured("bert")[1]
    gm, _ = lowered("bert")
    compiled = torch.compile(gm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, inputs), results(gm, inputs), rtol=0, atol=0)


def test_without_padding_tokens_are_equal_and_padding_is_zero():
    inputs = dict(captured("bert")[1])
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, 3:] = 0
    inputs["attention_mask"] = mask
    _, qdq = lowered("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fxq.lower(qdq, padded_outputs="zero")
    assert len(called(gm, ops.pack_tokens.default)) == 1
    assert len(called(gm, ops.norm_quantize_rows.default)) > 0
    exact, packed = results(fxq.lower(qdq), inputs), results(gm, inputs)
    live = mask.bool()
    torch.testing.assert_close(packed[live], exact[live], rtol=0, atol=1e-5)
    assert packed[~live].count_nonzero() == 0


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def qdq():
    x = {"x": torch.randn(3, 8)}
    return fxq.convert(fxq.prepare(fxq.capture(Counting().eval(), x), "cuda", "dynamic"))


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (
            "x86",
            r"kernels 'x86' run on cpu; the graph's tensors are on meta. Move the graph with .to\('cpu'\), or lower",
        ),
        ("cuda", r"the kernels 'cuda' run on cuda and cpu; the graph's tensors are on meta"),
    ],
)
def test_a_device_that_a_backend_has_no_kernels_for(qdq, backend, expected):
    with pytest.raises(FxQuantError, match=expected):
        fxq.lower(qdq, backend, device="meta")


def test_the_reference_runs_anywhere(qdq):
    gm = fxq.lower(qdq, "reference", device="meta")
    assert gm(torch.randn(3, 8, device="meta"))[0].device.type == "meta"
    assert {tensor.device.type for tensor in edit.constants(qdq).values()} == {"cpu"}, "the graph given stays"


def test_a_graph_on_two_devices_is_refused(qdq):
    mixed = edit.clone(qdq)
    edit.set_tensor(mixed, "linear.bias", torch.empty(8, device="meta"))
    with pytest.raises(FxQuantError, match=r"two devices: .*'linear.bias' on meta; move all of it"):
        fxq.lower(mixed)


def test_inputs_on_another_device_are_named():
    x, scale = torch.zeros(2, 8, dtype=torch.int8), torch.ones((), device="meta")
    expected = r"fxquant::int8_gemm got tensors on different devices: x on cpu, x_scale on meta, weight on cpu"
    rest = (scale, None, x, scale, None, None, None, "none", None, None, 0, 0, torch.float32)
    with pytest.raises(InputError, match=expected):
        triton_support.check_devices("int8_gemm", x, rest)


@pytest.mark.parametrize(
    ("device", "installed", "capability", "expected"),
    [
        ("cuda:0", True, (7, 5), "need compute capability 8.0; cuda:0 has 7.5"),
        ("cuda:0", False, (9, 0), "Triton is not installed: pip install triton"),
        ("xpu", True, (9, 0), "run on cuda and, as references, on cpu; the tensors are on xpu"),
        ("cuda:0", True, (8, 0), None),
        ("cpu", False, (0, 0), None),
    ],
)
def test_why_a_device_has_no_kernels(monkeypatch, device, installed, capability, expected):
    monkeypatch.setattr(triton_support, "installed", lambda: installed)
    monkeypatch.setattr(triton_support, "capability", lambda device: capability)
    found = triton_support.refusal(torch.device(device))
    assert found is None if expected is None else expected in found


def test_what_the_kernels_refuse_is_said_in_the_ledger(qdq, monkeypatch):
    monkeypatch.setattr(emitters, "device_refusal", lambda device: "they need what is not here")
    gm = fxq.lower(qdq)
    (row,) = [row for row in fxq.ledger(gm).rows if row.op == "linear"]
    assert (row.code, row.kernel) == ("fallback", "Q/DQ")
    assert "they need what is not here" in row.reason
    torch.testing.assert_close(gm(torch.ones(2, 8))[0], qdq(torch.ones(2, 8))[0], rtol=0, atol=0)


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore of it")
CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore of it")


@pytest.mark.parametrize(
    ("full", "error", "expected"),
    [
        ("kernels.cuda.gemm.pack", CUDA_FULL, r"no memory is left to pack .*: CUDA out of memory. Tried .* as it was"),
        ("kernels.cuda.gemm.pack", CPU_FULL, r"no memory is left to pack the weight of linear.*can't allocate"),
        ("passes.lower._lower_quantize", CPU_FULL, "left to lower the graph, which is as it was: DefaultCPUAllocator"),
    ],
    ids=["device", "cpu", "later"],
)
def test_no_memory_leaves_the_graph_as_it_was(qdq, monkeypatch, full, error, expected):
    before = {name: tensor.clone() for name, tensor in edit.constants(qdq).items()}
    code = qdq.code

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"fxquant.{full}", refuse)
        with pytest.raises(FxQuantError, match=expected):
            fxq.lower(qdq)
    after = edit.constants(qdq)
    assert qdq.code == code
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert fxq.ledger(fxq.lower(qdq)).coverage == 1.0
