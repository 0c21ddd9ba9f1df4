"""Graphs of convert_pt2e in fxquant: recognised, claimed, lowered, and the same numbers."""

from functools import cache

import pytest
import torch
from pt2e_graphs import LINEARS, encoder, exported, inputs, ops, written
from torch import fx, nn
from torch.export import Dim

import fxquant as fxq
from fxquant.graph import edit
from fxquant.integrations.pt2e import affine
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torchao's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def prepared(dynamic):
    """Return the encoder with the observers of torchao's quantizer for x86, calibrated."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    found = prepare_pt2e(exported(), x86.X86InductorQuantizer().set_global(config))
    for seed in range(3):
        found(*inputs(4, 8, seed))
    return found


@cache
def converted(dynamic):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    return convert_pt2e(prepared(dynamic))


@pytest.mark.parametrize(("dynamic", "backend"), [(False, None), (True, "reference")], ids=["static", "dynamic"])
def test_lower_takes_what_convert_pt2e_gives(torchao, dynamic, backend, float32_where_native):
    graph = converted(dynamic)
    before = str(graph.graph)
    lowered = fxq.lower(graph, backend)
    assert str(graph.graph) == before
    ledger = fxq.ledger(lowered)
    linears = [row for row in ledger.rows if row.family == "linear"]
    assert len(linears) == LINEARS
    assert all(row.quantized for row in linears)
    assert {row.module_path for row in linears} >= {"layers.0.q", "layers.0.down", "pool"}
    assert "captured as: convert_pt2e" in ledger.summary()
    for batch in (inputs(), inputs(3, 9, 1), inputs(1, 4, 2)):
        ours, theirs, exact = lowered(*batch), graph(*batch), encoder()(*batch)
        for name, value in theirs.items():
            noise = (value - exact[name]).abs().max()
            assert (ours[name] - value).abs().max() < 0.5 * noise  # a rounding or two fell to the other side
            assert (ours[name] - value).abs().median() < 1e-5


def test_qdq_graph_computes_what_was_given(torchao, tmp_path):
    fxq.save(fxq.from_pt2e(converted(False), backend="reference"), tmp_path / "artifact")
    graph = fxq.load(tmp_path / "artifact", lower=False)
    assert edit.marks(graph)["stage"] == "converted"
    assert not [node for node in graph.graph.nodes if "decomposed" in str(node.target)]
    torch.testing.assert_close(graph(*inputs())["hidden"], converted(False)(*inputs())["hidden"], rtol=0, atol=1e-6)
    weights = [tensor for name, tensor in edit.constants(graph).items() if "frozen" in name]
    assert {(tensor.dtype, tensor.ndim) for tensor in weights} == {(torch.int8, 2)}
    assert int(min(tensor.min() for tensor in weights)) == -128  # torch's symmetric range is whole


def test_observers_that_are_left_in_are_refused(torchao):
    with pytest.raises(fxq.CaptureError, match=r"prepared and not converted: \S+ is a \w+Observer; calibrate it"):
        fxq.lower(prepared(False))


class Stored(nn.Module):
    """A linear on a weight stored as integers, with a scale and a zero point for each channel."""

    def __init__(self, zero_points):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randint(-127, 128, (8, 16), generator=generator, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8, generator=generator, dtype=torch.float64) / 50 + 0.01)
        self.register_buffer("zero_points", torch.tensor(zero_points))

    def forward(self, x):
        scheme = (self.scales.float(), self.zero_points, 0, -128, 127, torch.int8)
        x = ops.quantize_per_tensor(x, 0.02, 7, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor(x, 0.02, 7, -128, 127, torch.int8)
        return nn.functional.linear(x, ops.dequantize_per_channel(self.weight, *scheme))


class Folded(Stored):
    """The same with a weight that is quantized in the graph."""

    def __init__(self):
        super().__init__([0] * 8)
        self.scales = self.scales.float()
        self.weight = self.weight.float() * self.scales[:, None]

    def forward(self, x):
        scheme = (self.scales, self.zero_points, 0, -127, 127, torch.int8)
        weight = ops.quantize_per_channel(self.weight, *scheme)
        scale, zero_point = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        x = ops.quantize_per_token(x, scale, zero_point, -128, 127, torch.int8)
        x = ops.dequantize_per_token(x, scale, zero_point, -128, 127, torch.int8, torch.float32)
        return nn.functional.linear(x, ops.dequantize_per_channel(weight, *scheme))


class Groups(nn.Module):
    """A linear on 4-bit integers with a scale for each group of eight."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randint(-8, 8, (8, 16), generator=generator, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8, 2, generator=generator) / 10 + 0.01)

    def forward(self, x):
        weight = ops.dequantize_per_channel_group(self.weight, self.scales, None, -8, 7, torch.int8, 8, torch.float32)
        return nn.functional.linear(x, weight)


X = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def lowered_like(module, backend="reference"):
    """Return the lowered graph of a module, which computes what it does, and the row of its linear."""
    graph = fxq.lower(written(module, X), backend)
    torch.testing.assert_close(graph(X), module(X), rtol=1e-5, atol=1e-5)
    (row,) = [row for row in fxq.ledger(graph).rows if row.family == "linear"]
    return graph, row


def test_zero_points_of_channels_stay_in_qdq_form_with_the_reason():
    graph, row = lowered_like(Stored([0, 3, -2, 0, 1, 0, 0, 5]))
    assert row.code == "kernel-limit"
    assert "weight.symmetric = true" in row.reason
    assert DEQUANTIZE in {node.target for node in graph.graph.nodes}


def test_zero_points_of_zero_are_symmetric():
    _, row = lowered_like(Stored([0] * 8))
    assert (row.quantized, row.dtype) == (True, "int8 per-tensor × int8 per-channel → float32")


def test_weight_quantized_in_the_graph_is_folded():
    graph, row = lowered_like(Folded())
    assert (row.quantized, row.dtype) == (True, "int8 per-token dynamic × int8 per-channel → float32")
    assert {tensor.dtype for tensor in edit.constants(graph).values() if tensor.ndim == 2} == {torch.int8}


def test_groups_of_four_bits():
    graph, row = lowered_like(Groups())
    assert (row.quantized, row.dtype) == (True, "int4 per-group 8 → float32")
    assert {tensor.dtype for tensor in edit.constants(graph).values()} >= {torch.uint8}


