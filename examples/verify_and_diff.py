"""An artifact on several runtimes, and two artifacts against each other, as continuous integration would do it.

    python examples/verify_and_diff.py [RUNTIME ...]      # onnxruntime unless named; or openvino, executorch

The same from a shell: fxquant verify ARTIFACT; fxquant lock ARTIFACT FILE; fxquant diff OLD NEW.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import fxquant as fxq


def main() -> None:
    """Verify one artifact, and compare it with one that is as good and one that is worse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval()
    batches = [(torch.randn(4, 16, 64),) for _ in range(4)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        released = fxq.save(fxq.quantize(model, batches[0], recipe="static", calibration=batches), folder / "released")
        again = fxq.save(fxq.quantize(model, batches[0], recipe="static", calibration=batches[:2]), folder / "again")
        last_in_float = fxq.Recipe(base="static", overrides=[fxq.Override(path="2", quantize=False)])
        worse = fxq.save(
            fxq.quantize(model, batches[0], recipe=last_in_float, calibration=batches), folder / "half-float"
        )

        found = fxq.verify(released, rounds=3, backends=["reference", "x86"], runtimes=sys.argv[1:] or ["onnxruntime"])
        print(found.to_table())
        print("problems:", "; ".join(found.problems) or "none", end="\n\n")

        for new in (again, worse):
            changes = fxq.diff(released, new)
            print(f"{new.name}: {len(changes.regressions)} regressions", *changes.regressions, sep="\n  ")


if __name__ == "__main__":
    main()
