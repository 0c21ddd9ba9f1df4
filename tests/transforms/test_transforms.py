"""Transformations: what they match and what they nearly match, equal outputs, inverses, and graphs as text."""

import pytest
import torch
from canonical import Holding, assert_same, calls
from captured import captured
from golden import check_golden
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant import transforms
from fxquant.errors import FxQuantError
from fxquant.graph.text import to_text
from fxquant.passes.base import Pass, Pipeline
from fxquant.passes.canonical_arguments import NormalizeArguments
from fxquant.passes.canonicalize import canonicalize

pytestmark = pytest.mark.filterwarnings("ignore:dimension . .sequence. of:fxquant.FxQuantWarning")
torch.manual_seed(0)
X, TOKENS, IMAGES = torch.randn(5, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 8, 8)
W, V, B = torch.randn(4, 6), torch.randn(7, 6), torch.randn(4)


def graph_of(function, *inputs, **constants):
    """Return the captured graph of a function or a module, with spelled-out arguments."""
    model = function if isinstance(function, nn.Module) else Holding(function, **constants)
    return Pipeline((NormalizeArguments(),)).run(fxq.capture(model.eval(), inputs))


def trained(norm):
    """Return a batch normalisation with statistics and weights of its own."""
    for name, value in (("running_mean", torch.randn), ("running_var", torch.rand), ("weight", torch.randn)):
        getattr(norm, name).data = value(norm.num_features) + 0.1
    norm.bias.data = torch.randn(norm.num_features)
    return norm


def after_norm(layer, channels, norm=nn.BatchNorm2d):
    return nn.Sequential(layer, trained(norm(channels)))


def summed(x, w, b):
    product = functional.linear(x, w)
    return (product + b) * product


def qkv(x, w, v):
    return functional.linear(x, w) * 2, functional.linear(x.relu(), w), functional.linear(x, v), functional.linear(x, w)