class ByTorchao(nn.Module):
    """A look-up, a linear on integers, one on 4-bit weights alone, and one on both."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 32)
        self.both, self.alone, self.last = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, ids):
        return self.last(torch.relu(self.alone(self.both(self.words(ids)))))


def test_what_quantize_leaves_of_a_model(torchao):
    from torchao import quantization as ao

    def configure(model, **configs):
        for path, config in configs.items():
            ao.quantize_(model, config, lambda module, name, path=path: name == path)
        return torch.export.export(model, (ids,), dynamic_shapes=({0: Dim("b", max=9), 1: Dim("t", max=9)},)).module()

    torch.manual_seed(0)
    model, ids = ByTorchao().eval(), torch.randint(20, (2, 5))
    by_row, groups = {"weight_dtype": torch.int8}, {"weight_dtype": torch.int4}
    graph = configure(
        model,
        words=ao.IntxWeightOnlyConfig(**by_row, granularity=ao.PerAxis(0)),
        both=ao.Int8DynamicActivationIntxWeightConfig(**by_row, weight_granularity=ao.PerAxis(0)),
        alone=ao.IntxWeightOnlyConfig(**groups, granularity=ao.PerGroup(16)),
        last=ao.Int8DynamicActivationIntxWeightConfig(**groups, weight_granularity=ao.PerGroup(16)),
    )
    lowered = fxq.lower(graph, "reference")
    rows = {row.module_path: (row.dtype, row.code) for row in fxq.ledger(lowered).rows if row.family or row.quantized}
    assert rows == {
        "words": ("int8 per-channel → float32", ""),
        "both": ("int8 per-token dynamic × int8 per-channel → float32", ""),
        "alone": ("int4 per-group 16 → float32", ""),
        "last": ("float32", "kernel-limit"),
    }
    other = torch.randint(20, (3, 7))
    torch.testing.assert_close(lowered(other), graph(other), rtol=1e-5, atol=1e-5)
    graph = configure(ByTorchao().eval(), last=ao.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(fxq.CaptureError, match=r"last_weight is an Int8Tensor, .* IntxWeightOnlyConfig\(weight_dtype="):
        fxq.lower(graph, "reference")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"mapping_type": "SYMMETRIC_NO_CLIPPING_ERR"},
            "scales SYMMETRIC_NO_CLIPPING_ERR for torch.int8 of -128 to 127",
        ),
        ({"quant_min": -8, "quant_max": 7}, "scales SYMMETRIC for torch.int8 of -8 to 7, which fxquant does not have"),
        ({"block_size": [1, 8]}, r"\('1', '8'\) values of \(3, 16\) share a scale, which fxquant has no form for"),
    ],
    ids=["mapping", "limits", "block"],
)
def test_affine_operators_that_fxquant_does_not_have(given, text):
    x = fx.Graph().placeholder("x")
    edit.mark(x, value=edit.TensorInfo(torch.float32, (3, 16), (False, False)).to_dict())
    known = {"mapping_type": "SYMMETRIC", "block_size": [1, 16], "target_dtype": torch.int8}
    arguments = {"input": x, **known, "quant_min": None, "quant_max": None}
    spec = affine.chosen_spec(affine.in_common_words(affine.CHOOSE, arguments))
    assert (spec.granularity, spec.symmetric, spec.range) == ("per-token", True, "full")
    with pytest.raises(fxq.CaptureError, match=text):
        affine.chosen_spec(affine.in_common_words(affine.CHOOSE, {**arguments, **given}))
    with pytest.raises(
        fxq.CaptureError, match="of torchao's operators fxquant takes choose_qparams_affine, quantize_aff"
    ):
        affine.in_common_words("quantize_affine_tinygemm", arguments)


class Wide(nn.Module):
    """An activation of 16 bits."""

    def forward(self, x):
        x = ops.quantize_per_tensor(x, 0.01, 0, -32768, 32767, torch.int16)
        return ops.dequantize_per_tensor(x, 0.01, 0, -32768, 32767, torch.int16)


class Half(nn.Module):
    """A dequantize to half precision."""

    def forward(self, x):
        q = ops.quantize_per_tensor(x, 0.01, 0, -128, 127, torch.int8)
        return ops.dequantize_per_tensor(q, 0.01, 0, -128, 127, torch.int8, out_dtype=torch.float16)


class Narrow(nn.Module):
    """Scales at run time for seven bits."""

    def forward(self, x):
        scale, zero_point = ops.choose_qparams.tensor(x, 0, 127, 1e-5, torch.uint8)
        q = ops.quantize_per_tensor.tensor(x, scale, zero_point, 0, 127, torch.uint8)
        return ops.dequantize_per_tensor.tensor(q, scale, zero_point, 0, 127, torch.uint8)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Wide(), r"%quantize_per_tensor \(.*\) cannot be taken in: it makes activations of torch.int16"),
        (Half(), r"%dequantize_per_tensor \(.*\) cannot be taken in: it gives torch.float16"),
        (Narrow(), r"%choose_qparams \(.*\) cannot be taken in: .* integers of 0 to 127 in torch.uint8"),
    ],
    ids=["int16", "float16", "seven bits"],
)
def test_schemes_that_fxquant_does_not_have(module, text):
    with pytest.raises(fxq.CaptureError, match=text):
        fxq.lower(written(module, X))


def test_float_graph_is_no_pt2e_graph():
    graph = written(nn.Linear(16, 4), X)
    with pytest.raises(fxq.CaptureError, match="no operator of quantized_decomposed, nor an affine"):
        fxq.from_pt2e(graph)
    with pytest.raises(fxq.FxQuantError, match="a GraphModule that fxquant did not make"):
        fxq.lower(graph)


def test_inputs_of_which_nothing_is_known():
    graph = written(Stored([0] * 8), X)
    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.clear()
    with pytest.raises(fxq.CaptureError, match=r"nothing is known of the input %x: give from_pt2e example_inputs"):
        fxq.lower(graph)
    assert QUANTIZE in {node.target for node in fxq.from_pt2e(graph, (X,)).graph.nodes}
