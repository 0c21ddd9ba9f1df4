"""Backends of other installed packages: found by name, named where they are broken, never in each other's way."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from backend_files import weights_alone

import fxquant as fxq
from fxquant.backends import known_backends, load_backend, plugins

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_backend"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package `NAME` with a backend of that name whose module is this code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.plugin_file.cache_clear()
    installed = []

    def put(name, code, target="backend"):
        installed.append(name)
        (tmp_path / f"{name}_module.py").write_text(textwrap.dedent(code))
        (tmp_path / f"{name}.toml").write_text(weights_alone(name))
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fxquant.backends]\n{name} = {name}_module:{target}\n")

    yield put
    plugins.plugin_file.cache_clear()
    for name in installed:
        sys.modules.pop(f"{name}_module", None)


SOUND = """
    from pathlib import Path

    def backend():
        return Path(__file__).with_name("sound.toml")
"""


def test_an_installed_backend_is_found_by_its_name(install):
    install("sound", SOUND)
    assert known_backends()[-1] == "sound"
    assert load_backend("sound").name == "sound"
    assert load_backend("sound").source.endswith("sound.toml")


def test_names_are_known_before_anything_is_imported(install):
    install("sound", "raise RuntimeError")
    assert plugins.plugin_names() == ("sound",)
    assert "sound_module" not in sys.modules
    with pytest.raises(fxq.ConfigError, match=r"unknown backend 'sund': did you mean 'sound'\?"):
        load_backend("sund")


BROKEN = {
    "import": ("import no_such_driver", "backend", r"ModuleNotFoundError: No module named 'no_such_driver'"),
    "function": ("", "backend", r"AttributeError: .*backend"),
    "raises": ("def backend(): raise OSError('no card')", "backend", r"cannot be loaded: OSError: no card"),
    "no path": ("def backend(): return 3", "backend", r"gives 3: expected the path of its \.toml file"),
    "no file": ("def backend(): return 'absent.toml'", "backend", r"gives 'absent\.toml': expected the path"),
}


@pytest.mark.parametrize(("code", "target", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_backend_is_named_and_disturbs_no_other(install, code, target, text):
    install("sound", SOUND)
    install("broken", code, target)
    with pytest.raises(fxq.ConfigError, match=rf"^backend 'broken' of the package 'broken' \(.*\) .*{text}"):
        load_backend("broken")
    with pytest.warns(fxq.FxQuantWarning, match=r"backend 'broken' of the package .*\. It is left out") as caught:
        assert plugins.load_plugins() == ("sound",)
    assert len(caught) == 1
    assert load_backend("sound").name == "sound"
    assert load_backend("reference").name == "reference"


def test_a_packaged_name_is_the_packaged_backend(install):
    install("reference", "raise RuntimeError")
    assert load_backend("reference").source == "reference.toml"
    assert len(known_backends()) == len(set(known_backends()))


def test_an_unknown_kernel_set_is_looked_for_in_installed_packages(install, tmp_path):
    install("sound", SOUND + "    raise ImportError('no driver')")
    path = tmp_path / "mine.toml"
    path.write_text(weights_alone("mine").replace('"reference"', '"npu"'))
    with (
        pytest.warns(fxq.FxQuantWarning, match="backend 'sound' .*no driver"),
        pytest.raises(fxq.ConfigError, match=r"mine\.toml: unknown kernel set 'npu'"),
    ):
        load_backend(path)


def test_the_example_installs_and_passes_its_own_test(tmp_path):
    """As its user would: pip, without network, then pytest on the installed package."""
    source, target = shutil.copytree(EXAMPLE, tmp_path / "source"), tmp_path / "site"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(source / "tests")]
    done = subprocess.run(tests, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
