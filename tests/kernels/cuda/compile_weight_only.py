"""Compile the kernels of weight-only linears for GPUs that need not be here; prints one JSON line each.

Run as a script, as Triton compiles only in a process that was not told to interpret. Its argument is a JSON list of
launches: name, compute capability, dtype of x, whether there are zero points, constants, warps and stages.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# The packages without what they define beside Triton's kernels: that takes seconds to load, and is not needed.
FOLDER = Path(__file__).parents[3] / "fxquant"
for level in range(3):
    parts = ("kernels", "cuda")[:level]
    package = sys.modules[".".join(("fxquant", *parts))] = ModuleType("fxquant")
    package.__path__ = [str(FOLDER.joinpath(*parts))]

from fxquant.kernels.cuda.device.weight_only import few_rows, many_rows  # noqa: E402

POINTERS = {"w_ptr": "*u8", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": "*fp32"}
SIZES = dict.fromkeys(("rows", "columns", "depth", "groups"), "i32")


def compiled(launch):
    """Return a kernel as it is launched."""
    kernel = few_rows if launch["few"] else many_rows
    types = {"x_ptr": f"*{launch['dtype']}", **POINTERS, **SIZES, **({"zero_ptr": "*i8"} if launch["affine"] else {})}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constants = dict.fromkeys(("zero_ptr", "residual_ptr")) | dict(
        zip(kernel.arg_names[11:], launch["constants"], strict=True)
    )
    constants = {name: value for name, value in constants.items() if signature[name] == "constexpr"}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in types and name != "rows"
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=even)
    options = {"num_warps": launch["warps"], "num_stages": launch["stages"]}
    return triton.compile(source, target=GPUTarget("cuda", launch["capability"], 32), options=options)


def stack(cubin):
    """Return the bytes of local memory that a kernel spills to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(knobs.nvidia.cuobjdump.path)
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


for launch in json.loads(sys.argv[1]):
    made = compiled(launch)
    ptx = made.asm["ptx"]
    facts = {"kernel": launch["name"], "stack": stack(made.asm["cubin"]), "shared": made.metadata.shared}
    facts |= {"async16": len(re.findall(r"cp\.async\.cg\.shared\.global.* 0x10", ptx)), "mma": "mma" in ptx}
    facts |= {"conversions": len(re.findall(r"cvt\.rn\.\w+\.[su]\d+", ptx)), "pairs": ptx.count("f16x2")}
    print(json.dumps(facts))  # noqa: T201
