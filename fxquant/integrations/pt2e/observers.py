"""Observers of fxquant in torchao's graphs: they find ranges, and put operators of quantized_decomposed in their place.

Importing this module imports torchao.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from fxquant import observers
from fxquant.errors import CalibrationError, ConfigError
from fxquant.graph import edit
from fxquant.integrations.packages import need
from fxquant.integrations.pt2e.dynamic import Dynamic
from fxquant.integrations.pt2e.operators import decomposed
from fxquant.passes.convert import constant_qparams
from fxquant.spec import QParams, QuantSpec

_torchao: Any = need("torchao.quantization.pt2e", "pt2e", "an observer for torchao")
_specs: Any = need("torchao.quantization.pt2e.quantizer", "pt2e", "a quantizer for torchao")


class SpecObserver(_torchao.ObserverBase):
    """Stands where a value is quantized by a spec, and finds its range where that must be known ahead of time.

    Args:
        spec: how the value is quantized.
        dtype, quant_min, quant_max, qscheme, is_dynamic: the same in torchao's words, which it asks observers for.
        create: makes the observer of a spec; None for a constant, and for a value whose scale is found at run time.
    """

    def __init__(
        self,
        spec: QuantSpec,
        create: Callable[[QuantSpec], observers.Observer] | None,
        dtype: torch.dtype,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.spec, self.quant_min, self.quant_max, self.qscheme = spec, quant_min, quant_max, qscheme
        self.observer = create(spec) if create is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Return a value as it is, after its range was noted."""
        if self.observer is not None:
            self.observer(x.detach())
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point of what was observed; of a constant, `convert` finds them."""
        if self.observer is None:
            raise CalibrationError("the scale of a constant, or one found at run time, is not that of an observer")
        qparams = self.observer.qparams()
        return qparams.scale, qparams.zero_point

    def convert(self, model: fx.GraphModule, node: fx.Node) -> None:
        """Replace the observer's call by a quantize and a dequantize; torchao calls this from `convert_pt2e`.

        Raises:
            CalibrationError: nothing was observed, or a constant holds NaN; names the node.
        """
        source: Any = node.args[0]
        if self.spec.dynamic:
            Dynamic(self.spec).put(node)
        elif self.observer is None:
            tensor = edit.get_tensor(model, source)
            _put(model, node, self.spec, constant_qparams(tensor, self.spec, str(source.target)))
        else:
            try:
                qparams = self.observer.qparams()
            except CalibrationError as error:
                raise CalibrationError(f"%{source.name}: {error}") from None
            _put(model, node, self.spec, qparams)


@cache
def spec_in_torchao(spec: QuantSpec, constant: bool) -> Any:
    """Return torchao's form of a spec: the same object for equal ones, which then share an observer.

    Raises:
        ConfigError: float8, or scales found at run time in a form that quantized_decomposed has no operator for.
    """
    if spec.format.floating or (spec.dynamic and not Dynamic(spec).known):
        raise ConfigError(f"PT2E has no operators for {spec.dtype} {spec.granularity}: choose another recipe")
    create = None if constant or spec.dynamic else observers.create
    by_tensor = spec.axis is None
    schemes = (torch.per_tensor_affine, torch.per_tensor_symmetric)
    return _specs.QuantizationSpec(
        dtype=spec.format.torch_dtype,
        observer_or_fake_quant_ctr=SpecObserver.with_args(spec=spec, create=create),
        quant_min=spec.qmin,
        quant_max=spec.qmax,
        qscheme=(schemes if by_tensor else (torch.per_channel_affine, torch.per_channel_symmetric))[spec.symmetric],
        is_dynamic=False,  # to torchao that means operators of its own, with one scale a tensor
    )


def _put(model: fx.GraphModule, node: fx.Node, spec: QuantSpec, qparams: QParams) -> None:
    """Replace the call of an observer by a quantize and a dequantize with fixed scales."""
    operators, limits = decomposed(), (spec.qmin, spec.qmax, spec.format.torch_dtype)
    kind, scheme, behind = _scheme(model, node, spec, qparams)
    last: tuple[Any, ...] = (torch.float32,) if spec.group_size is not None else ()
    with model.graph.inserting_before(node):
        quantize, dequantize = (getattr(operators, f"{verb}_per_{kind}").default for verb in ("quantize", "dequantize"))
        q = model.graph.call_function(quantize, (node.args[0], *scheme, *limits, *behind))
        edit.replace(node, model.graph.call_function(dequantize, (q, *scheme, *limits, *behind, *last)))


def _scheme(model: fx.GraphModule, node: fx.Node, spec: QuantSpec, qparams: QParams) -> tuple[str, Any, Any]:
    """Return the kind of operator, its arguments before the limits of the integers, and those behind them."""
    if spec.axis is None and spec.group_size is None:
        return "tensor", (float(qparams.scale), int(qparams.zero_point)), ()
    scale = edit.add_constant(model, f"{node.name}_scale", qparams.scale, node)
    zeros = qparams.zero_point.to(torch.int64).expand(qparams.scale.shape).contiguous()
    zero_point = edit.add_constant(model, f"{node.name}_zero_point", zeros, node)
    if spec.group_size is not None:
        return "channel_group", (scale, zero_point), (spec.group_size,)
    return "channel", (scale, zero_point, spec.axis), ()
