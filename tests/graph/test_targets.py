import operator
import os
import re

import pytest
import torch

import fxquant.kernels.qdq  # noqa: F401  # registers the fxquant ops
from fxquant.errors import ArtifactError
from fxquant.graph import targets

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.linear.default, "aten.linear.default"),
        (aten.__and__.Tensor, "aten.__and__.Tensor"),
        (aten.sym_size.int, "aten.sym_size.int"),
        (torch.ops.fxquant.quantize.default, "fxquant.quantize.default"),
        (operator.getitem, "operator.getitem"),
        (torch.sym_max, "torch.sym_max"),
        (torch._sym_sqrt, "torch.sym_sqrt"),
    ],
)
def test_names_resolve_to_what_they_came_from(target, name):
    assert targets.name_of(target) == name
    assert targets.resolve(name) is target


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.ops.load_library",
        "torch.load",
        "operator.attrgetter",
        "aten.__class__",
        "aten.__class__.default",
        "aten.linear.__class__",
        "aten.linear.default.__class__",
        "aten.__init__.default",
        "aten.get_device",
        "_c10d_functional.wait_tensor.default",
        "prim.Print.default",
        "aten.manual_seed.default",
        "aten.nothing.default",
        "aten.add.default",
        "",
        "aten.linear.default\n",
        "aten.lineаr.default",
        None,
        ["aten.linear.default"],
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ArtifactError, match="it calls"):
        targets.resolve(name)


@pytest.mark.parametrize("name", ["aten.from_file.default", "aten._print.default"])
def test_operators_that_reach_outside_are_refused(name):
    with pytest.raises(ArtifactError, match=r"no artifact may: it (opens a file|writes to the terminal)"):
        targets.resolve(name)


def test_an_operator_of_another_torch_is_named():
    with pytest.raises(
        ArtifactError, match=re.escape(f"aten.linear.turbo, which torch {torch.__version__} does not have")
    ):
        targets.resolve("aten.linear.turbo")


@pytest.mark.parametrize(
    "target", [os.system, torch.nn.functional.linear, torch.ops.prim.device.default], ids=["system", "torch", "prim"]
)
def test_other_callees_have_no_name(target):
    with pytest.raises(ArtifactError, match="which an artifact cannot: expected an operator of aten or fxquant"):
        targets.name_of(target)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "text"),
    [
        (aten.relu.default, (1, 2), {}, "aten.relu.default is called with 2 arguments and takes 1"),
        (aten.relu.default, (), {"x=1)\nimport os\n(y": 1}, "aten.relu.default has no argument"),
        (aten.zeros.default, ([1], torch.int8), {}, "is called with 2 arguments and takes 1"),
        (operator.add, (1, 2), {"key": 1}, "operator.add is called with 2 arguments and the names"),
        (operator.add, (), {}, "operator.add is called with 0 arguments"),
    ],
)
def test_impossible_arguments_are_refused(target, args, kwargs, text):
    with pytest.raises(ArtifactError, match=text):
        targets.check_arguments(target, args, kwargs)


def test_possible_arguments_pass():
    targets.check_arguments(aten.zeros.default, ([1],), {"dtype": torch.int8})
