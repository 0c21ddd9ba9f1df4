"""What ONNX has no form for: found before the exporter runs, with the recipe that would do instead."""

import re

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

_KNOWN = {QUANTIZE, DEQUANTIZE, DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE}
_ADVICE = {
    "grouped_linear": "experts have no form in ONNX: capture and export the modules around them one by one",
    "dequantize_groups": 'scales for groups are those of linears in ONNX: give this op weights "per-channel"',
    "unpack_int4": 'give this op weights of dtype = "int8" by an override of the recipe',
    "choose_qparams": 'a scale found at run time has no such form: use recipe = "static" or "weight-only"',
}


def check_expressible(dialect: fx.GraphModule, target: str) -> None:
    """Raise `ExportError` naming the first node with an op that no translation writes, and what would work."""
    for node in dialect.graph.nodes:
        if node.op == "call_function" and _ours(node.target) and node.target not in _KNOWN:
            name = str(node.target).removeprefix("fxquant.").removesuffix(".default")
            advice = _ADVICE.get(name, "keep this op in float by an override with quantize = false")
            raise ExportError(f"{_where(node)} cannot be written for {target}: {advice}")


def refused(gm: fx.GraphModule, error: Exception, target: str) -> str:
    """Return the message for what torch's exporter refused, with the node where its text tells which op it was."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(root)
    # the exporter takes ops apart first: of what it names then, the last part is as a rule in the op's own name
    found = re.search(r"OpOverload\(op='\w+\.(\w+)", text)
    nodes = [node for node in gm.graph.nodes if found and found[1] in str(node.target)]
    where = _where(nodes[0]) if nodes else "the graph"
    reason = next((line for line in text.splitlines() if line.strip()), type(root).__name__)
    return f"{where} cannot be written for {target}: torch's ONNX exporter says: {reason[:300]}"


def _ours(target: object) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "fxquant"


def _where(node: fx.Node) -> str:
    path = edit.path_of(node)
    return f"%{node.name} ({node.target}){f' in module {path}' if path else ''}"
