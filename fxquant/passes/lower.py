"""Q/DQ reference graph → kernels of one backend: the only pass that replaces ops by kernels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.backends.schema import Backend
from fxquant.errors import FxQuantError, first_line
from fxquant.graph import edit
from fxquant.graph.edit import mark, marks
from fxquant.kernels.site import Operand, Requantize, Site
from fxquant.kernels.table import POOLS, QUANTIZERS, Emitter, Kernel, kernels
from fxquant.memory import is_out_of_memory
from fxquant.passes.claims import ClaimedSite, claimed_sites
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class Lower:
    """Replace every claimed op that has a kernel by that kernel; the rest runs in its Q/DQ form.

    Where a claimed op's result goes into one static quantize and nowhere else, the kernel requantizes: the value
    between two kernels is then integer in memory.
    """

    backend: Backend
    name: ClassVar[str] = "lower"
    after: ClassVar[tuple[str, ...]] = ("share_qparams",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops became kernels; an op that a kernel refuses keeps its reason in `fallback`."""
        table = kernels(self.backend.kernels)
        count = 0
        for claimed in list(claimed_sites(gm)):
            if claimed.claim.kernel is None:
                continue
            site = _site(gm, claimed)
            new = _emitted(table[claimed.claim.kernel], site, claimed)
            if isinstance(new, str):
                mark(claimed.anchor, fallback=f"kernel {claimed.claim.kernel}: {new}")
                continue
            _take_place(site, claimed, new)
            count += 1
        if self.backend.kernels in QUANTIZERS:
            _lower_quantize(gm, QUANTIZERS[self.backend.kernels])
        if self.backend.kernels in POOLS:
            _lower_pools(gm, POOLS[self.backend.kernels])
        edit.mark(gm, kernels=self.backend.kernels)
        edit.sweep(gm)
        return count


def _emitted(kernel: Kernel, site: Site, claimed: ClaimedSite) -> fx.Node | str:
    """Return what a kernel's emitter gives; that there is no memory to pack a weight in is told as such."""
    try:
        return kernel.emit(site)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        place = f"{claimed.claim.op} at {claimed.claim.path or 'the top'}"
        text = "the graph that was given is as it was; free memory, or lower a smaller part of the model"
        raise FxQuantError(f"no memory is left to pack the weight of {place}: {first_line(error)}; {text}") from error


def _lower_quantize(gm: fx.GraphModule, emit: Emitter) -> None:
    """Let the kernel set's own kernel do the static quantizations that no other kernel took over."""
    for node in gm.graph.find_nodes(op="call_function", target=QUANTIZE):
        out = _static(node)
        if out is not None:
            new = emit(Site(gm, node, "quantize", {"x": Operand(node.args[0])}, {}, out))
            if isinstance(new, fx.Node):
                edit.mark(new, spec=marks(node).get("spec"))
                edit.replace(node, new)


def _lower_pools(gm: fx.GraphModule, pool: torch._ops.OpOverload) -> None:
    """Let the kernel set's own max-pooling pool integers."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.max_pool2d.default):
        known = edit.info(node)
        if known is not None and not known.dtype.is_floating_point:
            node.target = pool


def _take_place(site: Site, claimed: ClaimedSite, new: fx.Node) -> None:
    old = site.requantize.node if site.requantize else claimed.anchor
    if "val" in old.meta:
        new.meta["val"] = old.meta["val"]
    mark(new, claim=marks(claimed.anchor)["claim"], lowered=str(new.target))
    if site.requantize:
        mark(new, requantized=[str(site.requantize.scale.target), str(site.requantize.zero_point.target)])
    for member in claimed.members:
        mark(member, claim=None, member=None, roles=None)
    edit.replace(old, new)


def _site(gm: fx.GraphModule, claimed: ClaimedSite) -> Site:
    specs = claimed.claim.specs
    operands: dict[str, Operand | None] = {
        role: _operand(edges[0].source, specs.get(role)) for role, edges in claimed.edges.items()
    }
    requantize = _requantize(claimed.anchor) if "output" in specs else None
    return Site(gm, claimed.anchor, claimed.claim.op, operands, claimed.claim.attrs, requantize)


def _operand(value: fx.Node, spec: QuantSpec | None) -> Operand:
    if value.op != "call_function" or value.target not in (DEQUANTIZE, DEQUANTIZE_GROUPS) or spec is None:
        return Operand(value)
    quantized, scale, zero_point = value.args[:3]
    assert isinstance(quantized, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    source = quantized.args[0] if quantized.target is QUANTIZE and _dynamic(scale) else None
    assert source is None or isinstance(source, fx.Node)
    return Operand(value, quantized, scale, zero_point, spec, source)


def _dynamic(scale: fx.Node) -> bool:
    first = scale.args[0] if scale.args else None
    return isinstance(first, fx.Node) and first.target is CHOOSE_QPARAMS


def _requantize(anchor: fx.Node) -> Requantize | None:
    """Return the static per-tensor quantize that is the only user of `anchor`."""
    users = list(anchor.users)
    return _static(users[0]) if len(users) == 1 and users[0].target is QUANTIZE else None


def _static(q: fx.Node) -> Requantize | None:
    """Return the parameters of a quantize node whose one scale is a constant."""
    _, scale, zero_point, axis, qmin, qmax, dtype = q.args
    if not (edit.is_constant(scale) and edit.is_constant(zero_point)) or axis is not None:
        return None
    assert isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    assert isinstance(qmin, int) and isinstance(qmax, int) and isinstance(dtype, torch.dtype)
    return Requantize(q, scale, zero_point, qmin, qmax, dtype)
