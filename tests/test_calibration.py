import copy
import io
import re
from collections import UserDict
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from torch import fx, nn

from fxquant import calibration, observers
from fxquant.calibration import calibrate, merge_distributed, merge_observers, observers_of
from fxquant.errors import CalibrationError, ConfigError, FxQuantWarning, InputError
from fxquant.graph import edit
from fxquant.spec import QuantSpec

aten = torch.ops.aten


def prepared(observer="histogram", **fields):
    """Return the graph of relu(x @ w + mask) with an observer before and one after, as `prepare` would build it."""
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    seen = graph.call_module("observers.0", (x,))
    edit.mark(seen, path="encoder.dense")
    weight = graph.get_attr("weight")
    product = graph.call_function(aten.matmul.default, (seen, weight))
    total = graph.call_function(aten.add.Tensor, (product, mask))
    result = graph.call_module("observers.1", (graph.call_function(aten.log.default, (total,)),))
    graph.output((result,))
    root = nn.Module()
    root.weight = nn.Parameter(torch.eye(4))
    root.observers = nn.Module()
    spec = QuantSpec(observer=observer, **fields)
    root.observers.add_module("0", observers.create(spec))
    root.observers.add_module("1", observers.create(spec))
    return fx.GraphModule(root, graph)


def batch(seed, scale=1.0):
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) * scale + 0.1
    return {"x": x, "mask": torch.ones(3, 4)}


def state(gm):
    return {name: value.clone() for name, value in gm.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_observers_see_every_batch_and_the_graph_comes_back():
    gm = prepared("minmax")
    batches = [batch(0), batch(1, 5.0), batch(2)]
    assert calibrate(gm, batches) is gm
    first, second = observers_of(gm).values()
    everything = torch.cat([each["x"] for each in batches])
    assert (first.low, first.high) == (everything.min(), everything.max())
    assert second.high == (everything + 1).log().max()
    assert int(second.batches) == 3


@pytest.mark.parametrize(
    "given",
    [dict, lambda each: (each["x"], each["mask"]), lambda each: [each["x"], each["mask"]], UserDict],
    ids=["dict", "tuple", "list", "mapping"],
)
def test_kinds_of_batches(given):
    gm, reference = prepared(), prepared()
    calibrate(gm, (given(batch(seed)) for seed in range(3)), progress=False)
    calibrate(reference, [batch(seed) for seed in range(3)])
    assert same(state(gm), state(reference))


def test_a_tensor_is_the_one_argument():
    graph = fx.Graph()
    graph.output((graph.call_module("watch", (graph.placeholder("x"),)),))
    gm = fx.GraphModule({"watch": observers.create(QuantSpec())}, graph)
    calibrate(gm, [torch.tensor([1.0, 2.0]), torch.tensor([-3.0])])
    assert (float(gm.watch.low), float(gm.watch.high)) == (-3.0, 2.0)


def test_calling_again_continues():
    gm, reference = prepared(), prepared()
    calibrate(calibrate(gm, [batch(0)]), [batch(1, 9.0)])
    calibrate(reference, [batch(0), batch(1, 9.0)])
    assert same(state(gm), state(reference))


def test_no_gradients_are_recorded():
    gm = prepared()
    seen = []
    gm.get_submodule("observers.1").register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    calibrate(gm, [batch(0)])
    assert seen == [False]


def test_graph_without_observers_is_a_warning_and_runs_nothing():
    graph = fx.Graph()
    graph.output((graph.placeholder("x"),))
    gm = fx.GraphModule({}, graph)
    with pytest.warns(FxQuantWarning, match=r"no observers, so there is nothing to calibrate.*recipe=\"static\""):
        assert calibrate(gm, iter(lambda: pytest.fail("a batch was taken"), None)) is gm


def test_program_of_several_graphs_is_run_by_its_own_forward():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.step = prepared(), prepared()

        def forward(self, x, mask):
            return self.encoder(x=x, mask=mask)

    program = Pair()
    assert list(observers_of(program)) == [
        "encoder.observers.0",
        "encoder.observers.1",
        "step.observers.0",
        "step.observers.1",
    ]
    calibrate(program, [batch(0)])
    assert [each.observed for each in observers_of(program).values()] == [True, True, False, False]


NAN = {"x": torch.tensor([[1.0, float("nan"), float("inf"), 2.0]]), "mask": torch.ones(1, 4)}
NESTED = ([torch.ones(3, 4), (torch.tensor([float("-inf")]),)], torch.ones(3, 4))
NEGATIVE = {"x": torch.full((3, 4), -9.0), "mask": torch.ones(3, 4)}
ZERO = {"x": torch.zeros(3, 4), "mask": torch.ones(3, 4)}
WIDE = {"x": torch.ones(3, 5), "mask": torch.ones(3, 4)}
LONE = {"x": torch.ones(3, 4)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("text", r"batch 2 is str: expected a dict of keyword arguments, a tuple or list of positional ones, or a"),
        ({1: torch.ones(2)}, r"batch 2 is dict: expected a dict of keyword arguments"),
        (NAN, r"batch 2: x holds 1 NaN and 1 Inf among 4 values"),
        (NESTED, r"batch 2: argument 0 holds 0 NaN and 1 Inf among 1 values"),
        (
            NEGATIVE,
            r"batch 2: observer 'observers.1' of %log\S* in the model itself: 12 NaN and 0 Inf among",
        ),
        (WIDE, r"batch 2: the graph failed with RuntimeError: .*3x5"),
        (LONE, r"batch 2: the graph failed with TypeError: .*mask"),
        ({**LONE, "mask": 1, "labels": 2}, r"batch 2: the graph failed with TypeError: .*labels"),
    ],
    ids=["text", "int-keys", "nan-input", "nested-inf", "nan-inside", "shape", "missing-key", "extra-key"],
)
def test_bad_batch_is_named_and_loses_nothing(bad, message):
    gm = calibrate(prepared(), [batch(5)])
    before = state(gm)
    with pytest.raises(CalibrationError, match=message):
        calibrate(gm, [batch(0), batch(1, 100.0), bad])
    assert same(before, state(gm))
    calibrate(gm, [batch(1, 100.0)])
    assert not same(before, state(gm))


