"""fxquant: torch.fx graph-rewriting passes that quantize Transformer models and say what they did."""

from importlib.metadata import PackageNotFoundError, version

from fxquant import transforms
from fxquant.artifact import load, save
from fxquant.backends import Backend, load_backend
from fxquant.calibration import calibrate
from fxquant.capture_generation import capture_generation
from fxquant.errors import (
    ArtifactError,
    CalibrationError,
    CaptureError,
    ConfigError,
    CoverageError,
    DataError,
    ExportError,
    FxQuantError,
    FxQuantWarning,
    InputError,
    MissingExtraError,
)
from fxquant.evaluation.compare import Comparison, compare
from fxquant.integrations import plugin
from fxquant.integrations.checkpoints.load import load_checkpoint
from fxquant.integrations.dynamo import compiled, register
from fxquant.integrations.export import Exported, export
from fxquant.integrations.pt2e.inwards import from_pt2e
from fxquant.integrations.pt2e.outwards import to_pt2e
from fxquant.integrations.verify import verify
from fxquant.ladder import capture
from fxquant.ledger import Ledger
from fxquant.program import Program
from fxquant.quantize import ledger, quantize
from fxquant.recipe import Override, Recipe
from fxquant.recording import cuda_graphs
from fxquant.spec import QuantSpec
from fxquant.stages import convert, lower, prepare
from fxquant.verification.changes import Thresholds
from fxquant.verification.diff import Diff, diff
from fxquant.verification.verification import Verification

try:
    __version__ = version("fxquant")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

register()
plugin.register()

__all__ = [
    "ArtifactError",
    "Backend",
    "CalibrationError",
    "CaptureError",
    "Comparison",
    "ConfigError",
    "CoverageError",
    "DataError",
    "Diff",
    "ExportError",
    "Exported",
    "FxQuantError",
    "FxQuantWarning",
    "InputError",
    "Ledger",
    "MissingExtraError",
    "Override",
    "Program",
    "QuantSpec",
    "Recipe",
    "Thresholds",
    "Verification",
    "__version__",
    "calibrate",
    "capture",
    "capture_generation",
    "compare",
    "compiled",
    "convert",
    "cuda_graphs",
    "diff",
    "export",
    "from_pt2e",
    "ledger",
    "load",
    "load_backend",
    "load_checkpoint",
    "lower",
    "prepare",
    "quantize",
    "save",
    "to_pt2e",
    "transforms",
    "verify",
]
