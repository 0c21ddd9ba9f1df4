import contextlib
import importlib
import io
from pathlib import Path

import pytest
from folders import write_bert

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """Return what imports a script by name, as Python finds it when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module


@pytest.fixture(scope="module")
def printed(script):
    """Return what runs a script and returns what it prints."""

    def run(name, *options):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            script(name).main(list(options))
        return shown.getvalue()

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_bert(tmp_path_factory.mktemp("bert")))
