"""Convolutions as products of windows: the kernel, interpreted, against the reference; what runs them, and back."""

import pytest
import torch
from linears import integers, random
from torch import nn

import fxquant as fxq
from fxquant.errors import ConfigError
from fxquant.kernels.cuda import choice, conv, emitters, gemm

assert emitters  # defines the ops
ops = torch.ops.fxquant
# x, weight, stride, padding, dilation
CASES = {
    "plain": ((2, 3, 5, 6), (4, 3, 3, 2), (1, 1), (0, 0), (1, 1)),
    "strided": ((2, 5, 7, 9), (33, 5, 3, 3), (2, 3), (1, 2), (1, 2)),
    "pointwise": ((3, 16, 2, 2), (5, 16, 1, 1), (1, 1), (0, 0), (1, 1)),
    "line": ((2, 4, 11), (7, 4, 3), (2,), (1,), (2,)),
}
OUT = (torch.tensor(0.05), torch.tensor(120, dtype=torch.int32), 0, 255, torch.uint8)
FLOAT = (None, None, 0, 0, torch.float32)


def operands(case, dtype, per_sample, channels_last=False):
    """Return the operands of both ops up to the activation, for x of a dtype."""
    sizes, weight_sizes, *options = CASES[case]
    low = 0 if dtype is torch.uint8 else -128
    shape = (sizes[0], *[1] * (len(sizes) - 1)) if per_sample else ()
    x = integers(*sizes, dtype=dtype)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    scale = torch.full(shape, 0.02) * (1 + torch.arange(sizes[0] if per_sample else 1).reshape(shape))
    zero_point = torch.full(shape, low + 100, dtype=torch.int32) + scale.mul(100).int()
    weight = integers(*weight_sizes, seed=1, low=-127)
    weight_scale, bias = random(len(weight), seed=2).abs() * 0.02, random(len(weight), seed=3)
    return (x, scale, zero_point), weight, weight_scale, bias, options


def both(case, activation, out, dtype=torch.uint8, per_sample=True, residual=False, **more):
    """Return what the op gives, and the reference."""
    quantized, weight, weight_scale, bias, options = operands(case, dtype, per_sample, **more)
    plain = (*quantized, weight, weight_scale, bias)
    shape = ops.conv_int8(*plain, None, "none", *options, 1, *FLOAT).shape
    added = random(*shape, seed=4) if residual else None
    expected = ops.conv_int8(*plain, added, activation, *options, 1, *out)
    packed = (conv.pack(weight), weight_scale, gemm.row_sums(weight.flatten(1)), bias, added)
    return ops.int8_conv(*quantized, *packed, activation, list(weight.shape[2:]), *options, *out), expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("activation", "out", "options"),
    [
        ("none", FLOAT, {}),
        ("none", FLOAT, {"dtype": torch.int8, "per_sample": False, "channels_last": True}),
        ("add_relu", OUT, {"residual": True}),
    ],
    ids=["float", "signed", "requantized"],
)
def test_kernels_give_the_references_numbers(interpreted, case, activation, out, options):
    found, expected = both(case, activation, out, **options)
    assert torch.equal(found, expected)
    assert found.movedim(1, -1).is_contiguous()


def test_products_by_torch_are_the_same(interpreted, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "int8_gemm=int_mm")
    found, expected = both("strided", "add_relu", OUT, residual=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_the_op_means_the_same_on_a_cpu(case):
    found, expected = both(case, "gelu", FLOAT)
    assert torch.equal(found, expected)
    weight = integers(*CASES[case][1], low=-127)
    assert torch.equal(conv.unpack(conv.pack(weight), weight.shape[1], weight.shape[2:]), weight)


def test_empty_images_and_unknown_activations(interpreted):
    quantized, weight, weight_scale, bias, options = operands("plain", torch.uint8, False)
    packed = (conv.pack(weight), weight_scale, gemm.row_sums(weight.flatten(1)), bias, None)
    empty = (quantized[0][:0], *quantized[1:])
    assert ops.int8_conv(*empty, *packed, "none", [3, 2], *options, *FLOAT).shape == (0, 4, 3, 5)
    with pytest.raises(ConfigError, match=r"'geluu'.*did you mean 'gelu'"):
        ops.int8_conv(*quantized, *packed, "geluu", [3, 2], *options, *FLOAT)


class Images(nn.Module):
    """A stem, a pool, a residual, groups, and a line."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool, self.next = nn.Conv2d(3, 8, 3, 2), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)
        self.groups, self.line = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv1d(8, 4, 3)

    def forward(self, images):
        x = self.pool(torch.relu(self.stem(images)))
        x = torch.relu(self.next(x) + x)
        return self.line(torch.relu(self.groups(x)).flatten(2))


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_a_model_of_convolutions(recipe, tmp_path):
    images = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    options = {"backend": "cuda", "recipe": recipe, "calibration": [(images,)], "progress": False}
    gm = fxq.quantize(Images().eval(), (images,), **options)
    rows = [row for row in fxq.ledger(gm).rows if row.family == "convolution"]
    assert [row.kernel.removeprefix("fxquant.") for row in rows] == ["int8_conv", "int8_conv", "conv_int8", "int8_conv"]
    assert fxq.ledger(gm).coverage == 1.0
    with torch.no_grad():
        found, exact = gm(images), Images().eval()(images)
        fxq.save(gm, tmp_path / "artifact")
        torch.testing.assert_close(fxq.load(tmp_path / "artifact", "reference")(images), found, rtol=0, atol=1e-5)
    assert fxq.numerics.sqnr(exact, found) > 25
