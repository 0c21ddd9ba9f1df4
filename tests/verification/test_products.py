"""Products by themselves: their exact sums, and graphs whose results those can be read back from."""

import pytest
import torch
from captured import captured
from captured import converted as converted_model
from graphs import Call
from torch import nn

import fxquant as fxq
from fxquant.evaluation.layers import run_layers
from fxquant.graph import edit
from fxquant.verification.inputs import generated_inputs
from fxquant.verification.products import Product, Sums, products


def converted(model, *inputs, recipe="dynamic", backend="reference"):
    graph = fxq.capture(model.eval(), inputs, dynamic=False)
    prepared = fxq.prepare(graph, backend, recipe)
    return fxq.convert(fxq.calibrate(prepared, [inputs], progress=False) if recipe == "static" else prepared)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_sums_of_a_linear_are_those_of_its_integers(recipe):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 7), nn.ReLU()), torch.randn(5, 12)
    gm = converted(model, x, recipe=recipe)
    (product,) = products(gm)
    sums = Sums(product)
    found = sums.of((x,))
    weight = next(tensor for name, tensor in edit.constants(gm).items() if tensor.dtype is torch.int8)
    zero_point = (sums.quantized.double() - x.double() / sums.step).median(dim=-1, keepdim=True).values.round()
    assert torch.equal(found, (sums.quantized.double() - zero_point) @ weight.double().t())
    assert (product.op, len(product.inputs), set(product.roles.values())) == ("linear_relu", 1, {"x", "weight"})
    assert torch.equal(product.weight, weight)


def test_a_product_alone_has_neither_scale_nor_bias_and_leaves_its_graph_as_it_was():
    torch.manual_seed(0)
    model, x = nn.Linear(12, 7), torch.randn(5, 12)
    gm = converted(model, x)
    before = {name: tensor.clone() for name, tensor in edit.constants(gm).items()}
    text, expected = str(gm.graph), gm(x)
    (product,) = products(gm)
    sums = Sums(product)
    found = sums.of((x,))
    result = run_layers(product.graph, set(), (x,)).outputs[0]
    assert torch.equal((result.double() / sums.step).round(), found)
    assert str(gm.graph) == text
    assert torch.equal(gm(x), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in edit.constants(gm).items())


def test_products_of_activations_and_look_ups():
    a, b = torch.randn(2, 4, 6), torch.randn(2, 6, 3)
    (product,) = products(converted(Call(torch.matmul), a, b, recipe="static"))
    sums = Sums(product)
    found = sums.of((a, b))
    assert product.weight is None
    torch.testing.assert_close((found * sums.step).float(), a @ b, atol=0.1, rtol=0)
    (look_up,) = products(converted(nn.Embedding(9, 4), torch.arange(9)))
    assert torch.equal(Sums(look_up).of((torch.arange(9),)), look_up.weight.double())


def test_weight_only_products_have_no_integer_sums():
    (text,) = products(converted(nn.Linear(8, 8), torch.randn(2, 8), recipe="weight-only"))
    assert text == "linear at the top: x is not in integers, so that its kernel multiplies floats"


def test_generated_inputs_are_ones_that_the_graph_takes():
    _, _, gm = captured("distilbert")
    leaves = generated_inputs(gm)
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    found = dict(zip(names, leaves, strict=True))
    assert all(torch.isfinite(each).all() for each in run_layers(gm, set(), leaves).outputs)
    assert found["attention_mask"].eq(1).all()
    assert found["input_ids"].unique().numel() > 5
    assert all(torch.equal(one, other) for one, other in zip(leaves, generated_inputs(gm), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(leaves, generated_inputs(gm, seed=1), strict=True))
    assert all(isinstance(each, Product) for each in products(converted_model("distilbert")))
