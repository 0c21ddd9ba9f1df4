"""A plan gives what Python gives, bit for bit, and steps aside where something has to see the calls."""

import copy
import gc
import threading
import weakref

import models
import pytest
import torch
from captured import converted
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.signature import SignatureCodeGen, signature_of
from fxquant.kernels.cpu import native, plan

aten = torch.ops.aten
pytestmark = pytest.mark.skipif(not native.available(), reason="the C++ kernels cannot be used here")


class Kinds(nn.Module):
    """Sizes, arithmetic on them, numbers where operators take tensors, several results, lists with gaps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(8.0))
        self.register_buffer("rows", torch.tensor([1, 0]))

    def forward(self, x, mask=None):
        size = x.shape[1]
        values, places = torch.topk(x * size + self.weight, 3)
        left, right = (2 * values).split([1, 2], dim=-1)
        picked = x[:, self.rows] - 1
        filled = torch.full((x.shape[0], size * 2 - 1), float("-inf")).clamp(min=-3)
        return {"a": left + right.sum(-1, keepdim=True), "b": places, "c": picked, "d": filled, "e": mask}


def planned(gm):
    gm = edit.clone(gm)
    plan.run_as_plan(gm)
    gm.recompile()
    assert plan.PLAN in gm.code
    return gm


def plain(gm):
    gm = edit.clone(gm)
    gm.graph.set_codegen(SignatureCodeGen(signature_of(gm)))
    gm.recompile()
    assert plan.PLAN not in gm.code
    return gm


@pytest.fixture(scope="module")
def kinds():
    return capture(Kinds(), {"x": torch.randn(2, 5, 8)})


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 2, 8), (2, 9, 8)])
def test_every_kind_of_call(kinds, shape):
    x = torch.randn(shape)
    expected, found = plain(kinds)(x=x), planned(kinds)(x=x)
    assert expected.keys() == found.keys()
    assert found["e"] is None
    for name in "abcd":
        assert torch.equal(expected[name], found[name])


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_lowered_models(name):
    lowered = fxq.lower(converted(name, "dynamic"), "x86")
    inputs = models.EVERY[name]()[1]
    assert plan.PLAN in lowered.code
    with torch.no_grad():
        for expected, found in zip(
            models.tensors(plain(lowered)(**inputs)), models.tensors(lowered(**inputs)), strict=True
        ):
            assert torch.equal(expected, found)


def test_an_edited_graph_runs_as_it_is_now(kinds):
    gm, x = planned(kinds), torch.randn(2, 5, 8)
    (clamp,) = (node for node in gm.graph.nodes if node.target is aten.clamp.default)
    clamp.args = (clamp.args[0], -7.0, None)
    gm.recompile()
    assert gm(x=x)["d"].unique().item() == -7
    assert planned(kinds)(x=x)["d"].unique().item() == -3


def test_constants_are_those_of_now(kinds):
    gm, x = planned(kinds), torch.zeros(2, 5, 8)
    assert gm(x=x)["a"].max() == 14 + 22
    with torch.no_grad():
        gm.weight.mul_(2)
    assert gm(x=x)["a"].max() == 2 * (14 + 22)
    gm.weight = nn.Parameter(torch.zeros(8))
    assert gm(x=x)["a"].max() == 0
    twin = copy.deepcopy(gm)
    twin.weight = nn.Parameter(torch.ones(8))
    assert (gm(x=x)["a"].max(), twin(x=x)["a"].max()) == (0, 2 + 4)


def test_modes_see_every_call(kinds):
    gm, x = planned(kinds), torch.randn(2, 5, 8)
    expected = gm(x=x)
    with Seen() as seen:
        found = gm(x=x)
    assert aten.topk.default in seen.calls
    assert torch.equal(expected["a"], found["a"])
    with torch.device("cpu"):
        assert torch.equal(gm(x=x)["a"], expected["a"])


def test_profilers_see_every_call(kinds):
    gm, x = planned(kinds), torch.randn(2, 5, 8)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        gm(x=x)
    assert "aten::topk" in {event.name for event in seen.events()}


def test_gradients(kinds):
    gm, x = planned(kinds), torch.randn(2, 5, 8, requires_grad=True)
    gm(x=x)["a"].sum().backward()
    (expected,) = torch.autograd.grad(plain(kinds)(x=x)["a"].sum(), x)
    assert torch.equal(x.grad, expected)


def test_subclasses_keep_their_meaning(kinds):
    x = nn.Parameter(torch.randn(2, 5, 8))
    assert torch.equal(planned(kinds)(x=x)["a"], plain(kinds)(x=x.detach())["a"])


def test_errors_are_those_of_the_operators():
    gm = planned(capture(nn.Embedding(4, 2), {"input": torch.tensor([1])}))
    with pytest.raises(IndexError, match="out of range"):
        gm(torch.tensor([9]))


def test_threads_share_a_plan(kinds):
    gm, wrong = planned(kinds), []

    def work(seed):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
        expected = plain(kinds)(x=x)["a"]
        wrong.extend(seed for _ in range(20) if not torch.equal(gm(x=x)["a"], expected))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_plan_goes_with_its_graph(kinds):
    gm = planned(kinds)
    gm.weight = nn.Parameter(torch.zeros(8))
    gm(x=torch.randn(2, 5, 8))
    held = weakref.ref(gm.weight)
    del gm
    gc.collect()
    assert held() is None
