"""In and out of PyTorch 2 export quantization: a graph of torchao in fxquant, a recipe of fxquant in torchao.

pip install fxquant[pt2e]            # and for the last part fxquant[executorch]
python examples/pt2e.py
"""

import importlib
import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import fxquant as fxq

SIZES = ({0: Dim("batch", max=64)},)


def exported(model: nn.Module, x: Tensor) -> Any:
    """Return the module of an exported program, as PT2E takes it."""
    return torch.export.export(model, (x,), dynamic_shapes=SIZES).module()


def by_torchao(model: nn.Module, x: Tensor, quantizer: Any) -> fx.GraphModule:
    """Return the model as torchao quantizes it with a quantizer."""
    flow = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    prepared = flow.prepare_pt2e(exported(model, x), quantizer)
    prepared(x)
    converted: fx.GraphModule = flow.convert_pt2e(prepared)
    return converted


def main() -> None:
    """Quantize by both, lower both, and write one for ExecuTorch."""
    if find_spec("torchao") is None:
        print("torchao is not installed: pip install fxquant[pt2e]")
        return
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval()
    x = torch.randn(8, 64)

    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    theirs = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    graph = by_torchao(model, x, theirs)
    lowered = fxq.lower(graph)  # recognised as what convert_pt2e returns
    print(fxq.ledger(lowered).to_table())
    print(f"largest difference to torchao's graph {(lowered(x) - graph(x)).abs().max():.1e}\n")

    quantizer = importlib.import_module("fxquant.integrations.pt2e.quantizer").FxQuantizer("dynamic")
    ours = by_torchao(model, x, quantizer)
    qdq = fxq.from_pt2e(ours)
    print(f"fxquant's recipe in torchao quantizes {fxq.ledger(qdq).coverage:.0%} of the multiply-accumulates\n")

    with tempfile.TemporaryDirectory() as folder:
        print(fxq.export(qdq, Path(folder, "torch"), format="pt2e").summary())
        if find_spec("executorch") is None:
            print("executorch is not installed: pip install fxquant[executorch]")
            return
        print(fxq.export(qdq, Path(folder, "executorch"), format="executorch").summary())
        runtime = importlib.import_module("executorch.runtime").Runtime.get()
        method = runtime.load_program(Path(folder, "executorch", "model.pte")).load_method("forward")
        print(f"ExecuTorch: largest difference to the Q/DQ graph {(method.execute([x])[0] - qdq(x)).abs().max():.1e}")


if __name__ == "__main__":
    logging.getLogger("torchao").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # of torchao's and ExecuTorch's own code
    main()
