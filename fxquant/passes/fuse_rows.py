"""Row-local regions become one kernel each: what lies between two attentions of an encoder, in the main.

An op is row-local where a row of its result needs the same row of its operands alone. One kernel runs the whole region
on blocks of rows that stay in the cache, so what is computed on the way never reaches memory, and a model of twelve
layers is a few dozen calls. The arithmetic of every step is that of the op that it stands for; only normalizations may
differ from torch's in the last bits.
"""

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.passes.claims import hand_over
from fxquant.passes.row_regions import regions
from fxquant.passes.row_steps import write_program

ROW_PROGRAM = torch.ops.fxquant.row_program.default


@dataclass(frozen=True)
class FuseRows:
    """Replace every region of two or more row-local ops on the same rows by one `row_program`."""

    name: ClassVar[str] = "fuse_rows"
    after: ClassVar[tuple[str, ...]] = ("lower", "sink_quantize", "unpad")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops were fused into others; without compiled kernels, which alone gain by it, none is."""
        count = 0
        for region in regions(gm) if native.available() else ():
            _fuse(gm, region)
            count += len(region) - 1
        if count:
            edit.sort(gm)
            edit.sweep(gm)
        return count


def _fuse(gm: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Put one kernel in the place of a region's last op; what others read of it becomes an item of the result."""
    inside = set(nodes)
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    inputs, constants, program = write_program(nodes, results)
    last = nodes[-1]
    constants = [_in_rows(gm, constant) for constant in constants]
    with gm.graph.inserting_before(last):
        fused = edit.call(gm.graph, ROW_PROGRAM, (inputs, constants, program), like=last)
        items = [_item(gm.graph, fused, index, node) for index, node in enumerate(results)]
    edit.mark(fused, path=_common_path(nodes) or None)
    hand_over(nodes, fused)
    for node, item in zip(results, items, strict=True):
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in inside)
    for node in reversed(nodes):
        gm.graph.erase_node(node)


def _in_rows(gm: fx.GraphModule, constant: fx.Node) -> fx.Node:
    """Return a constant whose values lie one behind the other, as the kernel reads them."""
    tensor = edit.get_tensor(gm, constant)
    if tensor.is_contiguous():
        return constant
    return edit.add_constant(gm, f"{constant.target}_rows", tensor.detach().contiguous(), constant)


def _item(graph: fx.Graph, fused: fx.Node, index: int, node: fx.Node) -> fx.Node:
    item = edit.call(graph, operator.getitem, (fused, index), like=node, value=edit.info(node))
    if "val" in node.meta:
        item.meta["val"] = node.meta["val"]
    return item


def _common_path(nodes: list[fx.Node]) -> str:
    """Return the path of the innermost module that all nodes lie in."""
    paths = [edit.path_of(node).split(".") for node in nodes]
    common = [names[0] for names in zip(*paths, strict=False) if len(set(names)) == 1]
    return ".".join(common)
