"""The passes that a backend file may list under `[lower] passes`, by name; they run after the kernels are in place."""

from fxquant.config import within
from fxquant.passes.base import Pass
from fxquant.passes.fuse_attention import FuseAttention
from fxquant.passes.fuse_caches import FuseCaches
from fxquant.passes.fuse_gates import FuseGates
from fxquant.passes.fuse_norm_quantize import FuseNormQuantize
from fxquant.passes.fuse_rotary import FuseRotary
from fxquant.passes.fuse_rows import FuseRows
from fxquant.passes.merge_linears import MergeLinears
from fxquant.passes.narrow_attention import NarrowAttention
from fxquant.passes.narrow_products import NarrowProducts
from fxquant.passes.simplify_masks import SimplifyMasks
from fxquant.passes.sink_quantize import SinkQuantize
from fxquant.passes.slice_columns import SliceColumns
from fxquant.passes.unpad import Unpad
from fxquant.registry import Registry

LOWERING: Registry[Pass] = Registry("lowering pass")
LOWERING.add("merge_linears", MergeLinears())
LOWERING.add("slice_columns", SliceColumns())
LOWERING.add("sink_quantize", SinkQuantize())
LOWERING.add("fuse_rotary", FuseRotary())
LOWERING.add("fuse_caches", FuseCaches())
LOWERING.add("fuse_attention", FuseAttention())
LOWERING.add("simplify_masks", SimplifyMasks())
LOWERING.add("unpad", Unpad())
LOWERING.add("fuse_rows", FuseRows())
LOWERING.add("narrow_attention", NarrowAttention())
LOWERING.add("fuse_gates", FuseGates())
LOWERING.add("fuse_norm_quantize", FuseNormQuantize())
LOWERING.add("narrow_products", NarrowProducts())


def listed_passes(names: tuple[str, ...], source: str) -> tuple[Pass, ...]:
    """Return the passes that a backend file lists; an unknown name is a `ConfigError` that names the file."""
    with within(f"{source}: [lower] passes"):
        return tuple(LOWERING[name] for name in names)
