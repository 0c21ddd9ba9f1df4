"""`to_pt2e`: a Q/DQ graph in the operators of PT2E; and the targets that such a graph is written for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fxquant.errors import ConfigError, ExportError, first_line
from fxquant.graph import edit
from fxquant.graph.capture import export_flat
from fxquant.integrations.flat import Flat, flattened
from fxquant.integrations.pt2e import xnnpack
from fxquant.integrations.pt2e.spelled import Style, spelled
from fxquant.integrations.substitutions import Written, substitutions
from fxquant.passes.base import Pass, Pipeline
from fxquant.portable import portable
from fxquant.registry import Registry


@dataclass(frozen=True)
class Profile:
    """A target: its passes in order, how it wants operators spelled, and a check before that.

    `check` raises `ExportError` where the target has no form for an op.
    """

    style: Style
    passes: tuple[Pass, ...] = ()
    check: Callable[[fx.GraphModule], None] = lambda gm: None

    def adapted(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return a copy of a Q/DQ graph after the target's passes, in fxquant's operators still."""
        return Pipeline(self.passes).run(edit.clone(gm))


TORCH = "torch"
_LASTING = {"path", "value"}  # what a node's facts say of any graph
PROFILES: Registry[Profile] = Registry("target")
PROFILES.add(TORCH, Profile(Style(whole=True)))
PROFILES.add("xnnpack", Profile(Style(whole=True, lone_weights=False), xnnpack.PASSES, xnnpack.check_linears))


def to_pt2e(graph: fx.GraphModule, *, target: str = TORCH) -> fx.GraphModule:
    """Return a converted or lowered graph in operators of `quantized_decomposed` and ATen, which torch.export takes.

    It is called as the graph is, and shares its tensors. Where the dialect has no operator for a scheme, ATen computes
    it. `from_pt2e` takes it in again.

    Args:
        graph: what `convert`, `lower`, `quantize` or `load` returns; left as it is.
        target: "torch", the numbers of the Q/DQ graph; or "xnnpack", after what `export` substitutes for ExecuTorch.

    Raises:
        ConfigError: an unknown target.
        ExportError: the graph is not quantized, or holds an op that the target cannot express.
    """
    profile = PROFILES[target]
    if not isinstance(graph, fx.GraphModule):
        raise ExportError(f"to_pt2e takes one graph, got a {type(graph).__name__}: give those of a Program one by one")
    qdq = portable(graph)
    if edit.marks(qdq).get("stage") != "converted":
        raise ExportError("the graph is captured and not quantized: give what fxquant.convert or quantize returns")
    return dialect(profile.adapted(qdq), profile, target)


def dialect(adapted: fx.GraphModule, profile: Profile, target: str) -> fx.GraphModule:
    """Return an adapted graph, checked, in the operators of a target.

    Raises:
        ExportError: an op that the target cannot express, by name.
    """
    profile.check(adapted)
    try:
        gm = spelled(adapted, profile.style)
    except ConfigError as error:
        raise ExportError(f"the graph cannot be written for {target}: {error}") from None
    gm.meta.pop(edit.KEY, None)  # to fxquant it is from now on a graph like any other
    for node in gm.graph.nodes:
        edit.mark(node, **dict.fromkeys(set(edit.marks(node)) - _LASTING))
    return gm


def write_pt2e(gm: fx.GraphModule, folder: Path, name: str, target: str | None) -> Written:
    """Write a converted graph as `name`.pt2, which torch.export.load reads, for a target of `PROFILES`.

    Raises:
        ConfigError: an unknown target.
        ExportError: the target cannot express an op.
    """
    chosen = target or TORCH
    adapted = PROFILES[chosen].adapted(gm)
    flat = flattened(dialect(adapted, PROFILES[chosen], chosen))
    program = exported(flat, flat.sizes)
    torch.export.save(program, folder / f"{name}.pt2")
    return Written(substitutions(adapted), (flat.call,))


def exported(flat: Flat, sizes: tuple[dict[int, Any], ...]) -> ExportedProgram:
    """Return the exported program of a flat graph.

    Raises:
        ExportError: torch.export refuses the graph.
    """
    try:
        return export_flat(flat.module, flat.example, sizes)
    except Exception as error:  # it raises errors of every kind
        raise ExportError(f"torch.export refuses the graph: {first_line(error)}") from error
