"""Building the C++ kernels: cached, refused with a clear warning, never in the way of running."""

from functools import cache

import pytest
import torch

from fxquant.errors import FxQuantWarning
from fxquant.kernels.cpu import isa, native, toolchain


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Use an empty cache; what is loaded stays remembered, as it must not be loaded again from another file."""
    monkeypatch.setenv(native.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_usable", cache(native._usable.__wrapped__))
    return tmp_path


def test_without_a_compiler_a_warning_says_so(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(FxQuantWarning, match="no C\\+\\+ compiler: 'no-such-compiler' is not found"):
        assert not native.available()


def test_a_failed_build_is_one_line_and_leaves_nothing(fresh, monkeypatch):
    broken = fresh / "csrc"
    broken.mkdir()
    (broken / "a.cpp").write_text("int main( { return missing; }\n")
    monkeypatch.setattr(toolchain, "core_folders", lambda processor: [broken])
    with pytest.warns(FxQuantWarning, match=r"slower operators run instead: .*a\.cpp:1.* error: ") as caught:
        assert not native.available()
    assert "\n" not in str(caught[0].message)
    assert [path for path in (fresh / "cache").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", isa.TORCH)
def test_the_variable_turns_them_off(fresh, monkeypatch, name):
    monkeypatch.setenv(isa.VARIABLE, name)
    assert not native.available()


def test_another_processor_has_none(fresh, monkeypatch):
    monkeypatch.setattr(isa.platform, "machine", lambda: "riscv64")
    assert not native.available()


def test_a_library_is_named_by_sources_and_torch(fresh, monkeypatch):
    first = native._library()
    assert first.parent == fresh / "cache"
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert native._library() != first


def test_a_library_that_another_process_built_meanwhile_is_loaded(fresh, monkeypatch):
    library, calls = native._library(), []
    monkeypatch.setattr(native, "_build", lambda sources, library: calls.append("build"))
    monkeypatch.setattr(torch.ops, "load_library", lambda library: calls.append("load"))

    class Awaited(native.FileLock):
        def acquire(self, *args, **kwargs):
            library.touch()
            return super().acquire(*args, **kwargs)

    monkeypatch.setattr(native, "FileLock", Awaited)
    native._load()
    assert calls == ["load"]


def test_builds_only_what_the_cache_has_not(fresh, monkeypatch):
    calls = []
    monkeypatch.setattr(native, "_build", lambda sources, library: calls.append(("build", library)))
    monkeypatch.setattr(torch.ops, "load_library", lambda library: calls.append(("load", library)))
    native._load()
    native._library().parent.mkdir(parents=True, exist_ok=True)
    native._library().touch()
    native._load()
    assert calls == [("build", native._library()), ("load", native._library())]
