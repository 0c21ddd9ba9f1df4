"""Latencies that can be compared: every candidate is run in every round, so that all see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping

from fxquant.errors import DataError


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 3) -> dict[str, float]:
    """Return the median seconds of each call, measured in `rounds` rounds of one run each after `warmup` such rounds.

    The order turns by one in each round, so that no call always follows the same one.

    Raises:
        DataError: `rounds` is less than one, or `warmup` less than zero.
    """
    if rounds < 1 or warmup < 0:
        raise DataError(f"rounds = {rounds}, warmup = {warmup}: expected at least one round, and no negative warm-up")
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - start
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(each) for name, each in seconds.items()}
