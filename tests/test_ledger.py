"""The ledger is read from a graph at any stage: rows, shares, text and JSON."""

import json

import pytest
import torch
from captured import program
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.ledger import Ledger, Row, read_ledger
from fxquant.passes.claims import Reason


def row(**changes):
    facts = {"op": "linear", "module_path": "up", "node": "linear", "family": "linear", "flops": 200, "dtype": "int8"}
    return Row(**{**facts, "kernel": "fxquant.linear_int8", "code": "", "reason": ""} | changes)


FLOAT = row(op="aten.linear", kernel="", code="no-match", reason="too odd", flops=100)
ATTENTION = row(op="attention", family="attention", kernel="", code="float-by-rule", reason="on purpose", flops=100)
VIEW = row(op="aten.view", family=None, kernel="", code="moves-data", reason="moves values", flops=0)
SOME = Ledger((row(), FLOAT, ATTENTION, VIEW, row(op="embedding", family=None, flops=0)), "lowered")


def test_shares_are_of_multiply_accumulates():
    assert SOME.coverage == 200 / 400
    assert SOME.share("linear") == 200 / 300
    assert SOME.share("attention") == 0.0
    assert SOME.share("convolution") == 1.0, "there is none to miss"
    assert SOME.share("linear", "attention") == SOME.coverage


@pytest.mark.parametrize("code", ["kernel-limit", "no-match", "no-rule", "fallback"])
def test_unintended_ops_are_those_that_nobody_left_in_float(code):
    missed = row(code=code)
    assert Ledger((missed, ATTENTION, VIEW, row()), "lowered").unintended == (missed,)


def test_the_table_shows_matrix_arithmetic_and_counts_the_rest():
    lines = SOME.to_table().splitlines()
    assert lines[0].split() == ["op", "module", "flops", "share", "dtype", "kernel", "reason"]
    assert not [line for line in lines if line.startswith("aten.view")]
    assert any(line.startswith("embedding") for line in lines), "claimed without arithmetic"
    assert "no-match: too odd" in SOME.to_table()
    assert lines[-1] == "other ops: 1 moves-data"
    assert "low-precision share of multiply-accumulates: 50.0%" in lines
    assert "  linear: 66.7% (1 of 2 ops)" in lines
    assert "  attention: 0.0% (0 of 1 ops)" in lines


def test_every_op_is_in_the_whole_table():
    table = SOME.to_table(every=True)
    assert "aten.view" in table
    assert "other ops" not in table


def test_before_lowering_shares_are_planned():
    for stage in ("captured", "prepared", "converted"):
        assert "multiply-accumulates (planned): 50.0%" in Ledger(SOME.rows, stage).summary()


def test_json_holds_every_field():
    data = json.loads(SOME.to_json())
    assert (data["stage"], data["coverage"]) == ("lowered", 0.5)
    assert [Row(**each) for each in data["rows"]] == list(SOME.rows)


def test_an_empty_graph_has_a_ledger():
    empty = Ledger((), "lowered")
    assert empty.coverage == 1.0
    assert "low-precision share of multiply-accumulates: there are none" in empty.to_table()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.table = nn.Linear(8, 16), nn.Linear(16, 8), nn.Embedding(10, 8)

    def forward(self, ids):
        x = self.table(ids)
        return self.down(functional.gelu(self.up(x))) + x


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def stages(recipe="static", backend="reference"):
    captured = fxq.capture(Block().eval(), (IDS,))
    prepared = fxq.prepare(captured, backend, recipe)
    if recipe == "static":
        fxq.calibrate(prepared, [(IDS,)], progress=False)
    converted = fxq.convert(prepared)
    return {"captured": captured, "prepared": prepared, "converted": converted, "lowered": fxq.lower(converted)}


def test_every_stage_tells_the_same_ops_and_costs():
    ledgers = {stage: read_ledger(gm) for stage, gm in stages().items()}
    assert {stage: each.stage for stage, each in ledgers.items()} == {stage: stage for stage in ledgers}
    assert {each.coverage for stage, each in ledgers.items() if stage != "captured"} == {1.0}
    assert ledgers["captured"].coverage == 0.0
    claimed = [[(r.op, r.module_path, r.flops) for r in each.rows if r.quantized] for each in ledgers.values()]
    assert claimed[1] == claimed[2] == claimed[3]
    assert claimed[3] == [
        ("embedding", "table", 0),
        ("linear_gelu", "up", 2 * 6 * 8 * 16),
        ("linear_add", "down", 2 * 6 * 8 * 16),
    ]
    for each in ledgers.values():
        assert sum(r.flops for r in each.rows) == 4 * 6 * 8 * 16
        assert json.loads(each.to_json())["stage"] == each.stage
        assert each.to_table()


def test_a_row_says_the_kernel_and_the_types():
    graphs = stages()
    planned = {r.op: r for r in read_ledger(graphs["prepared"]).rows}
    ran = {r.op: r for r in read_ledger(graphs["lowered"]).rows}
    assert planned["linear_gelu"].kernel == "linear_int8 (planned)"
    assert ran["linear_gelu"].kernel == "fxquant.linear_int8"
    assert ran["linear_gelu"].dtype == "int8 per-tensor × int8 per-channel → int8"
    assert ran["linear_add"].dtype == "int8 per-tensor × int8 per-channel → float32"
    dynamic = {r.op: r for r in read_ledger(stages("dynamic")["lowered"]).rows}
    assert dynamic["linear_add"].dtype == "int8 per-token dynamic × int8 per-channel → float32"


def test_each_op_is_in_a_kernel_or_has_an_enumerated_reason():
    for row in fxq.ledger(fxq.quantize(program("t5"), None)).rows:
        assert row.quantized == (not row.reason)
        attentions = ("fxquant.attention", "fxquant.cached_attention", "fxquant.cross_attention")
        float_kernels = ("fxquant.row_program", *attentions)
        assert bool(row.kernel) == row.quantized or row.kernel in float_kernels, "a float step of a kernel"
        assert row.quantized or row.code in set(Reason)
        assert row.code != "no-rule" or row.family is None


def test_a_copy_has_the_same_ledger():
    lowered = stages()["lowered"]
    assert read_ledger(edit.clone(lowered)) == read_ledger(lowered)


def test_long_tables_take_time_in_proportion():
    """Counting what the table leaves out compares no row with every other."""
    compared = 0

    class Counted(Row):
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return super().__eq__(other)

        __hash__ = None

    facts = {name: getattr(VIEW, name) for name in Row.__dataclass_fields__}
    Ledger(tuple(Counted(**facts) for _ in range(300)), "lowered").to_table()
    assert compared == 0
