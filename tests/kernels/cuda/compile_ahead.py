"""Compile every Triton kernel for GPUs that need not be here; prints one JSON line a kernel. Run as a script, as Triton
compiles only in a process that was not told to interpret."""

import json
import sys
from pathlib import Path
from types import ModuleType

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# The packages without what they define beside Triton's kernels: that takes seconds to load, and is not needed.
FOLDER = Path(__file__).parents[3] / "fxquant"
for depth in range(3):
    parts = ("kernels", "cuda")[:depth]
    package = sys.modules[".".join(("fxquant", *parts))] = ModuleType("fxquant")
    package.__path__ = [str(FOLDER.joinpath(*parts))]

from fxquant.kernels.cuda.device import OPTIONS  # noqa: E402
from fxquant.kernels.cuda.device.attention import attention_kernel  # noqa: E402
from fxquant.kernels.cuda.device.fp8 import fp8_gemm_kernel  # noqa: E402
from fxquant.kernels.cuda.device.gemm import int8_gemm_kernel  # noqa: E402
from fxquant.kernels.cuda.device.rows import rows_kernel  # noqa: E402
from fxquant.kernels.cuda.device.sums import finish_sums_kernel  # noqa: E402

ROWS = {
    "x_ptr": "*fp32", "weight_ptr": "*fp32", "bias_ptr": "*fp32", "kept_ptr": "*fp32", "q_ptr": "*i8",
    "scale_ptr": "*fp32", "zero_point_ptr": "*i32", "rows": "i32", "width": "i32",
    **dict.fromkeys(("eps", "divisor", "middle", "qmin", "qmax", "smallest"), "fp32"),
    "NORM": "layer", "STATIC": False, "SYMMETRIC": False, "ROWS": 2, "COLUMNS": 512,
}  # fmt: skip
GEMM = {
    "x_ptr": "*i8", "x_scale_ptr": "*fp32", "x_zero_point_ptr": "*i32", "weight_ptr": "*i8",
    "weight_scale_ptr": "*fp32", "weight_sum_ptr": "*i32", "bias_ptr": "*fp32", "residual_ptr": "*fp32",
    "y_ptr": "*fp32", "out_scale_ptr": None, "out_zero_point_ptr": None,
    **dict.fromkeys(("m", "n", "k", "weight_stride", "m_class"), "i32"), "qmin": "fp32", "qmax": "fp32",
    "BY_ROW": True, "BY_COLUMN": True, "UNSIGNED": False, "GATED": False, "ACTIVATION": "gelu", "WHOLE": True,
    "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP": 8,
}  # fmt: skip
ATTENTION = {
    "q_ptr": "*fp32", "k_ptr": "*fp32", "v_ptr": "*fp32", "mask_ptr": "*u8", "offsets_ptr": None, "y_ptr": "*fp32",
    **dict.fromkeys(("queries", "keys", "sequences", "heads", "group", "features"), "i32"), "scale": "fp32",
    **{f"{name}_{axis}": "i32" for name in "qkv" for axis in ("batch", "position", "head")},
    "FACTOR": tl.bfloat16, "CAUSAL": False, "SEQUENCES": 1, "FEATURES": 64, "BLOCK_M": 64, "BLOCK_N": 64,
}  # fmt: skip
PACKED = {"mask_ptr": None, "offsets_ptr": "*i64", "SEQUENCES": 32, "CAUSAL": True, "FEATURES": 128}
PACKED |= {f"{name}_ptr": "*bf16" for name in "qkv"}
GATED = {"x_ptr": "*u8", "UNSIGNED": True, "GATED": True, "ACTIVATION": "silu", "WHOLE": False, "residual_ptr": None}
FP8 = {
    "x_ptr": "*fp8e4nv", "x_scale_ptr": "*fp32", "weight_ptr": "*fp8e4nv", "weight_scale_ptr": "*fp32",
    "bias_ptr": "*fp32", "residual_ptr": "*fp32", "y_ptr": "*fp32", **dict.fromkeys("mnk", "i32"),
    "BY_ROW": True, "BY_COLUMN": True, "ACTIVATION": "gelu", "WHOLE": True, "FLOAT8": True,
    "BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP": 8,
}  # fmt: skip
SUMS = {
    "sums_ptr": "*i32", "x_scale_ptr": "*fp32", "x_zero_point_ptr": "*i32", "weight_scale_ptr": "*fp32",
    "weight_sum_ptr": "*i32", "bias_ptr": "*fp32", "residual_ptr": None, "y_ptr": "*i8", "out_scale_ptr": "*fp32",
    "out_zero_point_ptr": "*i32", **dict.fromkeys(("m", "n", "stride"), "i32"), "qmin": "fp32", "qmax": "fp32",
    "BY_ROW": True, "BY_COLUMN": True, "UNSIGNED": True, "ACTIVATION": "silu", "BLOCK_M": 16, "BLOCK_N": 128,
}  # fmt: skip
REQUANTIZED = {"y_ptr": "*i8", "out_scale_ptr": "*fp32", "out_zero_point_ptr": "*i32"}
# Sizes that rows are apart by, which in models are multiples of 16.
EVEN = ("n", "k", "width", "weight_stride", "features", *(name for name in ATTENTION if name[:2] in ("q_", "k_", "v_")))
# Kernel, its arguments, and the compute capabilities that it is compiled for; each kernel for both.
KERNELS = {
    "rows": (rows_kernel, ROWS, (80,)),
    "rows_bfloat16": (
        rows_kernel,
        ROWS | {"x_ptr": "*bf16", "kept_ptr": None, "NORM": "rms", "SYMMETRIC": True},
        (90,),
    ),
    "gemm": (int8_gemm_kernel, GEMM, (90,)),
    "gemm_gated": (int8_gemm_kernel, GEMM | REQUANTIZED | GATED, (80,)),
    "rows_fp8": (rows_kernel, ROWS | {"q_ptr": "*fp8e4nv", "SYMMETRIC": True}, (90,)),
    "fp8": (fp8_gemm_kernel, FP8, (90,)),
    "sums": (finish_sums_kernel, SUMS, (80,)),
    "attention": (attention_kernel, ATTENTION, (80,)),
    "attention_packed": (attention_kernel, ATTENTION | PACKED, (90,)),
}


def compiled(kernel, arguments, capability):
    """Return the PTX of a kernel whose arguments have the types, or are the constants, given by name."""
    types = {name: value if _is_type(value) else "constexpr" for name, value in arguments.items()}
    constants = {(kernel.arg_names.index(name),): value for name, value in arguments.items() if not _is_type(value)}
    assert list(types) == kernel.arg_names or sorted(types) == sorted(kernel.arg_names), kernel.arg_names
    types = {name: types[name] for name in kernel.arg_names}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name in EVEN
    }
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=even)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, **OPTIONS})


def _is_type(value):
    return isinstance(value, str) and (value.startswith("*") or value in ("i32", "fp32"))


for name, (kernel, arguments, capabilities) in KERNELS.items():
    for capability in capabilities:
        made = compiled(kernel, arguments, capability)
        ptx = made.asm["ptx"]
        facts = {"kernel": name, "capability": capability, "mma_s8": ".s32.s8.s8" in ptx}
        facts |= {"cubin": len(made.asm["cubin"]), "shared": made.metadata.shared, "fma": ptx.count("fma.rn.f32")}
        facts |= {"div": ptx.count("div.rn.f32"), "approximate": ptx.count("div.full.f32")}
        print(json.dumps(facts))  # noqa: T201
