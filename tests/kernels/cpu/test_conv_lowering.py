"""Models of convolutions through all stages: what runs them, that kernels agree, and what stays as it is."""

from functools import cache

import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant.kernels.cpu import native


class Images(nn.Module):
    """Convolutions of every kind, a residual, and a pooled classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.filters, self.groups = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 3, groups=2)
        self.line, self.head = nn.Conv1d(16, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, images):
        x = self.pool(torch.relu(self.norm(self.stem(images))))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = self.groups(nn.functional.silu(self.filters(x)))
        return self.head(nn.functional.gelu(self.line(x.flatten(2))).mean(2))


def images(count=3, seed=0):
    return torch.randn(count, 3, 20, 24, generator=torch.Generator().manual_seed(seed))


@cache
def captured():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fxq.capture(Images().eval(), (images(),))


@cache
def converted(recipe):
    prepared = fxq.prepare(captured(), "x86", recipe)
    return fxq.convert(fxq.calibrate(prepared, [(images(),)], progress=False) if recipe == "static" else prepared)


@cache
def lowered(recipe):
    return fxq.lower(converted(recipe))


def convolutions(gm):
    return [row for row in fxq.ledger(gm).rows if row.family == "convolution"]


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_every_convolution_has_its_kernel(recipe):
    kernel = "packed_conv_dynamic_int8" if recipe == "dynamic" else "packed_conv_int8"
    if not native.available():
        kernel = "conv_int8"
    rows = convolutions(lowered(recipe))
    names = ["conv2d_relu", "conv2d_relu", "conv2d_add_relu", "conv2d_silu", "conv2d", "conv1d_gelu"]
    assert [row.op for row in rows] == names
    assert {row.kernel for row in rows} == {f"fxquant.{kernel}"}


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_kernels_are_the_reference_and_near_the_model(recipe):
    with torch.no_grad():
        found, expected = lowered(recipe)(images(2, 1)), fxq.lower(converted(recipe), "reference")(images(2, 1))
        exact = captured()(images(2, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert fxq.numerics.sqnr(exact, found) > 30


def test_chains_are_integer_between_convolutions():
    integers = [row.dtype.rpartition("→ ")[2] for row in convolutions(lowered("static"))]
    assert integers[0] == "float32", "the pool and the residual read it"
    assert integers[1] == integers[3] == "uint8"


def test_an_image_has_its_own_scale():
    alone = lowered("dynamic")(images()[1:2])
    louder = torch.cat([images()[1:2], images()[:1] * 100])
    torch.testing.assert_close(lowered("dynamic")(louder)[:1], alone)


def test_saved_as_plain_weights(tmp_path):
    fxq.save(lowered("static"), tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert torch.equal(again(images()), lowered("static")(images()))


def test_an_override_keeps_one_in_float():
    recipe = {"base": "dynamic", "override": [{"path": "groups", "quantize": False}]}
    rows = {row.module_path: row for row in convolutions(fxq.prepare(captured(), "x86", recipe))}
    assert rows.pop("groups").code == "float-by-recipe"
    assert all(row.quantized for row in rows.values())


REFUSED = {
    "a scale a token": ({"feature_map": {"granularity": "per-token"}}, "x.granularity = per-tensor or per-sample"),
    "an affine weight": ({"filter": {"symmetric": False}}, "weight.symmetric = true"),
    "4 bits": ({"filter": {"dtype": "int4"}}, "weight.dtype = int8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_kernel_does_not_take_stays_in_float_with_the_reason(case):
    changes, reason = REFUSED[case]
    rows = convolutions(fxq.prepare(captured(), "x86", {"base": "dynamic", "spec": changes}))
    assert {row.code for row in rows} == {"kernel-limit"}
    assert all(f"conv_int8 takes {reason}" in row.reason for row in rows)


def test_quantized_weights_alone_run_in_their_plain_form():
    recipe = {"base": "dynamic", "spec": {"feature_map": "float"}}
    rows = convolutions(fxq.lower(fxq.convert(fxq.prepare(captured(), "x86", recipe))))
    assert all("the activations have to be integers of 8 bits" in row.reason for row in rows)