def test_range_of_zero_names_the_observer_and_loses_nothing():
    gm = prepared()
    before = state(gm)
    with pytest.raises(
        CalibrationError, match=r"observer 'observers.0' of %x in encoder.dense: the range is zero: the 1 "
    ):
        calibrate(gm, [ZERO])
    assert same(before, state(gm))


def test_input_error_of_a_graph_gets_the_batch_index(monkeypatch):
    gm = prepared()

    def refuse(self, **_arguments):
        raise InputError("input_ids is missing")

    monkeypatch.setattr(type(gm), "forward", refuse)
    with pytest.raises(CalibrationError, match=r"^batch 0: input_ids is missing$") as caught:
        calibrate(gm, [batch(0)])
    assert isinstance(caught.value.__cause__, InputError)


@pytest.mark.parametrize("empty", [[], iter(()), {}.items()], ids=["list", "iterator", "view"])
def test_no_batches(empty):
    with pytest.raises(CalibrationError, match="batches is empty: calibration needs at least one batch"):
        calibrate(prepared(), empty)


@pytest.mark.parametrize(
    ("given", "kind"),
    [(batch(0), "dict"), (torch.ones(2, 4), "Tensor"), ("text", "str"), (None, "NoneType"), (4, "int")],
    ids=["one-dict", "one-tensor", "text", "none", "int"],
)
def test_batches_must_be_an_iterable_of_batches(given, kind):
    with pytest.raises(CalibrationError, match=rf"batches is one {kind}: .*put a single batch into a list"):
        calibrate(prepared(), given)


def test_an_interrupt_or_a_failing_iterator_restores_too():
    def batches(error):
        yield batch(0)
        raise error

    gm = prepared()
    before = state(gm)
    for error in (KeyboardInterrupt(), OSError("disk")):
        with pytest.raises(type(error)):
            calibrate(gm, batches(error))
        assert same(before, state(gm))


