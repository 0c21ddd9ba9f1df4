"""Time models of convolutions in int8 beside float32 and OpenVINO and PT2E: a patch embedding, and CNNs.

    python benchmarks/convolutions.py [--models vit resnet18 resnet50] [--systems …] [--batch 1] [--threads 2]

Weights are random, batch norms have seen something. A row is a system: the median time of a call, its quartiles, how
many times as fast as torch's float32 with channels last it is, and the SQNR of its result against float32, in dB, which
says that it computes what it should. A peer that is not installed is left out, with a line that says so.
"""

import argparse
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
import transformers
from systems import quiet
from tabulate import tabulate
from torch import Tensor, nn
from turns import take_turns

import fxquant as fxq
from fxquant.numerics import sqnr

Call = Callable[[], Tensor]
CALIBRATION = 4  # batches
BASE = "float32, channels last"


class Logits(nn.Module):
    """An image model with one tensor in and one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, or patch embeddings."""
        found = self.model(images)
        result: Tensor = found if isinstance(found, Tensor) else found.logits
        return result


def vit() -> nn.Module:
    """Return ViT-base's patch embedding."""
    return transformers.models.vit.modeling_vit.ViTPatchEmbeddings(transformers.ViTConfig())


def resnet(depth: int) -> nn.Module:
    """Return ResNet-18 or ResNet-50."""
    shapes: dict[int, dict[str, Any]] = {
        18: {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
        50: {"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
    }
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**shapes[depth], num_labels=1000))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return model


MODELS = {"vit": vit, "resnet18": partial(resnet, 18), "resnet50": partial(resnet, 50)}


def images(batch: int, seed: int) -> Tensor:
    """Return images with values as normalisation gives them."""
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def eager(model: nn.Module, x: Tensor) -> Call:
    """Return the model as it is."""
    return lambda: model(x)


def channels_last(model: nn.Module, x: Tensor) -> Call:
    """Return the model with its images and weights in the order that oneDNN prefers."""
    ordered = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wide = x.to(memory_format=torch.channels_last)
    return lambda: ordered(wide)


def fxquant_of(recipe: str) -> Callable[[nn.Module, Tensor], Call]:
    """Return what builds this library's form of a model."""

    def build(model: nn.Module, x: Tensor) -> Call:
        batches = [(images(len(x), seed),) for seed in range(CALIBRATION)]
        lowered = fxq.quantize(model, (x,), recipe=recipe, calibration=batches, progress=False)
        return lambda: lowered(x)

    return build


def openvino(model: nn.Module, x: Tensor) -> Call:
    """Return the model quantized by NNCF, with fixed shapes, the rest in float32."""
    ov, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    with quiet(), torch.no_grad():
        converted = ov.convert_model(model, example_input=x, input=[tuple(x.shape)])
        data = nncf.Dataset([images(len(x), seed).numpy() for seed in range(CALIBRATION)])
        quantized = nncf.quantize(converted, data, subset_size=CALIBRATION)
    threads = torch.get_num_threads()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(quantized, "CPU", hints).create_infer_request()
    return lambda: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])


def pt2e(model: nn.Module, x: Tensor) -> Call:
    """Return the model quantized by torchao's PT2E for x86 with static scales, and compiled with frozen weights."""
    flow = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    config = importlib.import_module("torch._inductor.config")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(model, (x,)).module()
    prepared = flow.prepare_pt2e(exported, quantizer)
    for seed in range(CALIBRATION):
        prepared(images(len(x), seed))
    fast = torch.compile(flow.convert_pt2e(prepared))
    with config.patch(freezing=True):
        fast(x)  # freezing matters at the call that compiles
    return lambda: fast(x)


SYSTEMS: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "float32": eager,
    BASE: channels_last,
    "fxquant dynamic": fxquant_of("dynamic"),
    "fxquant static": fxquant_of("static"),
    "OpenVINO int8": openvino,
    "PT2E int8": pt2e,
}
NEEDS = {"OpenVINO int8": ("openvino", "nncf"), "PT2E int8": ("torchao",)}


def table(name: str, chosen: list[str], batch: int, rounds: int) -> str:
    """Return the table of a model."""
    torch.manual_seed(0)
    calls, expected, x = dict[str, Call](), None, images(batch, 99)
    for system in [BASE, *(each for each in chosen if each != BASE)]:
        torch.manual_seed(0)
        calls[system] = SYSTEMS[system](Logits(MODELS[name]()).eval(), x)
    found = take_turns(calls, rounds, 0)
    expected = calls[BASE]()
    rows = []
    for system, timing in found.items():
        spread = f"{timing.low * 1e3:.2f}–{timing.high * 1e3:.2f}"
        faster = f"{found[BASE].median / timing.median:.2f}"
        rows.append([system, f"{timing.median * 1e3:.2f}", spread, faster, f"{sqnr(expected, calls[system]()):.1f}"])
    title = f"{name}, batch {batch}"
    return tabulate(rows, [title, "ms", "quartiles", "times", "SQNR dB"], disable_numparse=True)


def available(system: str) -> bool:
    """Say whether a system's packages are installed, and print which are missing."""
    missing = [each for each in NEEDS.get(system, ()) if importlib.util.find_spec(each) is None]
    if missing:
        print(f"left out: {system} needs {', '.join(missing)}")
    return not missing


def main() -> None:
    """Print the machine and a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(common.machine())
    chosen = [system for system in options.systems if available(system)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the peers about themselves
        for name in options.models:
            print(f"\n{table(name, chosen, options.batch, options.rounds)}")


if __name__ == "__main__":
    main()
