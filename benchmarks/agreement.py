"""How near lowered graphs come to the Q/DQ graph: op by op on the same inputs, and end to end.

    python benchmarks/agreement.py [--quick] [--recipes dynamic static] [--sentences 64] [--worst 6]

Per op, each kernel gets the very inputs that the Q/DQ graph computed; deviations are in output steps: of the integers
themselves where the kernel requantizes, else of an 8-bit per-token scale over the op's float result. "Free" columns are
those of a run in which every kernel gets what the kernels before it gave.

The kernels are those of the lowered graph one by one; "x86, fused" is the graph as it runs, in which one kernel call
computes many of them and normalizes in another order of summation.

End to end, rounding decisions are chaotic: a difference of δ steps in front of a quantizer, however small, turns a
share δ of the integers by a whole step, so that its root mean square grows to √δ at every quantized op. After five
or six of them two runs that began one unit in the last place apart differ about as much as quantization noise does.
So two graphs agree either to the bit, or no better than the Q/DQ graph agrees with itself when its float32 GEMMs sum
in another order. What was measured on MiniLM: the reference and x86 kernels are equal to the bit, embedding for
embedding; with each linear rounded once and the kernels' GELU (arithmetic.py) the Q/DQ graph equals them: the linears
and that GELU are all there is between the graphs.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from arithmetic import (
    Run,
    counterparts,
    embeddings,
    kernel_once,
    linear_in_double,
    linear_once,
    nudge,
    with_gelu,
    x86_gelu,
)
from common import Batch
from torch import Tensor, fx

import fxquant as fxq
from fxquant.evaluation.embedding import embed
from fxquant.graph import edit
from fxquant.numerics import choose_qparams
from fxquant.spec import QuantSpec
from fxquant.stages import unfused

STEP = QuantSpec(dtype="uint8", granularity="per-token", dynamic=True)


@dataclass
class Deviation:
    """How far an op's result is off over all batches, in steps; `changed` counts values that are not bit-equal."""

    largest: float = 0.0
    squares: float = 0.0
    changed: int = 0
    values: int = 0

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Take in one batch."""
        difference = (found.double() - expected.double()).abs()
        if expected.is_floating_point():
            difference /= choose_qparams(expected, STEP).scale
        self.largest = max(self.largest, float(difference.max()))
        self.squares += float(difference.square().sum())
        self.changed += int((difference > 0).sum())
        self.values += difference.numel()

    @property
    def rms(self) -> float:
        return (self.squares / self.values) ** 0.5

    @property
    def share(self) -> str:
        return f"{self.changed / self.values:.2%}"


class Follow(Run):
    """Runs a lowered graph, compares each kernel's result, and hands on what `choose(found, expected)` returns."""

    def __init__(
        self, gm: fx.GraphModule, expected: Mapping[str, Tensor], choose: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(gm)
        self.expected, self.choose = expected, choose
        self.deviations: dict[str, Deviation] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return the value that later nodes read."""
        value = super().run_node(n)
        if n.name not in self.expected:
            return value
        self.deviations.setdefault(n.name, Deviation()).add(value, self.expected[n.name])
        return self.choose(value, self.expected[n.name])


CHOICES = {"same inputs": lambda found, expected: expected, "free": lambda found, expected: found}


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and, for each recipe, the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    print(common.machine())
    pretrained = common.load_model(args.model)
    calibration, held_out = common.texts(args.sentences, 8 * args.batches)
    captured = fxq.capture(pretrained.model, pretrained.example_inputs())
    for recipe in args.recipes:
        qdq = common.convert(captured, recipe, pretrained.batches(calibration))
        fused = fxq.lower(qdq, "x86")
        lowered = {"reference": fxq.lower(qdq, "reference"), "x86": unfused(fused)}
        batches = pretrained.batches(held_out, 16)
        show_ops(recipe, lowered, {name: deviations(qdq, gm, batches[:2]) for name, gm in lowered.items()}, args.worst)
        single = pretrained.batches(held_out, 1)
        runs = end_to_end(qdq, lowered, batches, single)
        runs |= {FLOAT: embed(pretrained.model, batches), FUSED: embeddings(fused, batches)}
        show_end_to_end(recipe, runs)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of another BERT-like encoder")
    parser.add_argument("--recipes", nargs="+", default=["dynamic", "static"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=64, help="to evaluate with")
    parser.add_argument("--batches", type=int, default=64, help="of calibration, 8 sentences each")
    parser.add_argument("--worst", type=int, default=6, help="ops to show in the table of the worst")
    parser.add_argument("--quick", action="store_true", help="few sentences and batches")
    args = parser.parse_args(arguments)
    if args.quick:
        args.sentences, args.batches = 8, 4
    return args


def deviations(
    qdq: fx.GraphModule, lowered: fx.GraphModule, batches: Sequence[Batch]
) -> dict[str, dict[str, Deviation]]:
    """Return, by what kernels are fed, the deviation of each kernel's result from the Q/DQ graph's, in graph order."""
    pairs = counterparts(qdq, lowered)
    total: dict[str, dict[str, Deviation]] = {fed: {} for fed in CHOICES}
    for batch in batches:
        reference = Run(qdq)
        reference.on(batch)
        expected = {name: reference.env[node] for name, node in pairs.items()}
        for fed, choose in CHOICES.items():
            follow = Follow(lowered, expected, choose)
            follow.deviations = total[fed]
            follow.on(batch)
    return total


def show_ops(
    recipe: str,
    lowered: Mapping[str, fx.GraphModule],
    found: Mapping[str, Mapping[str, Mapping[str, Deviation]]],
    worst: int,
) -> None:
    """Print, for each backend, the worst ops on the same inputs; then how differences grow, op after op."""
    for backend, by_feed in found.items():
        ranked = sorted(by_feed["same inputs"].items(), key=lambda item: -item[1].largest)
        rows = [(*label(lowered[backend], n), f"{d.largest:.2g}", f"{d.rms:.1e}", d.share) for n, d in ranked[:worst]]
        title = f"{recipe}, {backend}: {len(ranked)} kernels on the Q/DQ graph's inputs, worst first (steps)"
        common.show(title, ("op", "module", "output", "largest", "rms", "not bit-equal"), rows)
    columns = [d for by_feed in found.values() for d in by_feed.values()]
    first = next(iter(lowered.values()))
    names = zip(*columns, strict=True)
    rows = [
        (*label(first, row[0]), *(f"{d[n].rms:.1e} {d[n].share:>7}" for d, n in zip(columns, row, strict=True)))
        for row in names
    ]
    head = ("op", "module", "output", *(f"{backend}, {fed}" for backend in found for fed in CHOICES))
    common.show(f"{recipe}: root mean square in steps and share not bit-equal, in the order of the graph", head, rows)


def label(gm: fx.GraphModule, name: str) -> tuple[str, str, str]:
    """Return what a kernel call is of: op, module path, and whether its output is integer."""
    facts = edit.marks(next(node for node in gm.graph.nodes if node.name == name))
    path = facts["claim"]["path"].removeprefix("encoder.")
    return facts["claim"]["op"], path, "integer" if "requantized" in facts else "float"


FLOAT, QDQ, REFERENCE, X86, FUSED = "float32 model", "Q/DQ", "reference", "x86", "x86, fused"
ALONE, ONCE, GELU = ", one sentence a batch", ", rounded once", ", x86's GELU"
NO_ONEDNN, NUDGED = "Q/DQ, oneDNN off", "Q/DQ, first linear 1 ulp up"
DOUBLE = "Q/DQ, products in float64"


def end_to_end(
    qdq: fx.GraphModule, lowered: Mapping[str, fx.GraphModule], batches: Sequence[Batch], single: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return the embeddings of each way to compute the same graph."""
    reference, x86 = lowered["reference"], lowered["x86"]
    with torch.backends.mkldnn.flags(enabled=False):
        without = embeddings(qdq, batches)
    return {
        QDQ: embeddings(qdq, batches),
        QDQ + ALONE: embeddings(qdq, single),
        NO_ONEDNN: without,
        NUDGED: embeddings(qdq, batches, nudge(qdq)),
        DOUBLE: embeddings(qdq, batches, linear_in_double),
        QDQ + ONCE: embeddings(qdq, batches, linear_once),
        QDQ + ONCE + GELU: embeddings(qdq, batches, with_gelu(linear_once, x86_gelu)),
        REFERENCE: embeddings(reference, batches),
        REFERENCE + ONCE: embeddings(reference, batches, kernel_once),
        X86: embeddings(x86, batches),
        X86 + ALONE: embeddings(x86, single),
    }


PAIRS = (
    (QDQ, REFERENCE), (QDQ, X86), (REFERENCE, X86), (X86, FUSED),
    (QDQ, QDQ + ALONE), (QDQ, NO_ONEDNN), (QDQ, NUDGED), (X86, X86 + ALONE),
    (QDQ, DOUBLE), (DOUBLE, REFERENCE + ONCE), (QDQ, QDQ + ONCE), (QDQ + ONCE, REFERENCE), (QDQ + ONCE, X86),
    (QDQ + ONCE, REFERENCE + ONCE), (QDQ + ONCE + GELU, X86),
    (FLOAT, QDQ), (FLOAT, QDQ + ONCE), (FLOAT, REFERENCE), (FLOAT, X86), (FLOAT, FUSED),
)  # fmt: skip


def show_end_to_end(recipe: str, runs: Mapping[str, Tensor]) -> None:
    """Print the cosines of embeddings for each pair of ways."""
    rows = []
    for left, right in PAIRS:
        a, b = runs[left], runs[right]
        cosines = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
        equal = int((a == b).all(-1).sum())
        rows.append((left, right, f"{cosines.mean():.6f}", f"{cosines.min():.6f}", f"{equal} of {len(a)}"))
    head = ("", "against", "cosine mean", "min", "bit-equal")
    common.show(f"{recipe}: embeddings end to end, {len(runs[QDQ])} sentences", head, rows)


if __name__ == "__main__":
    main()
