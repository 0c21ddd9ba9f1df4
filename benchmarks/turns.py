"""Time several systems in one process so that neither their threads nor their caches disturb each other.

Thread pools go on spinning after a call and take a core from whoever comes next, OpenMP's for 8 ms, ONNX Runtime's for
40 to 100; a system whose weights were evicted by another's starts cold, as it never does in service. So each turn
begins with a rest until the threads of this process are asleep, and then, where a call is short, with calls that do not
count.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REST, LONGEST_REST = 0.01, 0.3  # seconds
SHORT = 0.1  # a call of so many seconds does not notice what ran before it
TURN = 0.03  # seconds of timed calls that a turn has at least
MOST_CALLS, MOST_ROUNDS = 10, 200


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median, the quartiles, and of how many calls."""

    median: float
    low: float
    high: float
    calls: int


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, Timing]:
    """Return the timing of each call over at least `rounds` rounds, and as many more as fit into `seconds` in all.

    Every call has a turn in every round; the order shifts by one from round to round.
    """
    names, found = list(calls), {name: [] for name in calls}  # type: dict[str, list[float]]
    once = {name: seconds_of(call) for name, call in calls.items()}
    end, number = time.perf_counter() + seconds, 0
    while number < rounds or (time.perf_counter() < end and number < MOST_ROUNDS):
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            found[name] += turn(calls[name], once[name])
        number += 1
    return {name: summary(times) for name, times in found.items()}


def turn(call: Callable[[], object], once: float) -> list[float]:
    """Return the seconds of the calls of one turn; `once` says about how long a call takes."""
    rest()
    if once < SHORT:
        call()
    if once < REST:
        call()
    return [seconds_of(call) for _ in range(max(1, min(MOST_CALLS, round(TURN / once))))]


def rest() -> None:
    """Sleep until this process needs less than a tenth of a core, but not forever."""
    end = time.perf_counter() + LONGEST_REST
    busy = REST
    while busy > REST / 10 and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(REST)
        busy = time.process_time() - before


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(times: list[float]) -> Timing:
    """Return median and quartiles of at least one time."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return Timing(statistics.median(times), low, high, len(times))
