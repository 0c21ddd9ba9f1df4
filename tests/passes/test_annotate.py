"""Rules claim, larger patterns first; what no rule claims gets an enumerated reason."""

import models
import pytest
import torch
from graphs import canonical_graph
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.backends import load_backend, read_backend
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.passes.annotate import Annotate
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.claims import Reason, claimed_sites, erase_claims
from fxquant.recipe import Override, Recipe


class Feed(nn.Module):
    """A feed-forward block with a residual, and a table."""

    def __init__(self, inner=16):
        super().__init__()
        self.up = nn.Linear(8, inner)
        self.down = nn.Linear(inner, 8)

    def forward(self, x):
        return self.down(functional.gelu(self.up(x))) + x


def annotated(model, *inputs, backend="reference", recipe="dynamic"):
    gm = canonical_graph(model, *inputs)
    chosen = load_backend(backend)
    Annotate(chosen, chosen.recipe(recipe)).apply(gm)
    return gm


def claims(gm):
    return [(site.claim.op, site.claim.path) for site in claimed_sites(gm)]


def reasons(gm):
    return {node.name: edit.marks(node)["reason"] for node in gm.graph.nodes if "reason" in edit.marks(node)}


X = torch.randn(3, 8)


def test_larger_patterns_win_over_smaller():
    assert claims(annotated(Feed(), X)) == [("linear_gelu", "up"), ("linear_add", "down")]


def test_every_call_has_a_claim_or_a_reason():
    model, inputs = models.bert()
    gm = CANONICAL.run(capture(model, inputs))
    backend = load_backend("x86")
    count = Annotate(backend, backend.recipe("dynamic")).apply(gm)
    for node in gm.graph.nodes:
        if node.op == "call_function":
            facts = edit.marks(node)
            assert ("member" in facts) != ("reason" in facts), node.name
            assert facts.get("reason", {}).get("code", "float-op") in set(Reason)
    assert count == len(list(claimed_sites(gm))) == 2 * 6 + 1 + 3


def test_roles_are_edges_with_the_argument_index():
    (up, down) = claimed_sites(annotated(Feed(), X))
    assert {role: [(e.user.name, e.index) for e in edges] for role, edges in up.edges.items()} == {
        "x": [("linear", 0)],
        "weight": [("linear", 1)],
        "bias": [("linear", 2)],
    }
    assert down.edges["residual"][0].user is down.anchor


def test_claims_say_cost_and_spec():
    (up, _) = claimed_sites(annotated(Feed(), X))
    assert (up.claim.family, up.claim.macs, up.claim.kernel) == ("linear", 3 * 8 * 16, "linear_int8")
    assert up.claim.specs["weight"].granularity == "per-channel"
    assert up.claim.specs["x"].dynamic
    assert "bias" not in up.claim.specs, "an int32 bias needs static scales"
    assert up.claim.attrs == {"approximate": "none"}


def test_static_recipe_gives_an_integer_bias_where_the_rule_asks_for_it():
    (up, _) = claimed_sites(annotated(Feed(), X, recipe="static"))
    assert up.claim.specs["bias"].dtype == "int32"
    (up, _) = claimed_sites(annotated(Feed(), X, backend="x86", recipe="static"))
    assert "bias" not in up.claim.specs


def test_weight_only_leaves_the_input_in_float():
    (up, _) = claimed_sites(annotated(Feed(), X, recipe="weight-only"))
    assert set(up.claim.specs) - {"output"} == {"weight"}


@pytest.mark.parametrize("backend", ["reference", "x86"])
def test_weights_that_integer_kernels_do_not_take_need_float_activations(backend):
    changes = {"weight": {"dtype": "int4", "granularity": "per-group"}}
    gm = annotated(Feed(), X, backend=backend, recipe=Recipe(base="weight-only", specs=changes))
    assert [site.claim.kernel for site in claimed_sites(gm)] == ["linear_weight_only"] * 2
    gm = annotated(Feed(), X, backend=backend, recipe=Recipe(base="dynamic", specs=changes))
    assert claims(gm) == []
    assert "kernel linear_int8 takes weight.dtype = int8, the recipe asks for int4" in reasons(gm)["linear"]["text"]


def test_groups_are_those_of_constants():
    changes = {"granularity": "per-group", "dynamic": False, "observer": "minmax"}
    recipe = Recipe(base="static", specs={"activation": changes})
    gm = annotated(Feed(), X, recipe=recipe)
    assert claims(gm) == []
    assert reasons(gm)["linear"]["code"] == Reason.LIMIT
    assert reasons(gm)["linear"]["text"] == "scales per group are those of constants, and x is none"


