"""A fusion of one's own: a pattern, the kernel behind it, and a backend file with a rule that claims it.

    python examples/custom_pattern.py

The rule is in custom_pattern.toml.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxquant as fxq
from fxquant.kernels.library import define
from fxquant.kernels.site import Site
from fxquant.kernels.table import emitter
from fxquant.ops import quant_op, weight_is_parameter

aten, ops = torch.ops.aten, torch.ops.fxquant


@quant_op(guard=weight_is_parameter)
def linear_tanh(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = tanh(x·Wᵀ + b), as in BERT's pooler."""
    return aten.tanh.default(aten.linear.default(x, weight, bias))


def linear_tanh_int8(*operands: Any) -> Tensor:
    """Return tanh(S_x·S_w·Σ (q_x − Z_x)·q_w + bias): the sum in int32, the rest in float32."""
    return ops.linear_int8(*operands, None, "none", None, None, 0, 0, torch.float32).tanh()


def fake(x: Tensor, x_scale: Tensor, zero_point: Tensor, weight: Tensor, *others: Any) -> Tensor:
    """Return an empty tensor of the kernel's shape and dtype, for torch.export and torch.compile."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


OPERANDS = "Tensor x, Tensor x_scale, Tensor zero_point, Tensor weight, Tensor scale, Tensor? bias"
define(f"linear_tanh_int8({OPERANDS}) -> Tensor", linear_tanh_int8, fake)


@emitter("reference", "linear_tanh_int8", serves=("linear_tanh",), needs=("weight",))
def emit_linear_tanh(site: Site) -> fx.Node | str:
    """Put the kernel into a graph, or say why it cannot serve there."""
    x, weight = site.read("x"), site.read("weight")
    if x.quantized is None:
        return "the activations have to be quantized"
    quantized = (x.quantized, x.scale, x.zero_point, weight.quantized, weight.scale)
    return site.emit(ops.linear_tanh_int8.default, *quantized, site.float_value("bias"))


def main() -> None:
    """Quantize a small model with the backend file beside this script, and check the result."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    inputs = (torch.randn(4, 32),)
    backend = fxq.load_backend(Path(__file__).with_suffix(".toml"))
    graph = fxq.quantize(model, inputs, backend=backend, recipe="dynamic", strict=True)
    print(fxq.ledger(graph).to_table())
    with torch.no_grad():
        print(f"\nlargest difference from float: {(graph(*inputs) - model(*inputs)).abs().max():.4f}")


if __name__ == "__main__":
    main()
