import importlib
from pathlib import Path

import pytest
from folders import write_bert

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Return what imports a script by name, as Python finds it when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_bert(tmp_path_factory.mktemp("bert")))
