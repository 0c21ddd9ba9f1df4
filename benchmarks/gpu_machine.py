"""The GPU that gpu.py measures on: its name and versions, its memory's speed, and calls that wait for it."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import common
import torch

PACKAGES = ("triton", "torchao", "transformers", "fxquant")
COPIED = 2**30  # bytes that are copied to measure the memory
REPEATS = 20


@dataclass(frozen=True)
class Machine:
    """Where things run: a GPU, or in a dry run the CPU, of whose figures nothing is kept."""

    device: torch.device
    dry: bool

    def describe(self) -> list[str]:
        """Return date, device and versions, a few lines."""
        date = common.machine().partition(",")[0]
        name = f"{platform.processor() or 'CPU'}: a dry run, whose figures mean nothing"
        if not self.dry:
            facts = torch.cuda.get_device_properties(self.device)
            driver = getattr(torch.cuda, "driver_version", lambda: "unknown")
            name = f"{facts.name}, {facts.multi_processor_count} multiprocessors, {facts.total_memory >> 30} GiB"
            name += f", CUDA {torch.version.cuda}, driver {driver()}"
        versions = ", ".join(map(common.installed, PACKAGES))
        return [date, name, f"torch {torch.__version__}, {versions}, Python {platform.python_version()}"]

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def waiting(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return a call that is over when its kernels are."""

        def run() -> object:
            result = call()
            self.wait()
            return result

        return run

    def seconds_each(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the median seconds of one of several calls that follow each other, launched as one CUDA graph."""
        for call in calls:
            call()
        self.wait()
        if self.dry:
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) / len(calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
        for mark in marks:
            mark.record()
            graph.replay()
        marks[-1].synchronize()
        times = [a.elapsed_time(b) for a, b in pairwise(marks)]
        return statistics.median(times) / 1e3 / len(calls)

    def copy_bandwidth(self) -> float:
        """Return bytes read and written a second by copies that no cache holds."""
        size = COPIED >> (14 if self.dry else 0)
        source, target = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        return 2 * size / self.seconds_each([lambda: target.copy_(source)])

    def cache(self) -> int:
        """Return the bytes of the last cache before memory."""
        return 0 if self.dry else int(torch.cuda.get_device_properties(self.device).L2_cache_size)


def find(dry: bool) -> Machine:
    """Return the machine, or leave with a message where there is no GPU."""
    if dry:
        return Machine(torch.device("cpu"), True)
    if not torch.cuda.is_available():
        sys.exit(
            "this benchmark needs an NVIDIA GPU, and torch finds none here. --dry-run runs all of it on tiny models on "
            "the CPU, to see that it works; its figures mean nothing and are not kept"
        )
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return Machine(torch.device("cuda", 0), False)
