"""A Q/DQ graph as an ONNX file: the passes of a target's profile, torch's exporter, and what is set right behind it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph.modes import quiet_torch
from fxquant.integrations.flat import Flat, flattened
from fxquant.integrations.onnx.expressible import check_expressible, refused
from fxquant.integrations.onnx.profiles import PROFILES, Profile
from fxquant.integrations.packages import need
from fxquant.integrations.substitutions import Written, substitutions

DEFAULT = "onnxruntime"
PACKAGES = ("onnx", "onnxscript")


def write_onnx(gm: fx.GraphModule, folder: Path, name: str, target: str | None) -> Written:
    """Write a converted graph as `name`.onnx for a target of `PROFILES`, and return what was substituted.

    A model beyond what a protobuf file may hold keeps its tensors in `name`.onnx.data.

    Raises:
        ConfigError: an unknown target.
        MissingExtraError: a package that exporting needs is not installed.
        ExportError: the target cannot express an op.
    """
    for package in PACKAGES:
        need(package, "onnx", "export to ONNX")
    chosen = target or DEFAULT
    profile = PROFILES[chosen]
    dialect = profile.dialect(gm)
    check_expressible(dialect, chosen)
    profile.check(dialect)
    program = _export(flattened(dialect), profile, chosen)
    from fxquant.integrations.onnx.model_file import finish  # noqa: PLC0415  # needs onnx_ir

    finish(program, dialect, folder / f"{name}.onnx", chosen, profile.form)
    return Written(substitutions(dialect))


def _export(flat: Flat, profile: Profile, target: str) -> Any:
    from fxquant.integrations.onnx.translations import table  # noqa: PLC0415  # needs onnxscript

    try:
        with torch.no_grad(), quiet_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code about itself
            return torch.onnx.export(
                flat.module,
                flat.example,
                dynamo=True,
                verbose=False,
                opset_version=profile.opset,
                dynamic_shapes=flat.sizes,
                custom_translation_table=table(),
                input_names=[leaf.name for leaf in flat.inputs],
                output_names=flat.outputs,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(refused(flat.module, error, target)) from error