class Elapsed:
    """A timer whose time is up when it starts."""

    def __init__(self, _seconds, function):
        self.start = function

    def cancel(self): ...

    def join(self): ...


@pytest.mark.parametrize(("count", "text"), [(3, r"3/3"), (None, r"3/\?")], ids=["sized", "stream"])
def test_progress_appears_once_it_takes_long(monkeypatch, count, text):
    shown = io.StringIO()
    monkeypatch.setattr(calibration, "Console", lambda **_: Console(file=shown, width=100))
    monkeypatch.setattr(calibration.threading, "Timer", Elapsed)
    batches = [batch(seed) for seed in range(3)]
    calibrate(prepared(), batches if count else iter(batches))
    assert re.search(rf"calibrating .*{text}", shown.getvalue())


def test_progress_is_silent_when_quick_or_not_wanted(capsys, monkeypatch):
    calibrate(prepared(), [batch(0)])
    monkeypatch.setattr(calibration.threading, "Timer", Elapsed)
    calibrate(prepared(), [batch(0)], progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_length_that_raises_is_a_stream():
    class Stream(list):
        def __len__(self):
            raise TypeError("no length")

    calibrate(prepared(), Stream([batch(0)]))


def test_merging_copies_equals_one_calibration():
    parts = [[batch(0), batch(1, 40.0)], [batch(2, 0.01)], [batch(3)]]
    whole = calibrate(prepared(), [each for part in parts for each in part])
    first, *others = (calibrate(prepared(), part) for part in parts)
    merge_observers(first, others)
    assert same(state(first), state(whole))


def test_merging_refuses_other_graphs_and_loses_nothing():
    gm = calibrate(prepared(), [batch(0)])
    before = state(gm)
    lesser = fx.GraphModule({}, fx.Graph())
    with pytest.raises(CalibrationError, match=r"observer 'observers\.0' is in one graph only: merge copies of one"):
        merge_observers(gm, [lesser])
    other = calibrate(prepared(), [batch(1)])
    other.observers.add_module("1", observers.create(QuantSpec()))
    with pytest.raises(ConfigError, match="observers of one spec can be merged"):
        merge_observers(gm, [other])
    assert same(before, state(gm))


def test_merge_distributed_needs_a_running_group():
    with pytest.raises(CalibrationError, match=r"not running: call torch\.distributed\.init_process_group first"):
        merge_distributed(prepared())


def _other(index, address, folder):
    torch.set_num_threads(1)
    _work(1 + index, address, folder)


def _work(rank, address, folder):
    group = {"init_method": f"file://{address}", "rank": rank, "world_size": 2, "timeout": timedelta(seconds=100)}
    dist.init_process_group("gloo", **group)
    for granularity in ("per-tensor", "per-channel"):
        gm = prepared(granularity=granularity)
        # One process sees nothing in the first round: its buffers are smaller.
        for share in ([[], [batch(0)]], [[batch(1, 7.0), batch(2)], [batch(3, 0.1)]]):
            each = copy.deepcopy(gm)
            if share[rank]:
                calibrate(each, share[rank])
            merge_distributed(each)
            torch.save(each.state_dict(), f"{folder}/{granularity}-{len(share[0])}-{rank}.pt")
    dist.destroy_process_group()


def test_merge_distributed_over_two_processes(tmp_path):
    other = mp.spawn(_other, args=(tmp_path / "rendezvous", tmp_path), nprocs=1, join=False)
    _work(0, tmp_path / "rendezvous", tmp_path)
    while not other.join():
        pass
    for granularity in ("per-tensor", "per-channel"):
        for count, batches in ((0, [batch(0)]), (2, [batch(1, 7.0), batch(2), batch(3, 0.1)])):
            wanted = calibrate(prepared(granularity=granularity), batches).state_dict()
            for rank in range(2):
                assert same(torch.load(tmp_path / f"{granularity}-{count}-{rank}.pt"), wanted)
