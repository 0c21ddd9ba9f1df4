"""Patterns match what they say, bind edges and literals, and name what stood in the way."""

import torch
from torch import fx
from torch.fx.node import map_aggregate

from fxquant.graph.arguments import spell_out
from fxquant.graph.pattern import Edge, Match, Mismatch, Pattern

aten = torch.ops.aten


def linear_gelu(x, weight, bias=None, *, approximate):
    return aten.gelu.default(aten.linear.default(x, weight, bias), approximate=approximate)


def linear_add(x, weight, residual, bias=None):
    return aten.add.Tensor(aten.linear.default(x, weight, bias), residual)


def swish(x):
    return aten.mul.Tensor(x, aten.sigmoid.default(x))


def graph_of(build, *names):
    """Trace `build` over placeholders into a canonical graph."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    result = build(*(fx.Proxy(graph.placeholder(name), tracer) for name in names))
    graph.output(map_aggregate(result, lambda proxy: proxy.node))
    for node in graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = spell_out(node.target, node.args, node.kwargs)
    return graph


def node_of(graph, target):
    return next(node for node in graph.nodes if node.target is target)


def test_binds_roles_as_edges_and_literals_as_attrs():
    graph = graph_of(lambda x, w, b: aten.gelu.default(aten.linear.default(x, w, b), approximate="tanh"), *"xwb")
    found = Pattern.of(linear_gelu).match(node_of(graph, aten.gelu.default))
    linear = node_of(graph, aten.linear.default)
    assert isinstance(found, Match)
    assert found.attrs == {"approximate": "tanh"}
    assert found.edges == {"x": (Edge(linear, 0),), "weight": (Edge(linear, 1),), "bias": (Edge(linear, 2),)}
    assert [found.values[role].name for role in ("x", "weight", "bias")] == ["x", "w", "b"]
    assert found.nodes == (node_of(graph, aten.gelu.default), linear)


def test_an_edge_stays_valid_when_a_node_is_put_on_it():
    graph = graph_of(lambda x, w: aten.gelu.default(aten.linear.default(x, w)), *"xw")
    found = Pattern.of(linear_gelu).match(node_of(graph, aten.gelu.default))
    (edge,) = found.edges["x"]
    with graph.inserting_before(edge.user):
        negated = graph.call_function(aten.neg.default, (edge.source,))
    edge.user.update_arg(0, negated)
    assert edge.source is negated


def test_optional_role_may_be_absent():
    graph = graph_of(lambda x, w: aten.gelu.default(aten.linear.default(x, w)), *"xw")
    found = Pattern.of(linear_gelu).match(node_of(graph, aten.gelu.default))
    assert found.values["bias"] is None
    assert found.edges["bias"] == ()


def test_required_role_must_not_be_absent():
    def with_bias(x, weight, bias):
        return aten.linear.default(x, weight, bias)

    graph = graph_of(aten.linear.default, *"xw")
    found = Pattern.of(with_bias).match(node_of(graph, aten.linear.default))
    assert found == Mismatch("bias cannot be None at argument 2 of %linear_default", 1)


def test_additions_commute():
    for build in (
        lambda x, w, r: aten.add.Tensor(aten.linear.default(x, w), r),
        lambda x, w, r: aten.add.Tensor(r, aten.linear.default(x, w)),
    ):
        graph = graph_of(build, *"xwr")
        found = Pattern.of(linear_add).match(node_of(graph, aten.add.Tensor))
        assert isinstance(found, Match)
        assert found.values["residual"].name == "r"


def test_a_scaled_addition_is_another_op():
    graph = graph_of(lambda x, w, r: aten.add.Tensor(aten.linear.default(x, w), r, alpha=2), *"xwr")
    found = Pattern.of(linear_add).match(node_of(graph, aten.add.Tensor))
    assert isinstance(found, Mismatch)
    assert found.reason == "argument 2 of %add_tensor is 2, expected 1"


def test_a_role_read_twice_has_two_edges_and_one_value():
    graph = graph_of(lambda x: aten.mul.Tensor(aten.sigmoid.default(x), x), "x")
    product, sigmoid = node_of(graph, aten.mul.Tensor), node_of(graph, aten.sigmoid.default)
    found = Pattern.of(swish).match(product)
    assert isinstance(found, Match)
    assert set(found.edges["x"]) == {Edge(product, 1), Edge(sigmoid, 0)}


def test_a_role_read_twice_must_be_one_value():
    graph = graph_of(lambda x, y: aten.mul.Tensor(aten.sigmoid.default(x), y), *"xy")
    assert isinstance(Pattern.of(swish).match(node_of(graph, aten.mul.Tensor)), Mismatch)


def test_a_value_used_outside_the_pattern_is_a_mismatch():
    def build(x, w):
        inner = aten.linear.default(x, w)
        return aten.gelu.default(inner), aten.neg.default(inner)

    graph = graph_of(build, *"xw")
    found = Pattern.of(linear_gelu).match(node_of(graph, aten.gelu.default))
    assert found == Mismatch("%linear_default inside the pattern is also used by %neg_default", 2)


def test_backtracks_when_the_first_order_leaks():
    """Of add(linear, linear) the first is used elsewhere: the second must be taken as the one inside."""

    def build(x, w):
        first, second = aten.linear.default(x, w), aten.linear.default(w, x)
        return aten.add.Tensor(first, second), aten.neg.default(first)

    graph = graph_of(build, *"xw")
    found = Pattern.of(linear_add).match(node_of(graph, aten.add.Tensor))
    assert isinstance(found, Match)
    assert found.values["residual"].name == "linear_default"


def test_names_what_was_expected_and_found():
    graph = graph_of(lambda x: aten.gelu.default(aten.relu.default(x)), "x")
    found = Pattern.of(linear_gelu).match(node_of(graph, aten.gelu.default))
    assert found == Mismatch("expected aten.linear.default, found %relu_default (aten.relu.default)", 1)


def test_float_literals_match_to_float32_precision():
    def scaled(x):
        return aten.mul.Scalar(x, 0.7978845608)

    pattern = Pattern.of(scaled)
    near = graph_of(lambda x: aten.mul.Scalar(x, 0.79788456), "x")
    far = graph_of(lambda x: aten.mul.Scalar(x, 0.8), "x")
    assert isinstance(pattern.match(node_of(near, aten.mul.Scalar)), Match)
    assert isinstance(pattern.match(node_of(far, aten.mul.Scalar)), Mismatch)


def test_true_is_not_one():
    def causal(query, key, value):
        return aten.scaled_dot_product_attention.default(query, key, value, is_causal=True)

    graph = graph_of(lambda q, k, v: aten.scaled_dot_product_attention.default(q, k, v, is_causal=False), *"qkv")
    found = Pattern.of(causal).match(node_of(graph, aten.scaled_dot_product_attention.default))
    assert isinstance(found, Mismatch)
    assert "expected True" in found.reason


def test_size_counts_calls():
    assert [Pattern.of(f).size for f in (linear_gelu, linear_add, swish)] == [2, 2, 2]
