"""docs/export.md and the code say the same."""

from pages import ROOT, names_in_table

from fxquant.integrations.onnx.profiles import PROFILES
from fxquant.integrations.onnx.tensorrt import RULES

PAGE = ROOT / "docs" / "export.md"


def test_targets():
    assert names_in_table(PAGE, "target") == list(PROFILES)


def test_rules_of_tensorrt():
    assert names_in_table(PAGE, "rule") == list(RULES)


def test_substitutions():
    sources = "".join(path.read_text() for path in (ROOT / "fxquant" / "integrations" / "onnx").glob("*.py"))
    names = names_in_table(PAGE, "substitution")
    assert len(names) == sources.count("note(gm, node, ")
    assert all(f'"{name}"' in sources for name in names)
