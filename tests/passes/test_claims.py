"""Claims and reasons are data on the nodes: written, read back and erased."""

import copy
import json

import pytest
import torch
from graphs import Call, canonical_graph
from torch import nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.pattern import Match
from fxquant.ops import OPS
from fxquant.passes.claims import (
    UNINTENDED,
    Claim,
    Reason,
    claimed_sites,
    computed_ops,
    erase_claims,
    hand_over,
    write_claim,
    write_reason,
)
from fxquant.spec import QuantSpec

SPECS = {"x": QuantSpec(dtype="uint8", dynamic=True), "weight": QuantSpec(granularity="per-channel", symmetric=True)}


def claim(**changes):
    facts = {"id": "linear_gelu:gelu", "op": "linear_gelu", "kernel": "linear_int8", "path": "up", "name": "gelu"}
    return Claim(
        **{**facts, "family": "linear", "macs": 96, "attrs": {"approximate": "tanh"}, "specs": SPECS} | changes
    )


@pytest.fixture
def gm():
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = layer

        def forward(self, x):
            return functional.gelu(self.up(x), approximate="tanh") * 2

    return canonical_graph(Model(), torch.randn(2, 4))


def matched(gm):
    node = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.gelu.default)
    found = OPS["linear_gelu"].match(node)
    assert isinstance(found, Match)
    return found


def test_a_claim_survives_json():
    for each in (claim(), claim(kernel=None, family=None, attrs={}, specs={})):
        assert Claim.from_dict(json.loads(json.dumps(each.to_dict()))) == each


def test_a_written_claim_is_read_with_its_nodes_and_edges(gm):
    match = matched(gm)
    write_claim(claim(), match)
    (site,) = claimed_sites(gm)
    assert site.claim == claim()
    assert site.anchor is match.anchor
    assert set(site.members) == set(match.nodes)
    linear = next(node for node in match.nodes if node is not match.anchor)
    assert {role: [(edge.user, edge.index) for edge in edges] for role, edges in site.edges.items()} == {
        "x": [(linear, 0)],
        "weight": [(linear, 1)],
        "bias": [(linear, 2)],
    }
    assert [str(edge.source) for edge in site.edges["weight"]] == ["up_weight"]


def test_edges_follow_what_is_put_onto_them(gm):
    write_claim(claim(), matched(gm))
    (site,) = claimed_sites(gm)
    (edge,) = site.edges["x"]
    with gm.graph.inserting_before(edge.user):
        between = gm.graph.call_function(torch.ops.aten.neg.default, (edge.source,))
    edit.set_argument(edge.user, edge.index, between)
    (again,) = claimed_sites(gm)
    assert again.edges["x"][0].source is between


def test_the_marks_are_plain_data_and_survive_a_deepcopy(gm):
    write_claim(claim(), matched(gm))
    for node in gm.graph.nodes:
        facts = edit.marks(node)
        assert json.loads(json.dumps(facts)) == facts
    (site,) = claimed_sites(copy.deepcopy(gm))
    assert site.claim == claim()


def test_a_claim_takes_the_place_of_a_reason(gm):
    match = matched(gm)
    write_reason(match.anchor, Reason.GUARD, "not yet")
    assert edit.marks(match.anchor)["reason"] == {"code": "no-match", "text": "not yet"}
    write_claim(claim(), match)
    assert "reason" not in edit.marks(match.anchor)


def test_erasing_leaves_other_facts(gm):
    match = matched(gm)
    path = edit.path_of(match.anchor)
    write_claim(claim(), match)
    write_reason(next(node for node in gm.graph.nodes if node.target is torch.ops.aten.mul.Tensor), Reason.FLOAT_OP, "")
    erase_claims(gm)
    assert list(claimed_sites(gm)) == []
    for node in gm.graph.nodes:
        assert not {"claim", "member", "roles", "reason"} & set(edit.marks(node))
    assert edit.path_of(match.anchor) == path


def test_nodes_whose_claim_is_gone_are_no_site(gm):
    match = matched(gm)
    write_claim(claim(), match)
    edit.mark(match.anchor, claim=None)
    assert list(claimed_sites(gm)) == []


def test_sites_come_in_the_order_of_the_graph():
    layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    gm = canonical_graph(Call(layers), torch.randn(2, 4))
    linears = [node for node in gm.graph.nodes if node.target is torch.ops.aten.linear.default]
    for number, node in reversed(list(enumerate(linears))):
        found = OPS["linear"].match(node)
        write_claim(claim(id=f"linear:{number}", op="linear", name=node.name, attrs={}), found)
    assert [site.claim.id for site in claimed_sites(gm)] == ["linear:0", "linear:1", "linear:2"]


def test_unintended_reasons_are_those_that_nobody_asked_for():
    assert {str(code) for code in UNINTENDED} == {"kernel-limit", "no-match", "no-rule"}
    assert not UNINTENDED & {Reason.FLOAT_BY_RULE, Reason.FLOAT_BY_RECIPE, Reason.FLOAT_OP}


def test_a_node_computes_its_claim_or_the_float_op_that_it_is(gm):
    match = matched(gm)
    write_claim(claim(), match)
    edit.mark(match.anchor, lowered="aten.gelu.default", unrelated=1)
    assert computed_ops(match.anchor) == ({"claim": claim().to_dict(), "lowered": "aten.gelu.default"},)
    (linear,) = (node for node in match.nodes if node is not match.anchor)
    assert computed_ops(linear) == (), "a member is told of by its claim"
    scaled = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    assert computed_ops(scaled) == (), "no arithmetic of matrices, and not annotated"
    write_reason(scaled, Reason.FLOAT_OP, "why")
    reason = {"code": "float-op", "text": "why"}
    op = {"op": "aten.mul.Tensor", "path": "", "dtype": "float32", "family": None, "macs": 0}
    assert computed_ops(scaled) == ({"reason": reason, **op},)


def test_a_linear_that_nobody_annotated_counts_with_its_cost(gm):
    linear = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.linear.default)
    op = {"op": "aten.linear", "path": "up", "dtype": "float32", "family": "linear", "macs": 2 * 4 * 6}
    assert computed_ops(linear) == ({"reason": None, **op},)


def test_a_kernel_tells_of_the_ops_that_it_took_over(gm):
    match = matched(gm)
    write_claim(claim(), match)
    edit.mark(match.anchor, requantized=["scale", "zero_point"])
    scaled = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    write_reason(scaled, Reason.FLOAT_OP, "why")
    expected = (*computed_ops(match.anchor), *computed_ops(scaled))
    with gm.graph.inserting_before(scaled):
        first, second = (gm.graph.call_function(torch.ops.aten.neg.default, (match.anchor,)) for _ in range(2))
    hand_over([match.anchor, scaled], first)
    assert computed_ops(first) == expected
    assert computed_ops(match.anchor) == computed_ops(scaled) == ()
    assert json.loads(json.dumps(edit.marks(first))) == edit.marks(first)
    hand_over([first], second)
    assert computed_ops(second) == expected, "what a fused kernel tells of is handed on"
    assert computed_ops(first) == ()


def test_taking_over_what_tells_of_nothing_leaves_no_fact(gm):
    linear = next(node for node in gm.graph.nodes if node.op == "get_attr")
    with gm.graph.inserting_after(linear):
        kernel = gm.graph.call_function(torch.ops.aten.neg.default, (linear,))
    hand_over([linear], kernel)
    assert "fused" not in edit.marks(kernel)