def test_a_grouped_weight_has_no_integer_bias():
    changes = {"weight": {"granularity": "per-group"}}
    data = load_backend("reference").to_dict()
    data["kernel"]["linear_int8"].pop("weight")  # lets anything pass
    backend = read_backend(data, "lenient")
    (up, _) = claimed_sites(annotated(Feed(), X, backend=backend, recipe=Recipe(base="static", specs=changes)))
    assert up.claim.specs["weight"].group_size == 32
    assert "bias" not in up.claim.specs, "an int32 bias needs one scale a column"


@pytest.mark.parametrize(
    "override", [Override(path="up", quantize=False), Override(op="linear_gelu", quantize=False)], ids=["path", "op"]
)
def test_override_keeps_a_module_in_float(override):
    gm = annotated(Feed(), X, recipe=Recipe(base="dynamic", overrides=[override]))
    if override.path == "up":
        assert claims(gm) == [("linear_add", "down")]
        assert reasons(gm)["linear"]["code"] == Reason.FLOAT_BY_RECIPE
        assert "path = 'up'" in reasons(gm)["linear"]["text"]
    else:  # the larger pattern is refused, the plain linear inside it is another op kind
        assert claims(gm) == [("linear", "up"), ("linear_add", "down")]


def test_override_changes_a_spec():
    override = Override(path="up", specs={"weight": {"granularity": "per-tensor"}})
    (up, down) = claimed_sites(annotated(Feed(), X, recipe=Recipe(base="dynamic", overrides=[override])))
    assert up.claim.specs["weight"].granularity == "per-tensor"
    assert down.claim.specs["weight"].granularity == "per-channel"


def test_a_kernel_limit_is_a_reason():
    recipe = Recipe(base="dynamic", specs={"weight": {"symmetric": False}})
    gm = annotated(Feed(), X, recipe=recipe)
    assert claims(gm) == []
    reason = reasons(gm)["linear"]
    assert reason["code"] == Reason.LIMIT
    assert "weight.symmetric = true, the recipe asks for false" in reason["text"]


def test_a_guard_is_a_reason():
    class Computed(nn.Module):
        def forward(self, x, w):
            return functional.linear(x, w * 2)

    gm = annotated(Computed(), X, torch.randn(4, 8))
    assert reasons(gm)["linear"]["code"] == Reason.GUARD
    assert "nearest pattern linear: weight %mul is computed at run time" in reasons(gm)["linear"]["text"]


def test_no_gemm_of_a_packaged_backend_is_without_a_rule():
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    products = nn.ModuleList([kind(3, 4, 2) for kind in kinds])

    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = products

        def forward(self, x, y):
            a = torch.matmul(x, y) + torch.bmm(x, y) + torch.baddbmm(x, x, y) + torch.einsum("bij,bjk->bki", x, y)
            b = functional.scaled_dot_product_attention(x, y, y)
            return a, b, *(conv(torch.ones(1, *[3] * (n % 3 + 2))) for n, conv in enumerate(self.convs))

    for backend in ("reference", "x86"):
        gm = annotated(Products(), torch.randn(2, 4, 4), torch.randn(2, 4, 4), backend=backend)
        codes = {reason["code"] for reason in reasons(gm).values()}
        assert Reason.NO_RULE not in codes, backend


def test_annotating_again_starts_afresh():
    gm = annotated(Feed(), X)
    before = claims(gm)
    chosen = load_backend("reference")
    Annotate(chosen, chosen.recipe("dynamic")).apply(gm)
    assert claims(gm) == before
    erase_claims(gm)
    assert claims(gm) == []
    assert reasons(gm) == {}


def test_claims_survive_a_deepcopy():
    import copy

    gm = annotated(Feed(), X)
    assert claims(copy.deepcopy(gm)) == claims(gm)


def test_cost_grows_linearly():
    """A pattern is tried at each node that computes its result, never at every pair of nodes."""
    counts = []
    for layers in (4, 8):
        gm = canonical_graph(nn.Sequential(*[Feed() for _ in range(layers)]), X)
        backend = load_backend("reference")
        counts.append(Annotate(backend, backend.recipe("dynamic")).apply(gm))
    assert counts == [8, 16]


def test_an_override_that_takes_effect_is_not_called_unused(recwarn):
    recipe = Recipe(base="dynamic", overrides=[Override(op="linear_gelu", quantize=False)])
    fxq.prepare(capture(Feed().eval(), (X,)), "reference", recipe)
    assert not [each for each in recwarn if issubclass(each.category, fxq.FxQuantWarning)]


def test_a_packaged_override_may_match_nothing(recwarn):
    fxq.prepare(capture(Feed().eval(), (X,)), "reference", "weight-only-int4")
    assert not [each for each in recwarn if issubclass(each.category, fxq.FxQuantWarning)]


def test_an_override_that_matches_nothing_is_reported():
    recipe = Recipe(base="dynamic", overrides=[Override(path="encoder.*", quantize=False)])
    with pytest.warns(fxq.FxQuantWarning, match=r"path = 'encoder\.\*'.* matches no op of this model"):
        fxq.prepare(capture(Feed().eval(), (X,)), "reference", recipe)
