"""One kernel on one test vector: the op alone, quantized, lowered, and compared with its Q/DQ form."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, fx

from fxquant.backends import Backend, OpRule
from fxquant.errors import FxQuantError, first_line
from fxquant.evaluation.layers import call_leaves, run_layers
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.numerics import along, choose_qparams
from fxquant.ops import OPS
from fxquant.ops.vectors import Sizes, Vector, alone
from fxquant.passes.annotate import Annotate
from fxquant.passes.base import Pass
from fxquant.passes.canonicalize import canonicalize
from fxquant.passes.claims import ClaimedSite, Reason, claimed_sites
from fxquant.passes.convert import Convert
from fxquant.passes.lower import Lower
from fxquant.passes.observe import Observe
from fxquant.passes.qdq_nodes import insert_quantize, store_qparams
from fxquant.passes.share_qparams import ShareQParams
from fxquant.recipe import Recipe
from fxquant.spec import QuantSpec

# A kernel may differ by a step from its Q/DQ form, which rounds product and sum apart; the rest is float32's rounding.
TOLERANCE = 1.001
# A result that stays in float has the step of an 8-bit quantizer of all of it: a row of one value may be next to zero,
# and what a kernel rounds its factors to shows in proportion to them, not to their sum.
_STEP = QuantSpec(dtype="uint8", dynamic=True)
USUAL = Sizes()
_SAID = (Reason.LIMIT, Reason.FLOAT_BY_RECIPE, Reason.GUARD)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a rule did: what ran, its specs by role, the largest difference in output steps; `problem` says why not.

    `claimed` is whether the rule took the op at all: without it nothing ran, and `problem` is why. `refused` is
    whether the kernel itself stood back, so that the op ran in its Q/DQ form.
    """

    claimed: bool
    refused: bool = False
    kernel: str = ""
    specs: Mapping[str, QuantSpec]
    difference: float | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


@lru_cache(maxsize=256)
def example(use: str, sizes: Sizes) -> tuple[fx.GraphModule, Vector] | None:
    """Return the canonical graph of an op alone and its vector; None where the op has no example."""
    op = OPS[use]
    if op.example is None:
        return None
    vector = op.example(sizes)
    with torch.no_grad():
        return canonicalize(capture(alone(op.pattern, vector), dict(vector.inputs), dynamic=False)), vector


def claim(backend: Backend, rule: OpRule, recipe: Recipe, graph: fx.GraphModule) -> tuple[fx.GraphModule, str]:
    """Return a copy of `graph` annotated by one rule alone, and why that claims nothing; "" where it does."""
    annotated = edit.clone(graph)
    if Annotate(replace(backend, rules=(rule,)), recipe).apply(annotated):
        return annotated, ""
    reasons = [edit.marks(node)["reason"] for node in annotated.graph.nodes if "reason" in edit.marks(node)]
    told = [each["text"] for code in _SAID for each in reasons if each["code"] == code]
    return annotated, told[0] if told else f"its pattern does not match {rule.use}"


def attempt(
    backend: Backend, rule: OpRule, recipe: Recipe, passes: tuple[Pass, ...] = (), sizes: Sizes = USUAL
) -> Trial:
    """Quantize the example of a rule's op by this rule alone, run it on its kernel and compare with the Q/DQ form."""
    found = example(rule.use, sizes)
    assert found is not None, "the caller knows that the op has an example"
    graph, vector = found
    try:
        annotated, refusal = claim(backend, rule, recipe, graph)
        if refusal:
            return Trial(claimed=False, specs={}, problem=refusal)
        (site,) = claimed_sites(annotated)
        with torch.no_grad():
            return _run(backend, site, annotated, vector, passes)
    except FxQuantError as error:
        return Trial(claimed=False, specs={}, problem=str(error))


def _run(
    backend: Backend, site: ClaimedSite, annotated: fx.GraphModule, vector: Vector, passes: tuple[Pass, ...]
) -> Trial:
    specs = site.claim.specs
    converted = _converted(annotated, vector)
    step = _requantize(converted, specs["output"], vector) if "output" in specs else None
    expected = _result(converted, vector)
    lowered = converted  # in place: a copy would cost as much as the rest of a trial
    try:
        _apply(lowered, Lower(backend), *passes)
        refused = next((str(edit.marks(n)["fallback"]) for n in lowered.graph.nodes if "fallback" in edit.marks(n)), "")
        if refused:
            return Trial(claimed=True, refused=True, specs=specs, problem=refused)
        found = _result(lowered, vector)
    except Exception as error:  # whatever a foreign kernel raises
        text = f"the kernel fails: {type(error).__name__}: {first_line(error)}"
        return Trial(claimed=True, specs=specs, problem=text)
    steps = _steps(found, expected, step)
    far = f"{steps:.3g} output steps from the Q/DQ form" if not steps <= TOLERANCE else ""
    return Trial(claimed=True, kernel=_kernel(lowered), specs=specs, difference=steps, problem=far)


def _converted(annotated: fx.GraphModule, vector: Vector) -> fx.GraphModule:
    if Observe().apply(annotated):
        fx.Interpreter(annotated).run(*_leaves(annotated, vector), enable_io_processing=False)
    _apply(annotated, Convert(), ShareQParams())
    return annotated


def _apply(gm: fx.GraphModule, *passes: Pass) -> None:
    """Apply passes whose order is known to be right, without checks and new code after each: trials are hundreds."""
    for each in passes:
        each.apply(gm)


def _result(gm: fx.GraphModule, vector: Vector) -> Tensor:
    """Return what a graph gives, without generating code for it."""
    result: Tensor = run_layers(gm, set(), _leaves(gm, vector)).outputs[0]
    return result


def _leaves(gm: fx.GraphModule, vector: Vector) -> tuple[Tensor, ...]:
    return call_leaves(gm, ((), dict(vector.inputs)))


def _requantize(gm: fx.GraphModule, spec: QuantSpec, vector: Vector) -> Tensor:
    """Quantize the result, as a quantized op that read it would; return the scale, which broadcasts against it."""
    (site,) = claimed_sites(gm)
    source, result = site.anchor, _result(gm, vector)
    qparams = choose_qparams(result, spec)
    users = list(source.users)
    scale, zero_point = store_qparams(gm, "result", qparams, source)
    dequantized = insert_quantize(source, scale, zero_point, spec, qparams.axis, source)
    for user in users:
        user.replace_input_with(source, dequantized)
    return along(qparams.scale, qparams.axis, result.ndim)


def _kernel(lowered: fx.GraphModule) -> str:
    names = [str(edit.marks(node)["lowered"]) for node in lowered.graph.nodes if "lowered" in edit.marks(node)]
    return names[0].removesuffix(".default") if names else "Q/DQ"


def _steps(found: Tensor, expected: Tensor, step: Tensor | None) -> float:
    """Return the largest difference in steps; NaN where the results cannot be compared."""
    if found.shape != expected.shape:
        return float("nan")
    size = choose_qparams(expected, _STEP).scale if step is None else step
    difference = (found.double() - expected.double()).abs() / size
    return float(difference.max()) if difference.numel() else 0.0
