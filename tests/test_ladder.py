import pytest
import torch
from models import bert, ids
from torch import nn

import fxquant as fxq
from fxquant.errors import CaptureError, ConfigError, FxQuantWarning
from fxquant.graph import edit
from fxquant.ladder import RUNGS, capture, record


class Routed(nn.Module):
    """Two linears of which the data chooses one, between layers that can be captured."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.GELU())
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        hidden = self.first(x)
        hidden = self.left(hidden) if hidden.sum() > 0 else self.right(hidden)
        return {"y": self.last(hidden) @ self.scale}


@pytest.fixture
def routed():
    torch.manual_seed(0)
    return Routed().eval()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(64, 16)
        self.recurrent = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids):
        hidden, (last, _) = self.recurrent(self.words(input_ids))
        return self.head(hidden.mean(1)), last


@pytest.fixture(scope="module")
def recurrent():
    torch.manual_seed(0)
    model = Recurrent().eval()
    return model, capture(model, ids())


def test_whole_model_is_one_graph():
    model, inputs = bert()
    gm = capture(model, inputs)
    assert isinstance(gm, torch.fx.GraphModule)
    assert record(gm) == {"rung": "own attention", "failed": []}
    assert fxq.ledger(gm).summary().startswith("captured as: own attention\n")
    assert [rung.name for rung in RUNGS] == ["whole", "modules"]


def test_control_flow_on_data_leaves_the_modules(routed):
    x = torch.randn(3, 8)
    program = capture(routed, x)
    assert isinstance(program, fxq.Program)
    with torch.no_grad():
        for given in (x, torch.randn(1, 8), -torch.randn(5, 2, 8)[:, 0]):
            assert torch.equal(program(given)["y"], routed(given)["y"])
    taken = {edit.marks(gm)["capture"]["module"] for gm in program.graphs.values()}
    assert taken in ({"first", "left", "last"}, {"first", "right", "last"})  # what was not called was not seen
    found = record(program)
    assert found["rung"] == "modules"
    assert "Routed) at test_ladder.py:" in found["failed"][0]["reason"]


def test_every_verb_works_on_modules(recurrent, tmp_path):
    model, program = recurrent
    prepared = fxq.prepare(program, "x86", "dynamic")
    lowered = fxq.lower(fxq.convert(prepared))
    given = ids(3, 17)
    expected, found = model(given)[0], lowered(given)[0]
    assert 10 * torch.log10(expected.square().sum() / (expected - found).square().sum()) > 30
    ledger = fxq.ledger(lowered)
    assert ledger.stage == "lowered" and ledger.coverage == 1.0 and not ledger.unintended
    assert {row.module_path for row in ledger.rows if row.family} == {
        "head",
        *(f"recurrent.layers.{i}.{part}" for i in (0, 1) for part in ("input", "step.recurrent")),
    }
    again = fxq.load(fxq.save(lowered, tmp_path / "artifact"))
    with pytest.raises(ConfigError, match=r"holds 6 modules of a model .* program.attach\(model\)"):
        again(given)
    assert torch.equal(again.attach(model)(given)[0], found)
    with pytest.raises(ConfigError, match="the model is not the one that was captured"):
        again.attach(nn.Linear(2, 2))


def test_recurrent_model_takes_every_length(recurrent):
    model, program = recurrent
    for size in ((2, 12), (1, 1), (3, 17), (4, 30)):
        with torch.no_grad():
            for a, b in zip(program(ids(*size)), model(ids(*size)), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert "fixed size 12" in record(program)["failed"][0]["reason"]


def test_overrides_name_modules_by_their_place_in_the_model(recurrent):
    recipe = fxq.Recipe.from_dict({"override": [{"path": "recurrent.*", "quantize": False}]}, "own")
    rows = fxq.ledger(fxq.prepare(recurrent[1], "x86", recipe)).rows
    assert {row.code for row in rows if row.family and row.module_path.startswith("recurrent")} == {"float-by-recipe"}
    assert [row.code for row in rows if row.module_path == "head"] == [""]


def test_what_stays_the_models_own_is_in_the_ledger(routed):
    found = fxq.ledger(capture(routed, torch.randn(3, 8)))
    (row,) = [row for row in found.rows if row.code == "not-captured"]
    assert (row.op, row.module_path, row.family, row.flops) == ("Routed", "", "linear", 2 * 3 * 4 * 4)
    assert "GuardOnDataDependentSymNode" in row.reason and row in found.unintended


def test_fixed_sizes_are_one_graph_even_of_an_lstm():
    gm = capture(Recurrent(), ids(), dynamic=False)
    assert isinstance(gm, torch.fx.GraphModule)


def test_narrow_graph_where_no_module_helps():
    with pytest.warns(FxQuantWarning, match=r"dimension 0 \(batch\) of 'x' became fixed at 4"):

        class Rows(nn.Module):
            def forward(self, x):
                return x + torch.ones(4, 3) if x.shape[0] == 4 else x

        gm = capture(Rows(), torch.zeros(4, 3))
    assert torch.equal(gm(torch.zeros(4, 3)), torch.ones(4, 3))


def test_nothing_to_capture_is_an_error_of_the_first_rung():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"capture failed in the model's own forward \(Branch\) at test_ladder.py"):
        capture(Branch(), torch.ones(2, 3))


def test_forward_that_rearranges_its_modules_does_so_to_a_copy():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = None

        def forward(self, x):
            if self.inner is None:
                self.inner = nn.Identity()
            return self.inner(x) * 2

    model = Lazy()
    capture(model, torch.ones(2, 3))
    assert model.inner is None
