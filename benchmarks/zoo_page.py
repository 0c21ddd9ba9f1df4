"""The page docs/zoo.md from the results of zoo.py."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Result = dict[str, Any]
LEAST = 25.0  # dB below which an SQNR is to be explained
CLOSER = 3.0  # dB that the choices of the float model must gain to count as the cause


def page(results: Sequence[Result], machine: str) -> str:
    """Return the page as Markdown."""
    captured = [each for each in results if each["rung"]]
    equal = [each for each in captured if all(text == "=" for text in each["equal"].values())]
    rungs = Counter(each["rung"] for each in captured)
    gemms, quantized = (sum(each[key] for each in results) for key in ("gemms", "quantized"))
    reasons: Counter[str] = sum((Counter(each["reasons"]) for each in results), Counter())
    same = [each for each in results if each["eager_coverage"] is not None]
    alike = sum(math.isclose(each["linear_coverage"], each["eager_coverage"], abs_tol=1e-3) for each in same)
    return "\n".join(
        [
            "# The zoo",
            "",
            "Written by `benchmarks/zoo.py --output` from the results of one or several runs: tiny models with random",
            "weights of gain one, captured at one size, compared with eager at five (images and sounds of one size at",
            'five batches), and quantized with the recipe "dynamic" for `x86`. An error is the largest difference from',
            "eager over the largest magnitude of an output, and counts as equal up to 1e-5; the SQNR is that of the",
            "first output. One below 25 dB has a note that says what was measured of its cause.",
            "",
            "```text",
            machine,
            "```",
            "",
            f"- captured: {len(captured)} of {len(results)} ({', '.join(f'{n} {rung}' for rung, n in rungs.items())})",
            f"- equal to eager at every size: {len(equal)} of {len(captured)}",
            f"- matrix products quantized: {quantized} of {gemms}; the others by reason:",
            *(f"    - {count} {reason}" for reason, count in reasons.most_common()),
            *([f"- share of linears the same with eager attention: {alike} of {len(same)}"] if same else []),
            "",
            _table(results),
            "",
            *_notes(results),
            "",
        ]
    )


def _table(results: Sequence[Result]) -> str:
    head = ("model", "kind", "rung", "seconds", "error", "linears", "all products", "quantized", "SQNR dB")
    rows = [
        (
            each["name"],
            each["group"],
            each["rung"] or "none",
            f"{each['seconds']:.1f}",
            _error(each),
            f"{each['linear_coverage']:.0%}",
            f"{each['coverage']:.0%}",
            f"{each['quantized']} of {each['gemms']}",
            f"{each['sqnr']:.1f}",
        )
        for each in results
        if not each["failure"]
    ]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def _error(each: Result) -> str:
    odd = [f"{size}: {text}" for size, text in each["equal"].items() if text != "="]
    return "; ".join(odd)[:120] or f"{each['error']:.0e}"


def _notes(results: Sequence[Result]) -> list[str]:
    """Return a line for each model that fails, or is less accurate than it should be, and for each lower rung."""
    lines = ["Notes:", ""]
    for each in results:
        if each["failure"]:
            lines.append(f"- {each['name']}: {each['failure'][:200]}")
        elif each["rung"] != "own attention":
            lines.append(f"- {each['name']}, {each['rung']}: {each['note'].splitlines()[0][:200]}")
        if each["sqnr"] < LEAST:
            lines.append(f"- {each['name']}, {each['sqnr']:.1f} dB: {_cause(each)}")
    return lines


def _cause(each: Result) -> str:
    """Say what was measured of an SQNR that is low."""
    choices, others = each["choices"], each["outputs"][1:]
    if choices.get("turned") and choices["sqnr"] >= each["sqnr"] + CLOSER:
        turned = (
            f"rounding turns {choices['turned']:.0f} of {choices['of']:.0f} choices, of an expert or at a threshold"
        )
        return f"{turned}; with the choices of the float model {choices['sqnr']:.1f} dB"
    if each["group"] == "text and images" and max(others) >= LEAST:
        known = ", ".join(f"{value:.1f}" for value in others if value >= LEAST)
        return f"cosines between unrelated texts and images, which are near zero; the embeddings and states: {known} dB"
    return "not explained"
