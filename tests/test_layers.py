"""Imports point one way: down the list of layers. This is the map that docs/design.md draws."""

import ast
from pathlib import Path

import pytest

import fxquant

ROOT = Path(fxquant.__file__).parent
# From the top to the ground; names on one line are of one height and do not import each other.
LAYERS = [
    ["fxquant"],
    ["__main__"],
    ["cli"],
    ["commands"],
    ["integrations"],
    ["verification"],
    ["evaluation"],
    ["search"],
    ["quantize"],
    ["artifact"],
    ["stages", "tensor_file"],
    ["ledger"],
    ["qat"],
    ["calibration", "ladder"],
    ["capture_generation"],
    ["recording"],
    ["portable", "program"],
    ["generation"],
    ["algorithms"],
    ["transforms"],
    ["passes"],
    ["backends"],
    ["ops"],
    ["kernels"],
    ["graph"],
    ["observers"],
    ["numerics"],
    ["recipe"],
    ["spec", "config"],
    ["registry", "atomic", "manifest", "memory"],
    ["errors"],
]
HEIGHT = {name: -height for height, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "fxquant"


def imported_modules(path: Path) -> set[str]:
    """Return the fxquant modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {
                f"{node.module}.{alias.name}" if node.module == "fxquant" else str(node.module) for alias in node.names
            }
    return {name for name in found if name == "fxquant" or name.startswith("fxquant.")}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_imports_point_down(path):
    own = layer_of(module_of(path))
    assert own in HEIGHT, f"{own} has no place in LAYERS"
    for module in imported_modules(path):
        other = layer_of(module)
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{module_of(path)} imports {module}, which is not below it"


def test_nothing_imports_torch_ao():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [name for name in names if name.startswith(("torch.ao", "torchao"))], path.name


def test_only_capture_exports():
    """torch.export is called in one place."""
    callers = [module_of(path) for path in FILES if "torch.export.export(" in path.read_text()]
    assert callers == ["fxquant.graph.capture"]
