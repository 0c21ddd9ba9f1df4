"""Flags of the C++ kernels on each system."""

import re

from fxquant.kernels.cpu.toolchain import KERNELS, flags, library_sources


def test_every_binding_is_in_one_translation_unit():
    """An op whose binding no unit includes would only be missed when it is called."""
    compiled = "".join(path.read_text() for path in library_sources("x86") if path.name.startswith("bindings_"))
    included = re.findall(r'#include "(binding_.*\.cpp)"', compiled)
    assert sorted(included) == sorted(path.name for path in (KERNELS / "cpu" / "csrc").glob("binding_*.cpp"))


def test_compilers_but_apples_have_openmp():
    assert flags("Linux").compile == ["-O3", "-std=c++20", "-fopenmp"]
    assert flags("Linux").link == ["-fopenmp"]


def test_on_apple_openmp_is_used_where_its_header_is(tmp_path):
    without = flags("Darwin", [tmp_path])
    assert without.compile == ["-O3", "-std=c++20", "-arch", "arm64"]
    assert without.link == ["-arch", "arm64"]
    (tmp_path / "omp.h").touch()
    compiled, linked = flags("Darwin", [tmp_path / "none", tmp_path])
    assert compiled[-3:] == ["-Xpreprocessor", "-fopenmp", f"-I{tmp_path}"]
    assert "-lomp" in linked
