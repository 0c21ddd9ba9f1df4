"""Every architecture of the zoo through capture and quantization: what is captured, equal, covered and accurate.

python benchmarks/zoo.py [--only NAME …] [--attention] [--json FILE] [--output docs/zoo.md]
"""

import argparse
import fnmatch
import json
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common
import torch
import transformers
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from zoo_choices import as_float
from zoo_other import other_specimens
from zoo_page import LEAST, page
from zoo_specimen import Specimen
from zoo_text import text_specimens

import fxquant as fxq
from fxquant import ladder
from fxquant.graph.modes import configs

# Float results that differ by rounding: of the largest magnitude in the output.
ROUNDING = 1e-5


@dataclass
class Result:
    """What was found of one specimen; `error` is the largest difference from eager, over the largest magnitude.

    Of one whose first output has an SQNR that is to be explained: that of every output in `outputs`, and in `choices`
    how many choices of experts quantization turns, of how many, and the `sqnr` with the choices of the float model.
    """

    name: str
    group: str
    rung: str = ""
    note: str = ""
    seconds: float = 0.0
    equal: dict[str, str] = field(default_factory=dict)
    error: float = math.nan
    coverage: float = math.nan
    linear_coverage: float = math.nan
    gemms: int = 0
    quantized: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    sqnr: float = math.nan
    outputs: list[float] = field(default_factory=list)
    choices: dict[str, float] = field(default_factory=dict)
    eager_coverage: float | None = None
    failure: str = ""


def specimens(patterns: Sequence[str] = ("*",)) -> list[Specimen]:
    """Return the zoo, or those whose name matches one of the patterns."""
    every = [*text_specimens(), *other_specimens()]
    return [each for each in every if any(fnmatch.fnmatch(each.name, pattern) for pattern in patterns)]


def measure(specimen: Specimen, attention: bool) -> Result:
    """Return the result of one specimen; a failure is part of it."""
    result = Result(specimen.name, specimen.group)
    try:
        _measure(specimen, attention, result)
    except Exception as error:
        result.failure = f"{type(error).__name__}: {str(error).strip()[:400]}"
    return result


def _measure(specimen: Specimen, attention: bool, result: Result) -> None:
    model = specimen.model()
    start = time.perf_counter()
    graph = fxq.capture(model, specimen.inputs(*specimen.sizes[0]))
    result.seconds = time.perf_counter() - start
    record = ladder.record(graph)
    result.rung, result.note = record["rung"], "; ".join(f"{f['rung']}: {f['reason']}" for f in record["failed"])
    result.error = 0.0
    for size in specimen.sizes:
        try:
            difference = _difference(_outputs(model, specimen.inputs(*size)), _outputs(graph, specimen.inputs(*size)))
        except fxq.FxQuantError as error:
            result.equal["x".join(map(str, size))] = str(error)
            continue
        result.error = max(result.error, difference)
        result.equal["x".join(map(str, size))] = "=" if difference <= ROUNDING else f"{difference:.1e}"
    lowered = fxq.lower(fxq.convert(fxq.prepare(graph, "x86", "dynamic")))
    _count(fxq.ledger(lowered), result)
    inputs = specimen.inputs(*specimen.sizes[0])
    wanted = _outputs(graph, inputs)
    result.outputs = [sqnr(a, b) for a, b in zip(wanted, _outputs(lowered, inputs), strict=True)]
    result.sqnr = result.outputs[0]
    if result.sqnr < LEAST and isinstance(graph, fx.GraphModule) and isinstance(lowered, fx.GraphModule):
        chosen, turned, count = as_float(graph, lowered, inputs)
        result.choices = {"turned": turned, "of": count, "sqnr": sqnr(wanted[0], leaves(chosen)[0])}
    if attention and any(c._attn_implementation == "sdpa" for c in configs(model, "_attn_implementation")):
        for config in configs(model, "_attn_implementation"):
            config._attn_implementation = "eager"
        graph = fxq.capture(model, inputs)
        result.eager_coverage = fxq.ledger(fxq.prepare(graph, "x86", "dynamic")).share("linear")


def _count(ledger: fxq.Ledger, result: Result) -> None:
    rows = [row for row in ledger.rows if row.family]
    result.gemms, result.quantized = len(rows), sum(row.quantized for row in rows)
    result.coverage, result.linear_coverage = ledger.coverage, ledger.share("linear")
    result.reasons = dict(Counter(f"{row.code}: {row.op}" for row in rows if not row.quantized))


def leaves(value: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return what eager computes without a cache."""
    for config in configs(model, "use_cache"):
        config.use_cache = False
    torch.manual_seed(0)  # ViLT draws the patches that it keeps
    with torch.no_grad():
        return leaves(model(**inputs))


def _difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference, over the largest magnitude of each output; infinite where shapes differ."""
    if [each.shape for each in wanted] != [each.shape for each in found]:
        return math.inf
    return max(_relative(a, b) for a, b in zip(wanted, found, strict=True))


def _relative(wanted: Tensor, found: Tensor) -> float:
    same = (wanted == found) | (wanted.isnan() & found.isnan())
    difference = (wanted - found).abs().masked_fill(same, 0).max()
    finite = wanted.masked_fill(~wanted.isfinite(), 0)
    return float(difference / finite.abs().max().clamp_min(1e-30))


def sqnr(wanted: Tensor, found: Tensor) -> float:
    """Return the signal to quantization noise ratio in dB."""
    finite = wanted.isfinite() & (wanted.abs() < 1e30)
    wanted, found = wanted[finite].double(), found[finite].double()
    noise = (wanted - found).square().sum()
    return float(10 * torch.log10(wanted.square().sum() / noise)) if noise > 0 else math.inf


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line a specimen, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["*"], help="names or patterns of architectures")
    parser.add_argument("--attention", action="store_true", help="compare with eager attention too")
    parser.add_argument("--json", type=Path, help="write the results as JSON lines to this file")
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--read", type=Path, help="write the page from the JSON lines of a former run")
    given = parser.parse_args(arguments)
    common.quieten()
    transformers.logging.set_verbosity_error()
    results = [json.loads(text) for text in given.read.read_text().splitlines()] if given.read else []
    if not results:
        results = _run(given)
    if given.output:
        given.output.write_text(page(results, common.machine()))


def _run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, and print a line a specimen."""
    results = []
    with (given.json or Path(os.devnull)).open("w") as file:
        for specimen in specimens(given.only):
            result = measure(specimen, given.attention)
            results.append(asdict(result))
            file.write(json.dumps(results[-1]) + "\n")
            file.flush()
            print(line(result), flush=True)
    return results


def line(result: Result) -> str:
    """Return one line of text about a result."""
    equal = " ".join("=" if v == "=" else f"{k}:{v}" for k, v in result.equal.items())
    return (
        f"{result.name:24} {result.rung:16} {result.seconds:5.1f}s [{equal}] {result.error:.0e} "
        f"cov {result.coverage:.0%} lin {result.linear_coverage:.0%} eager {result.eager_coverage} "
        f"{result.quantized}/{result.gemms} sqnr {result.sqnr:.1f} {result.reasons} "
        f"{result.note[:150]} {result.failure}"
    )


if __name__ == "__main__":
    main()