CASES = {
    "division": (transforms.DivisionToMultiplication(), lambda x: x / 3.0 + (x / 8) / -0.3, (X,), {}, 3, 4),
    "bias": (
        transforms.FuseBias(),
        lambda x, w, b: (functional.linear(x, w) + b) * (b + functional.linear(x.relu(), w)),
        (TOKENS,),
        {"w": W, "b": B},
        2,
        4,
    ),
    "linears": (transforms.MergeLinears(), qkv, (TOKENS,), {"w": W, "v": V}, 1, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrites_what_it_matches(name):
    transform, function, inputs, constants, count, units = CASES[name]
    gm = graph_of(function, *inputs, **constants)
    text = to_text(gm)
    changed = transform(gm)
    assert to_text(gm) == text, "the graph given is left as it is"
    assert_same(gm, changed, *inputs, units=units)
    assert transform.misses(gm) == ()
    copy = Pipeline((transform,)).run(transforms.compose()(gm))
    assert calls(copy) == calls(changed) and transform.apply(transforms.compose()(gm)) == count
    assert transform.apply(changed) == 0
    check_golden(f"transform_{name}", f"before:\n{text}\nafter:\n{to_text(changed)}")


@pytest.mark.parametrize("name", CASES)
def test_the_inverse_gives_the_graph_back(name):
    transform, function, inputs, constants, *_ = CASES[name]
    gm = graph_of(function, *inputs, **constants)
    back = transform.inverse()(transform(gm))
    assert lines(back) == lines(gm)
    assert_same(gm, back, *inputs)
    assert transform.inverse().inverse() == transform


def lines(gm):
    """Return the calls of a graph in order, and what it reads in any."""
    text = to_text(gm).splitlines()
    reads = [line for line in text if " = get_attr" in line]
    return sorted(reads), [line for line in text if line not in reads]


NORMS = {
    "conv2d": (after_norm(nn.Conv2d(3, 4, 3, bias=False), 4), IMAGES),
    "conv2d-with-bias": (after_norm(nn.Conv2d(3, 4, 3, stride=2), 4), IMAGES),
    "conv2d-same-padding": (after_norm(nn.Conv2d(3, 4, 3, padding="same"), 4), IMAGES),
    "grouped-conv2d": (after_norm(nn.Conv2d(3, 6, 3, groups=3), 6), IMAGES),
    "conv1d": (after_norm(nn.Conv1d(3, 5, 2), 5, nn.BatchNorm1d), torch.randn(2, 3, 6)),
    "conv3d": (after_norm(nn.Conv3d(3, 2, 2), 2, nn.BatchNorm3d), torch.randn(1, 3, 4, 4, 4)),
    "linear": (after_norm(nn.Linear(6, 4, bias=False), 4, nn.BatchNorm1d), X),
    "linear-with-bias": (after_norm(nn.Linear(6, 4), 4, nn.BatchNorm1d), X),
    "plain-norm": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), IMAGES),
    "two-norms": (nn.Sequential(nn.Conv2d(3, 4, 1), trained(nn.BatchNorm2d(4)), trained(nn.BatchNorm2d(4))), IMAGES),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norms_are_fused(name):
    model, x = NORMS[name]
    gm = graph_of(model, x)
    changed = transforms.FuseBatchNorm()(gm)
    assert not any("batch_norm" in call for call in calls(changed))
    assert_same(gm, changed, x, units=16)
    with torch.no_grad():
        torch.testing.assert_close(changed(x), model.double()(x.double()).float(), rtol=1e-4, atol=1e-5)
    model.float()
    if name == "conv2d-with-bias":
        check_golden("transform_batch_norm", f"before:\n{to_text(gm)}\nafter:\n{to_text(changed)}")


def test_a_fused_batch_norm_has_no_inverse():
    with pytest.raises(FxQuantError, match="fuse_batch_norm cannot be undone"):
        transforms.FuseBatchNorm().inverse()


class Wide(nn.Module):
    """A linear on three axes, of which the norm takes the middle one."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


MISSES = [
    (transforms.DivisionToMultiplication(), lambda x: x / x.sum(), (X,), {}, "the divisor is a tensor, %sum"),
    (transforms.DivisionToMultiplication(), lambda x: x / 0.0, (X,), {}, "the divisor is 0"),
    (
        transforms.DivisionToMultiplication(),
        lambda x: torch.div(x, 3.0, rounding_mode="floor"),
        (X,),
        {},
        "the quotient is rounded",
    ),
    (transforms.DivisionToMultiplication(), lambda x: x / 2, (X.long(),), {}, "not known to be a floating-point"),
    (
        transforms.FuseBias(),
        lambda x, w, b: functional.linear(x, w, b) + b,
        (X,),
        {"w": W, "b": B},
        "has a bias already",
    ),
    (
        transforms.FuseBias(),
        lambda x, w, b: torch.add(functional.linear(x, w), b, alpha=2),
        (X,),
        {"w": W, "b": B},
        "alpha = 2",
    ),
    (
        transforms.FuseBias(),
        lambda x, w, b: functional.linear(x, w) + b,
        (X,),
        {"w": W, "b": B[:1]},
        r"has shape \[1\], expected \[4\]",
    ),
    (
        transforms.FuseBias(),
        summed,
        (X,),
        {"w": W, "b": B},
        "is also read by %mul",
    ),
    (
        transforms.MergeLinears(),
        lambda x, w, v: (functional.linear(x, w), functional.linear(x, v * x.sum())),
        (X,),
        {"w": W, "v": V},
        "is no constant",
    ),
    (
        transforms.MergeLinears(),
        lambda x, w, b: (functional.linear(x, w), functional.linear(x, w, b)),
        (X,),
        {"w": W, "b": B},
        "it alone",
    ),
    (transforms.FuseBatchNorm(), Wide(), (TOKENS,), {}, "the features of %linear are the last of 3"),
    (transforms.FuseBatchNorm(), Twice(), (IMAGES,), {}, "%conv2d is also read by %add"),
    (
        transforms.FuseBatchNorm(),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4)),
        (IMAGES,),
        {},
        "whose weight has its channels on another axis",
    ),
    (transforms.FuseBatchNorm(), nn.Sequential(nn.BatchNorm2d(3)), (IMAGES,), {}, "expected a linear or a convolution"),
]


@pytest.mark.parametrize(
    ("transform", "function", "inputs", "constants", "text"), MISSES, ids=[f"{e[0].name}-{e[4][:24]}" for e in MISSES]
)
def test_near_misses_say_why_and_stay(transform, function, inputs, constants, text):
    gm = graph_of(function, *inputs, **constants)
    found = transform.misses(gm)
    assert found
    with pytest.raises(ValueError, match=text):
        raise ValueError("; ".join(map(str, found)))
    assert calls(transform(gm)) == calls(gm)


def test_a_batch_norm_of_the_batch_itself_stays():
    gm = graph_of(lambda x: functional.batch_norm(x, None, None, training=True), IMAGES)
    (found,) = transforms.FuseBatchNorm().misses(gm)
    assert "the batch's own statistics" in found.reason


def test_compositions_apply_in_order_and_undo_in_reverse():
    both = transforms.compose(transforms.FuseBias(), transforms.MergeLinears(), transforms.DivisionToMultiplication())

    def function(x, w, v, b, c):
        return functional.linear(x, w) + b, functional.linear(x, v, c) / 3.0

    gm = graph_of(function, X, w=W, v=V, b=B, c=V[:, 0].clone())
    changed = both(gm)
    assert calls(changed).count("linear") == 1
    assert_same(gm, changed, X, units=4)
    assert lines(both.inverse()(changed)) == lines(gm)


def test_a_merged_linear_that_is_read_whole_stays_merged():
    gm = transforms.MergeLinears()(graph_of(qkv, TOKENS, w=W, v=V))
    merged = next(node for node in gm.graph.nodes if "merged" in node.meta["fxquant"])
    output = gm.graph.output_node()
    output.args = ((*output.args[0][:3], merged),)
    (found,) = transforms.SplitLinears().misses(gm)
    assert "reads all of it" in found.reason


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_transformed_model_goes_through_the_stages(name):
    _, inputs, captured_graph = captured(name)
    graph = canonicalize(captured_graph)
    together = transforms.compose(transforms.FuseBias(), transforms.MergeLinears())
    changed = together(graph)
    assert calls(changed).count("linear") < calls(graph).count("linear")
    with torch.no_grad():
        torch.testing.assert_close(changed(**inputs)[0], graph(**inputs)[0], rtol=1e-5, atol=1e-5)
        lowered = fxq.quantize(changed, inputs, recipe="weight-only", backend="reference")
        reference = fxq.quantize(graph, inputs, recipe="weight-only", backend="reference")
        torch.testing.assert_close(lowered(**inputs)[0], reference(**inputs)[0], rtol=1e-4, atol=1e-4)
    back = together.inverse()(changed)
    assert lines(back) == lines(graph)


def test_transformations_are_passes():
    every = [getattr(transforms, name) for name in transforms.__all__ if name not in ("Miss", "compose")]
    made = [each() for each in every if each not in (transforms.Transformation, transforms.Composition)]
    assert all(isinstance(each, Pass) for each in made)
    assert len({each.name for each in made}) == len(made)
