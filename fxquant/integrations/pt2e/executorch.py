"""A Q/DQ graph as an ExecuTorch program, whose linears XNNPACK runs on integers."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import fx
from torch.export import Dim, ExportedProgram

from fxquant.errors import ConfigError, ExportError, first_line
from fxquant.graph.modes import quiet_torch
from fxquant.graph.signature import signature_of
from fxquant.integrations.flat import Flat, flattened
from fxquant.integrations.packages import need
from fxquant.integrations.pt2e.float_moves import LINEAR
from fxquant.integrations.pt2e.outwards import PROFILES, dialect, exported
from fxquant.integrations.substitutions import Written, substitutions
from fxquant.passes.qdq_nodes import DEQUANTIZE

TARGETS = ("xnnpack",)
# The greatest sizes, of the first axis and of others, that memory is planned for where the model has no limit.
ROWS, LENGTH = 16, 512
# XNNPACK would take these over, and then fail on tensors with two sizes that vary.
_LEFT = ("UnsqueezeCopyConfig",)


def write_executorch(gm: fx.GraphModule, folder: Path, name: str, target: str | None) -> Written:
    """Write a converted graph as `name`.pte, and tell how many of its linears XNNPACK runs on integers.

    Raises:
        ConfigError: an unknown target.
        MissingExtraError: ExecuTorch is not installed.
        ExportError: the target, or ExecuTorch, cannot express an op.
    """
    chosen = target or TARGETS[0]
    if chosen not in TARGETS:
        raise ConfigError(f"unknown target {chosen!r} for ExecuTorch: known is {', '.join(TARGETS)}")
    with _quiet():
        need("executorch.exir", "executorch", "export to ExecuTorch")
    adapted = PROFILES[chosen].adapted(gm)
    flat = flattened(dialect(adapted, PROFILES[chosen], chosen))
    sizes = _sizes(flat, signature_of(gm).ranges)
    edge, program = _lowered(exported(flat, sizes))
    with (folder / f"{name}.pte").open("wb") as file:
        program.write_to_file(file)
    wanted = [node for node in adapted.graph.nodes if node.target is LINEAR and _target(node.args[1]) is DEQUANTIZE]
    taken = integer_linears(edge)
    return Written(
        substitutions(adapted), (flat.call, f"XNNPACK runs {taken} of {len(wanted)} quantized linears in int8")
    )


def _target(node: Any) -> Any:
    return node.target if isinstance(node, fx.Node) else None


def _sizes(flat: Flat, ranges: Any) -> tuple[dict[int, Any], ...]:
    """Return which sizes vary, and up to where: what memory is planned for must have an end."""
    limits: dict[str, int] = {}
    for leaf in flat.inputs:
        for axis, size in enumerate(leaf.shape):
            if isinstance(size, str):
                most = ranges.get(size, (0, None))[1]
                limits.setdefault(size, most or (LENGTH if axis else ROWS))
    return tuple(
        {axis: Dim.AUTO(max=limits[size]) for axis, size in enumerate(leaf.shape) if isinstance(size, str)}
        for leaf in flat.inputs
    )


def _lowered(program: ExportedProgram) -> tuple[Any, Any]:
    """Return a program in ExecuTorch's edge dialect, with what XNNPACK takes over, and as it is written."""
    with _quiet():
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS  # noqa: PLC0415
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower  # noqa: PLC0415

        try:
            config = EdgeCompileConfig(_check_ir_validity=False)
            partitioner = XnnpackPartitioner([each for each in ALL_PARTITIONER_CONFIGS if each.__name__ not in _LEFT])
            edge = to_edge_transform_and_lower(program, partitioner=[partitioner], compile_config=config)
            return edge, edge.to_executorch()
        except Exception as error:  # its passes raise errors of every kind
            raise ExportError(f"ExecuTorch cannot lower the graph: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what ExecuTorch and torchao say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def integer_linears(edge: Any) -> int:
    """Return how many linears with integer weights and activations the delegates of an edge program hold."""
    graph = edge.exported_program().graph_module
    held = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    parts = [each.original_module.graph_module for each in held if hasattr(each, "original_module")]
    return sum(_is_integer(node) for part in parts for node in part.graph.nodes)


def _is_integer(node: fx.Node) -> bool:
    """Say whether an op is a linear, or the product that one became, of dequantized operands."""
    name = getattr(node.target, "__name__", "")
    reads = [getattr(each.target, "__name__", "") for each in node.all_input_nodes[:2]]
    return name == "aten.linear.default" and all("dequantize" in each for each in reads)
