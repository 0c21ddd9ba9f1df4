"""What cpu_encoders.py measures: a system is a model made ready in one way, with a check that it multiplies integers.

Those of torch and fxquant are here, made by peers.py where it has them; OpenVINO, ONNX Runtime and CTranslate2 have
files of their own. A system that cannot be made raises whatever it likes: its row then says why.
"""

import contextlib
import copy
import importlib
import inspect
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import peers
from common import Batch
from encoder_models import Subject
from torch import nn

import fxquant as fxq
from fxquant.evaluation.kernels_ran import float_products, integer_products, kernels_that_ran, other_kernels

Call = Callable[..., Any]


@dataclass(frozen=True)
class System:
    """A model to call with the keyword arguments of a batch.

    `fell_back` says for a batch why its linear layers did not run on integers, "" where they did; `where` is "ragged"
    for a system that differs from another only on ragged batches; `embeds` says whether to judge its embeddings.
    """

    call: Call
    fell_back: Callable[[Batch], str] = lambda batch: ""
    where: str = ""
    embeds: bool = True


@dataclass(frozen=True)
class Context:
    """What systems are made of; what takes long is kept in `folder`, which is the subject's own."""

    subject: Subject
    folder: Path
    threads: int

    @property
    def calibration(self) -> list[Batch]:
        return list(self.subject.material.calibration)


Builder = Callable[[Context], System]


class OnlyTensors(peers.Positional):
    """The positional model in eval mode: exporters restore the mode in which they found the module they were given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.eval()


@contextlib.contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """Let a transformers model compute attention in the way that an exporter recognizes best."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and remarks of converters off the screen."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def traced(call: Call) -> Callable[[Batch], str]:
    """Return a check by torch's profiler: some product ran on integers, and none of a linear layer on floats."""

    def check(batch: Batch) -> str:
        ran = kernels_that_ran(lambda: call(**batch))
        floats = {n: c for n, c in float_products(ran).items() if "attention" not in n and "bmm" not in n}
        if not integer_products(ran) and not other_kernels(ran):
            return "no integer product ran"
        return ", ".join(f"{count} × {name}" for name, count in floats.items())

    return check


def torch_system(build: Callable[[peers.Material], peers.Peer]) -> Builder:
    """Return what makes a system of a peer of minilm.py."""

    def builder(context: Context) -> System:
        peer = build(context.subject.material)
        return System(peer.call, traced(peer.call)) if peer.products == peers.INTEGER else System(peer.call)

    return builder


def torchao_dynamic(context: Context) -> System:
    """Return torchao's dynamic int8, compiled with freezing, which makes it 1.2 to 2 times as fast."""
    quantization = importlib.import_module("torchao.quantization")
    model = copy.deepcopy(context.subject.model)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    call = peers.freeze(OnlyTensors(model))
    return System(call, traced(call))


def dynamic(context: Context) -> System:
    """Return fxquant's dynamic recipe."""
    call = fxq.lower(common.convert(context.subject.material.captured, "dynamic", ()))
    return System(call, traced(call))


def dynamic_zero(context: Context) -> System:
    """Return the same for callers who do not read padded places."""
    if "padded_outputs" not in inspect.signature(fxq.lower).parameters:
        raise RuntimeError("fxquant.lower has no padded_outputs")
    lower: Callable[..., Call] = fxq.lower
    call = lower(common.convert(context.subject.material.captured, "dynamic", ()), padded_outputs="zero")
    return System(call, traced(call), where="ragged")


def from_module(module: str, function: str) -> Builder:
    """Return what calls a builder in a file that is imported only then, as it needs a package that may be missing."""

    def builder(context: Context) -> System:
        system: System = getattr(importlib.import_module(module), function)(context)
        return system

    return builder


EAGER, PACKED, OURS, ZERO = peers.EAGER, peers.PACKED, "fxquant dynamic", "fxquant dynamic, zero"
OPENVINO, FIXED = "OpenVINO int8", "OpenVINO int8, fixed shapes"
ORT_DYNAMIC, ORT_STATIC = "ORT int8 dynamic", "ORT int8 static"
PT2E = "PT2E x86 static, compile"
SYSTEMS: dict[str, Builder] = {
    EAGER: torch_system(peers.eager),
    PACKED: torch_system(peers.packed),
    OURS: dynamic,
    ZERO: dynamic_zero,
    OPENVINO: from_module("peers_openvino", "free_shapes"),
    FIXED: from_module("peers_openvino", "fixed_shapes"),
    ORT_DYNAMIC: from_module("peers_onnxruntime", "dynamic"),
    ORT_STATIC: from_module("peers_onnxruntime", "static"),
    PT2E: torch_system(peers.pt2e),
    "torchao dynamic, compile": torchao_dynamic,
    "torch.ao dynamic, x86": torch_system(peers.torch_ao("x86")),
    "CTranslate2 int8": from_module("peers_ctranslate2", "encoder"),
}
OWN = (EAGER, PACKED, OURS, ZERO)
