"""Compile the kernels of weight-only linears for GPUs that need not be here; prints one JSON line each.

Run as a script, as Triton compiles only in a process that was not told to interpret.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fxquant.kernels.cuda.device.weight_only import few_rows, many_rows
from fxquant.kernels.cuda.launch_weight_only import blocks
from fxquant.kernels.cuda.tiles import Tiling

CASES = {
    # name: rows of x, its dtype, bits, group, zero points, compute capability
    "int4": (1, "bf16", 4, 128, False, 90),
    "int4 in small groups, affine": (4, "fp16", 4, 32, True, 80),
    "int8": (8, "bf16", 8, 4096, False, 80),
    "int4, many rows": (512, "bf16", 4, 128, True, 90),
}
COLUMNS, DEPTH = 8192, 4096


def compiled(rows, dtype, bits, group, affine, capability):
    """Return a kernel as it is launched for a weight of COLUMNS by DEPTH on a GPU of 132 multiprocessors."""
    cut = Tiling(DEPTH, group, 8 // bits)
    chosen = blocks(rows, COLUMNS, cut, 2, 132)
    kernel = few_rows if chosen.few else many_rows
    pointers = {"x_ptr": f"*{dtype}", "w_ptr": "*u8", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": "*fp32"}
    sizes = dict.fromkeys(("rows", "columns", "depth", "groups"), "i32")
    types = pointers | sizes | ({"zero_ptr": "*i8"} if affine else {})
    layout = (cut.group, cut.segments, cut.width, cut.tiles, cut.parts, cut.aligned(chosen.slices))
    blocking = (chosen.rows, chosen.columns, chosen.slices)
    constants = dict.fromkeys(("zero_ptr", "residual_ptr")) | dict(
        zip(kernel.arg_names[11:], (*layout, "silu", COLUMNS, True, *blocking), strict=True)
    )
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in types and name != "rows"
    }
    constants = {name: value for name, value in constants.items() if signature[name] == "constexpr"}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=even)
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack(cubin):
    """Return the bytes of local memory that a kernel spills to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(knobs.nvidia.cuobjdump.path)
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


for name, case in CASES.items():
    made = compiled(*case)
    ptx = made.asm["ptx"]
    facts = {"kernel": name, "stack": stack(made.asm["cubin"]), "shared": made.metadata.shared}
    facts |= {"async16": len(re.findall(r"cp\.async\.cg\.shared\.global.* 0x10", ptx)), "mma": "mma" in ptx}
    facts |= {"conversions": len(re.findall(r"cvt\.rn\.\w+\.[su]\d+", ptx)), "pairs": ptx.count("f16x2")}
    print(json.dumps(facts))  # noqa: T201
