"""Products with the weights of experts become one form, are quantized per expert and channel, and give the numbers."""

import pytest
import torch
import transformers
import transformers.integrations.moe  # defines its grouped_mm
from canonical import Holding, after, assert_same, before, targets
from graphs import lowered_graph
from models import ids

import fxquant as fxq
from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.kernels.reference.grouped import grouped_linear
from fxquant.passes.canonical_experts import GROUPED_LINEAR

E, N, K = 3, 8, 16
W = torch.randn(E, N, K)
X, IDS = torch.randn(7, K), torch.tensor([2, 0, 2, 2, 0, 2, 0])
SORTED = torch.tensor([0, 0, 0, 2, 2, 2, 2])
ENDS = torch.tensor([3, 3, 7], dtype=torch.int32)  # the second expert has no rows

grouped = torch.ops.transformers.grouped_mm_fallback
BATCHED = [
    ("rows", lambda x, ids, w: torch.bmm(w[ids], x.unsqueeze(-1)).squeeze(-1), W),
    ("columns", lambda x, ids, w: torch.bmm(x.unsqueeze(1), w[ids]).squeeze(1), W.transpose(1, 2).contiguous()),
]
GROUPED = [
    ("rows", lambda x, ends, w: grouped(x, w.transpose(-2, -1), ends), W),
    ("columns", lambda x, ends, w: grouped(x, w, ends), W.transpose(1, 2).contiguous()),
]


@pytest.mark.parametrize(("function", "weight"), [e[1:] for e in GROUPED], ids=[e[0] for e in GROUPED])
def test_grouped_products_are_one_form(function, weight):
    gm = before("group_experts", function, X, ENDS, w=weight, dynamic=False)
    changed, count = after("group_experts", gm)
    assert count == 1 and targets(changed) == [GROUPED_LINEAR]
    (node,) = changed.graph.find_nodes(op="call_function", target=GROUPED_LINEAR)
    assert torch.equal(edit.get_tensor(changed, node.args[1]), W.flatten(0, 1))
    expected = torch.stack([W[expert] @ x for expert, x in zip(SORTED, X, strict=True)])
    torch.testing.assert_close(changed(X, ENDS), expected, rtol=1e-5, atol=1e-5)
    assert_same(gm, changed, X, ENDS, units=4)


@pytest.mark.parametrize(("function", "weight"), [e[1:] for e in BATCHED], ids=[e[0] for e in BATCHED])
def test_batched_products_are_sorted(function, weight):
    gm = before("group_experts", function, X, IDS, w=weight)
    changed, count = after("group_experts", gm)
    assert count == 1 and GROUPED_LINEAR in targets(changed) and torch.ops.aten.bmm.default not in targets(changed)
    for rows in (7, 1, 4):
        assert_same(gm, changed, X[:rows], IDS[:rows], units=4)


def test_weights_that_are_computed_stay():
    gm = before(
        "group_experts", lambda x, ends, w: grouped(x, w * x.sum(), ends), X, ENDS, w=W.transpose(1, 2), dynamic=False
    )
    changed, count = after("group_experts", gm)
    assert count == 0 and targets(changed) == targets(gm)


@pytest.mark.parametrize("backend", ["reference", "x86"])
@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only"])
def test_each_expert_and_channel_has_its_scale(backend, recipe):
    torch.manual_seed(0)
    scales = torch.logspace(-3, 3, E * N).reshape(E, N, 1)
    model = Holding(GROUPED[0][1], w=W * scales)
    lowered = lowered_graph(model, X, ENDS, recipe=recipe, backend=backend)
    (row,) = [row for row in fxq.ledger(lowered).rows if row.family]
    assert (row.op, row.code, row.flops) == ("grouped_linear", "", 2 * 7 * K * N)
    expected = grouped_linear(X, (W * scales).flatten(0, 1), ENDS)
    ratio = (expected / scales[SORTED, :, 0] - lowered(X, ENDS) / scales[SORTED, :, 0]).abs().max()
    assert ratio < 0.15  # of values about 4 at every scale: a shared scale would lose the small channels altogether


@pytest.mark.skipif(not native.available(), reason="no C++ kernels")
def test_packed_kernel_equals_the_reference():
    graphs = [lowered_graph(Holding(GROUPED[0][1], w=W), X, ENDS, backend=backend) for backend in ("reference", "x86")]
    assert "packed_grouped_linear_dynamic_int8" in fxq.ledger(graphs[1]).to_table()
    qdq = fxq.convert(fxq.prepare(fxq.capture(Holding(GROUPED[0][1], w=W).eval(), (X, ENDS)), "x86", "dynamic"))
    torch.testing.assert_close(graphs[1](X, ENDS), fxq.lower(qdq, "reference")(X, ENDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_every_product_of_a_mixture_is_quantized(implementation, tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, num_local_experts=4, experts_implementation=implementation,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    model.config.use_cache = False
    lowered = fxq.quantize(model, {"input_ids": ids()}, strict=True)
    rows = [row for row in fxq.ledger(lowered).rows if row.family == "linear"]
    assert [row.op for row in rows].count("grouped_linear") == 2 and all(row.quantized for row in rows)
    with torch.no_grad():
        expected = model(ids(3, 9)).logits
    found = lowered(input_ids=ids(3, 9)).logits
    assert 10 * torch.log10(expected.square().sum() / (expected - found).square().sum()) > 25
    again = fxq.load(fxq.save(lowered, tmp_path / "artifact"))
    assert torch.equal(again(input_ids=ids(3, 9)).logits, found)
