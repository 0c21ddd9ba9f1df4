from collections import Counter

import pytest
import torch
from captured import captured, lowered
from torch.nn import functional

import fxquant as fxq
from fxquant.evaluation.kernels_ran import (
    describe_kernels,
    float_products,
    integer_products,
    kernels_that_ran,
    other_kernels,
)
from fxquant.kernels.cpu import native

X, W = torch.ones(4, 8), torch.ones(16, 8)


def test_a_float_linear_counts_once_whatever_it_calls():
    assert kernels_that_ran(lambda: functional.linear(X, W)) == {"aten::linear": 1}


def test_an_integer_product_is_told_from_a_float_one():
    integers = torch.ones(32, 8, dtype=torch.int8)

    def call():
        torch._int_mm(integers, integers.t())
        X @ W.t()

    ran = kernels_that_ran(call)
    assert integer_products(ran) == {"aten::_int_mm": 1}
    assert float_products(ran) == {"aten::matmul": 1}


def test_a_product_inside_an_own_op_is_counted_apart():
    scale, zero_point = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    q, w = torch.ones(4, 8, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)
    graph_op = torch.ops.fxquant.linear_int8.default
    arguments = (q, scale, zero_point, w, torch.ones(16), None, None, "none", None, None, 0, 0, torch.float32)
    ran = kernels_that_ran(lambda: graph_op(*arguments))
    assert ran["fxquant::linear_int8"] == 1
    # The reference kernel multiplies integers in float32, exactly; the trace says so.
    assert float_products(ran) == {"fxquant::linear_int8 > aten::matmul": 1}
    assert not integer_products(ran)
    assert not other_kernels(ran)


@pytest.fixture(scope="module")
def lowered_bert():
    model, inputs, _ = captured("bert")
    return model, lowered("bert"), inputs


def test_every_linear_of_a_lowered_model_leaves_a_trace(lowered_bert):
    model, graph, inputs = lowered_bert
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    ran = kernels_that_ran(lambda: graph(**inputs))
    own = sum(
        count for name, count in ran.items() if name.startswith("fxquant::") and "linear" in name and ">" not in name
    )
    assert own == linears
    assert float_products(ran).get("aten::linear", 0) == 0


def test_a_float_model_shows_no_integers(lowered_bert):
    model, _, inputs = lowered_bert
    ran = kernels_that_ran(lambda: model(**inputs))
    assert not integer_products(ran)
    assert float_products(ran)["aten::linear"] == sum(isinstance(m, torch.nn.Linear) for m in model.modules())


def test_description_adds_up_products_and_lists_what_is_no_product():
    ran = Counter({
        "fxquant::a": 2, "fxquant::a > aten::_int_mm": 2, "aten::_int_mm": 1, "aten::bmm": 4, "fxquant::embedding": 3,
    })  # fmt: skip
    assert describe_kernels(ran) == "4 × aten::bmm, 3 × aten::_int_mm, 3 × fxquant::embedding"


def test_an_own_linear_that_calls_no_product_is_compiled_integer_code():
    ran = Counter({"fxquant::packed_linear_int8": 5, "fxquant::quantize": 2})
    assert integer_products(ran) == {"fxquant::packed_linear_int8": 5}
    assert other_kernels(ran) == {"fxquant::quantize": 2}


def test_a_weight_only_linear_multiplies_floats():
    ran = Counter({"fxquant::packed_linear_weight_only": 5, "fxquant::rows_embedding_int8": 3})
    assert not integer_products(ran)
    assert float_products(ran) == {"fxquant::packed_linear_weight_only": 5}
    assert other_kernels(ran) == {"fxquant::rows_embedding_int8": 3}
    assert describe_kernels(ran).startswith("5 × fxquant::packed_linear_weight_only")


@pytest.mark.parametrize("recipe", ["weight-only", "weight-only-int4"])
def test_every_weight_only_linear_leaves_a_trace(recipe):
    if not native.available():
        pytest.skip("without compiled kernels torch multiplies dequantized weights")
    inputs, graph = captured("bert")[1], lowered("bert", recipe)
    ran = kernels_that_ran(lambda: graph(**inputs))
    rows = [row for row in fxq.ledger(graph).rows if row.family == "linear"]
    assert all(row.kernel.endswith("packed_linear_weight_only") for row in rows)
    alone = sum("packed_linear_weight_only" in str(node.target) for node in graph.graph.nodes)
    programs = [node.args[2] for node in graph.graph.nodes if "row_program" in str(node.target)]
    steps = sum(text.count("= weight_only ") for text in programs)
    assert 2 < alone + steps < len(rows), "query, key and value are one"
    assert float_products(ran)["fxquant::packed_linear_weight_only"] == alone
    assert float_products(ran)["fxquant::row_program.linear_weight_only"] == steps > 0
    assert not integer_products(ran)
    assert "aten::linear" not in ran


def test_the_same_op_on_a_machine_without_compiler_is_not():
    ran = Counter({"fxquant::packed_linear_int8": 5, "fxquant::packed_linear_int8 > aten::matmul": 5})
    assert not integer_products(ran)
    assert float_products(ran) == {"fxquant::packed_linear_int8 > aten::matmul": 5}
    assert describe_kernels(ran) == "5 × aten::matmul"


def test_every_linear_of_a_fused_kernel_leaves_a_trace(lowered_bert):
    _, graph, inputs = lowered_bert
    if not native.available():
        pytest.skip("without compiled kernels a fused kernel calls torch's products")
    ran = kernels_that_ran(lambda: graph(**inputs))
    fused = [row for row in fxq.ledger(graph).rows if row.kernel.startswith("fxquant.row_program: ")]
    linears = sum(row.family == "linear" for row in fused)
    assert linears > 2
    assert ran["fxquant::row_program.linear_int8"] == linears
    assert integer_products(ran)["fxquant::row_program.linear_int8"] == linears
    assert ran["fxquant::row_program.embedding_int8"] == sum(row.op == "embedding" for row in fused) == 3


def test_a_fused_kernel_is_described_by_the_kernels_that_it_runs():
    ran = Counter({"fxquant::rows": 2, "fxquant::rows.linear_int8": 5, "fxquant::rows.embedding_int8": 3})
    assert integer_products(ran) == {"fxquant::rows.linear_int8": 5}
    assert other_kernels(ran) == {"fxquant::rows.embedding_int8": 3}
    assert other_kernels(Counter({"fxquant::rows": 2})) == {"fxquant::rows": 2}


def test_a_fused_kernel_without_compiler_shows_the_products_of_torch():
    ran = Counter({"fxquant::rows": 2, "fxquant::rows > aten::matmul": 5})
    assert not integer_products(ran)
    assert float_products(ran) == {"fxquant::rows > aten::matmul": 5}


def test_description_of_nothing():
    assert describe_kernels(kernels_that_ran(lambda: X + 1)) == "no product of matrices ran"
