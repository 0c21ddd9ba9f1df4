"""A quantized model as OpenVINO's own files, which say what ONNX cannot: how activations are quantized at run time.

pip install fxquant[openvino]
python examples/export_openvino.py
"""

import importlib
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxquant as fxq


class FeedForward(nn.Module):
    """A feed-forward block with its residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(128), nn.Linear(128, 256), nn.Linear(256, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, 128) for x (rows, 128)."""
        return x + self.down(functional.gelu(self.up(self.norm(x))))


def main() -> None:
    """Quantize with scales found at run time, export, run, and show in what precision the linears ran."""
    if any(find_spec(name) is None for name in ("openvino", "onnxscript")):
        print("OpenVINO is not installed: pip install fxquant[openvino]")
        return
    torch.manual_seed(0)
    model, x = FeedForward().eval(), torch.randn(4, 128)
    quantized = fxq.quantize(model, (x,), backend="openvino", recipe="dynamic")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        print(fxq.export(quantized, Path(folder, "files"), format="openvino").summary())
        core = importlib.import_module("openvino").Core()
        # the files state how activations are quantized; what is not quantized runs in the precision given here
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(Path(folder, "files", "model.xml"), "CPU", options)
        rows = torch.randn(9, 128)  # sizes are free
        found = torch.from_numpy(compiled([rows.numpy()])[0])
        print(f"largest difference to the float model: {(found - model(rows)).abs().max():.1e}")
        for node in compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            if facts["layerType"].astype(str) == "FullyConnected":
                print(f"{node.get_friendly_name()}: {facts['runtimePrecision'].astype(str)}")


if __name__ == "__main__":
    main()
