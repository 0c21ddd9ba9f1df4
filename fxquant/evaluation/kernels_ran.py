"""Which kernels a call really ran, from a trace of torch's profiler: the proof behind an int8 row of a comparison."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd.profiler import profile

# Operators that multiply integers, and those that multiply floats, by the name that the profiler gives them.
INTEGER_PRODUCTS = ("aten::_int_mm", "onednn::qlinear_pointwise", "onednn::qconv_pointwise", "quantized::linear")
FLOAT_PRODUCTS = (
    "aten::linear", "aten::matmul", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm",
    "aten::scaled_dot_product_attention", "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::convolution",
    "fxquant::attention", "fxquant::cached_attention", "fxquant::cross_attention",
    "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear",
)  # fmt: skip
OWN = "fxquant::"
# An own op with one of these in its name multiplies matrices: by an operator that the trace shows inside it, else by
# integer code of ours.
OWN_PRODUCTS = ("linear", "matmul", "conv", "gemm")
OWN_FLOAT = "weight_only"  # own products with this in their name multiply floats
WITHIN = " > "
# An own op that runs several kernels leaves "op.kernel" for each.
STEP = "."


def kernels_that_ran(call: Callable[[], object]) -> Counter[str]:
    """Run `call` once under the profiler and return how often each product of matrices and each fxquant op ran.

    A product inside an fxquant op is counted as "fxquant::linear_int8 > aten::_int_mm", apart from the op itself; one
    inside another product is not counted again.
    """
    # torch.profiler.profile, which adds schedules and export to this, takes a second to start.
    with profile() as trace:
        call()
    assert trace.function_events is not None
    return Counter(name for event in trace.function_events for name in _counted(event))


def _counted(event: Any) -> Iterator[str]:
    """Yield the name that an event counts under, or nothing."""
    if event.name.startswith(OWN):
        yield event.name
    elif _is_product(event.name):
        around = list(_ancestors(event))
        if not any(_is_product(name) for name in around):
            own = next((name for name in around if name.startswith(OWN)), None)
            yield f"{own}{WITHIN}{event.name}" if own else event.name


def _ancestors(event: Any) -> Iterator[str]:
    parent = event.cpu_parent
    while parent is not None:
        yield parent.name
        parent = parent.cpu_parent


def _is_product(name: str) -> bool:
    return name in FLOAT_PRODUCTS or name.startswith(INTEGER_PRODUCTS)


def integer_products(ran: Counter[str]) -> Counter[str]:
    """Return the part of a count that multiplied integers: own ops with compiled code, and what ran inside others."""
    native = Counter({name: count for name, count in _native(ran).items() if OWN_FLOAT not in name})
    return _called(ran, lambda name: name.startswith(INTEGER_PRODUCTS)) + native


def float_products(ran: Counter[str]) -> Counter[str]:
    """Return the part of a count that multiplied floats, emulated integer arithmetic included."""
    native = Counter({name: count for name, count in _native(ran).items() if OWN_FLOAT in name})
    return _called(ran, lambda name: name in FLOAT_PRODUCTS) + native


def other_kernels(ran: Counter[str]) -> Counter[str]:
    """Return the fxquant ops in a count that multiplied no matrices: look-ups, quantize and dequantize."""
    return _alone(ran) - _native(ran)


def _called(ran: Counter[str], wanted: Callable[[str], bool]) -> Counter[str]:
    return Counter({name: count for name, count in ran.items() if wanted(name.split(WITHIN)[-1])})


def _native(ran: Counter[str]) -> Counter[str]:
    """Return the own products that called no other: compiled code of ours."""
    return Counter({n: count for n, count in _alone(ran).items() if any(word in n for word in OWN_PRODUCTS)})


def _alone(ran: Counter[str]) -> Counter[str]:
    """Return the own ops that called no product; of those that run several kernels, the kernels."""
    hosts = {name.split(WITHIN)[0] for name in ran if WITHIN in name} | {
        name.split(STEP)[0] for name in ran if STEP in name
    }
    return Counter({n: count for n, count in ran.items() if n.startswith(OWN) and n not in hosts and WITHIN not in n})


def describe_kernels(ran: Counter[str]) -> str:
    """Return in one line what multiplied matrices, most frequent first, and then the other fxquant ops."""
    products = _merged(integer_products(ran) + float_products(ran))
    parts = [f"{count} × {name}" for name, count in (*products.most_common(), *other_kernels(ran).most_common())]
    return ", ".join(parts) or "no product of matrices ran"


def _merged(ran: Counter[str]) -> Counter[str]:
    """Add up the counts of a product inside and outside of fxquant's ops."""
    total: Counter[str] = Counter()
    for name, count in ran.items():
        total[name.split(WITHIN)[-1]] += count
    return total
