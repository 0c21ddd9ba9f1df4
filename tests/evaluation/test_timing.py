import pytest

from fxquant.errors import DataError
from fxquant.evaluation import timing
from fxquant.evaluation.timing import interleave


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a call takes."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(*seconds):
        turns = iter(seconds)

        def call():
            now[0] += next(turns)

        return call

    return takes


def test_median_is_of_the_rounds_after_warm_up(clock):
    found = interleave({"a": clock(100, 1, 5, 2), "b": clock(100, 7, 7, 7)}, rounds=3, warmup=1)
    assert found == {"a": 2, "b": 7}


def test_every_round_runs_all_and_the_order_turns():
    order = []
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, warmup=0)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_nothing_to_measure_gives_nothing():
    assert interleave({}, rounds=2) == {}


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_numbers_of_rounds_are_checked(rounds, warmup):
    with pytest.raises(DataError, match=f"rounds = {rounds}, warmup = {warmup}: expected at least one round"):
        interleave({"a": lambda: None}, rounds=rounds, warmup=warmup)
