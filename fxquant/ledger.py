"""The ledger: what every op of a graph was made of, or why not; read from the graph at any stage."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tabulate import tabulate
from torch import fx

from fxquant.graph import edit
from fxquant.ops.cost import ATTENTION, CONVOLUTION, LINEAR
from fxquant.passes.claims import UNINTENDED, Claim, Reason, computed_ops
from fxquant.spec import QuantSpec

FAMILIES = (LINEAR, ATTENTION, CONVOLUTION)
_SHOWN = 240  # characters of a reason in the summary


@dataclass(frozen=True, kw_only=True)
class Row:
    """One op.

    `op` is the claimed pattern's name or the ATen op; `flops` are twice its multiply-accumulates at the example shape;
    `dtype` reads "activations × weights → output"; `kernel` names what runs it, with "(planned)" before lowering and
    "Q/DQ" where no kernel does; a kernel that runs several ops comes first: "fused kernel: kernel". `reason` says why
    the op is not claimed, its code in `code`.
    """

    op: str
    module_path: str
    node: str
    family: str | None
    flops: int
    dtype: str
    kernel: str
    code: str
    reason: str

    @property
    def quantized(self) -> bool:
        """Whether the op runs, or is planned to run, in a low-precision kernel."""
        return not self.code


@dataclass(frozen=True)
class Ledger:
    """The rows of a graph in its order, and shares of multiply-accumulates.

    `stage` is "captured", "prepared", "converted" or "lowered"; coverage is planned until the graph is lowered.
    `capture` names the `rung` by which the model was captured, and what `failed` above it, each with its `reason`.
    """

    rows: tuple[Row, ...]
    stage: str
    capture: dict[str, Any] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the model's multiply-accumulates in low-precision kernels, at the example shape."""
        return self.share(*FAMILIES)

    def share(self, *families: str) -> float:
        """Share of the multiply-accumulates of some families; 1.0 where there are none."""
        rows = [row for row in self.rows if row.family in families]
        total = sum(row.flops for row in rows)
        return sum(row.flops for row in rows if row.quantized) / total if total else 1.0

    @property
    def unintended(self) -> tuple[Row, ...]:
        """Ops that stay in float although nobody asked for it; errors under `strict=True`."""
        codes = {str(code) for code in UNINTENDED} | {"fallback"}
        return tuple(row for row in self.rows if row.code in codes or _is_lost(row))

    def summary(self) -> str:
        """Return coverage in one line a family."""
        planned = "" if self.stage == "lowered" else " (planned)"
        lines = [f"captured as: {self.capture['rung']}"] if self.capture else []
        lines += [f"  not as {each['rung']}: {_short(each['reason'])}" for each in self.capture.get("failed", ())]
        share = f"{self.coverage:.1%}" if any(row.flops for row in self.rows) else "there are none"
        lines += [f"low-precision share of multiply-accumulates{planned}: {share}"]
        for name in FAMILIES:
            rows = [row for row in self.rows if row.family == name]
            if rows:
                done = sum(row.quantized for row in rows)
                lines.append(f"  {name}: {self.share(name):.1%} ({done} of {len(rows)} ops)")
        return "\n".join(lines)

    def to_table(self, every: bool = False) -> str:
        """Return the ledger as text: matrix arithmetic and claimed ops, or `every` op; then counts of the rest."""
        hidden = Counter(row.code for row in self.rows if not (every or row.family or row.quantized))
        shown = [row for row in self.rows if every or row.family or row.quantized]
        total = sum(row.flops for row in self.rows) or 1
        head = ("op", "module", "flops", "share", "dtype", "kernel", "reason")
        body = [_cells(row, total) for row in shown]
        rest = ", ".join(f"{count} {code}" for code, count in sorted(hidden.items()))
        lines = [tabulate(body, head, disable_numparse=True), "", self.summary()]
        return "\n".join([*lines, f"other ops: {rest}"] if rest else lines)

    def to_json(self) -> str:
        """Return rows and shares as JSON."""
        data = {
            "stage": self.stage,
            "coverage": self.coverage,
            "capture": self.capture,
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(data, indent=1)


def read_ledger(gm: fx.GraphModule) -> Ledger:
    """Return the ledger of a graph at any stage; a graph that is not annotated has no claims and only costs."""
    facts = edit.marks(gm)
    stage = str(facts.get("stage", "captured"))
    return Ledger((*_rows(gm, stage), *map(_kept, facts.get("kept", ()))), stage, facts.get("capture", {}))


def _rows(gm: fx.GraphModule, stage: str) -> Iterator[Row]:
    times = edit.marks(gm).get("capture", {}).get("calls", 1)  # a module may be called again and again
    for node in gm.graph.nodes:
        if node.op == "call_function":
            for facts in computed_ops(node):
                row = _claimed(node, facts, stage) if "claim" in facts else _unclaimed(node, facts)
                yield replace(row, flops=times * row.flops)


def _kept(module: dict[str, Any]) -> Row:
    """Return the row of a module that stays the model's own code."""
    return Row(
        op=module["kind"],
        module_path=module["path"],
        node="",
        family=module["family"],
        flops=module["flops"],
        dtype="",
        kernel="the model's own code",
        code=str(Reason.NOT_CAPTURED),
        reason=module["reason"],
    )


def _is_lost(row: Row) -> bool:
    """Say whether a row counts weights that no graph has; products of activations would stay in float in graphs too."""
    return row.code == Reason.NOT_CAPTURED and row.family != ATTENTION


def _claimed(node: fx.Node, facts: dict[str, Any], stage: str) -> Row:
    claim = Claim.from_dict(facts["claim"])
    kernel = f"{claim.kernel} (planned)" if claim.kernel else "Q/DQ"
    code = reason = ""
    if "lowered" in facts:
        kernel = _kernel(node, str(facts["lowered"]))
    elif stage == "lowered":
        kernel, code = "Q/DQ", "fallback"
        reason = facts.get("fallback", "the rule names no kernel")
    return Row(
        op=claim.op,
        module_path=claim.path,
        node=node.name,
        family=claim.family,
        flops=2 * claim.macs,
        dtype=_dtypes(claim.specs, "requantized" in facts),
        kernel=kernel,
        code=code,
        reason=str(reason),
    )


def _kernel(node: fx.Node, lowered: str) -> str:
    """Return the kernel's name; for one that is a step of a fused kernel, after that one's name."""
    host, kernel = (name.removesuffix(".default") for name in (str(node.target), lowered))
    return kernel if host == kernel else f"{host}: {kernel.removeprefix('fxquant.')}"


def _unclaimed(node: fx.Node, facts: dict[str, Any]) -> Row:
    reason = facts["reason"] or {"code": str(Reason.NO_RULE), "text": "the graph is not annotated yet"}
    host = str(node.target).removesuffix(".default")
    return Row(
        op=facts["op"],
        module_path=facts["path"],
        node=node.name,
        family=facts["family"],
        flops=2 * facts["macs"],
        dtype=facts["dtype"],
        kernel="" if host == facts["op"] else host,
        code=reason["code"],
        reason=reason["text"],
    )


def _dtypes(specs: dict[str, QuantSpec], requantized: bool) -> str:
    inputs = [_scheme(specs[role]) for role in specs if role not in ("output", "bias")]
    output = specs["output"].dtype if requantized and "output" in specs else "float32"
    return f"{' × '.join(inputs)} → {output}"


def _scheme(spec: QuantSpec) -> str:
    size = "" if spec.group_size is None else f" {spec.group_size}"
    return f"{spec.dtype} {spec.granularity}{size}{' dynamic' if spec.dynamic else ''}"


def _cells(row: Row, total: int) -> tuple[str, ...]:
    why = f"{row.code}: {row.reason}" if row.code else ""
    share = f"{row.flops / total:.1%}"
    return row.op, row.module_path or ".", _si(row.flops), share, row.dtype, row.kernel, why


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"
