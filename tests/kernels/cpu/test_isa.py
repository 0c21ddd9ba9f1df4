"""Which processor has which instruction sets, and what the variable may force."""

import pytest

from fxquant.errors import ConfigError
from fxquant.kernels.cpu import isa, native, toolchain


@pytest.mark.parametrize(
    ("machine", "folder"),
    [("x86_64", "x86"), ("AMD64", "x86"), ("aarch64", "arm"), ("arm64", "arm"), ("ppc64le", None)],
)
def test_micro_kernels_of_a_processor(monkeypatch, machine, folder):
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    assert isa.micro_kernels() == folder
    if folder:
        assert (toolchain.KERNELS / folder / "csrc" / "detect.cpp").is_file()


@pytest.mark.parametrize(("machine", "foreign"), [("x86_64", "neon"), ("aarch64", "avx2"), ("riscv64", "neon_i8mm")])
def test_an_instruction_set_of_another_processor_is_an_error(monkeypatch, machine, foreign):
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    monkeypatch.setenv(isa.VARIABLE, foreign)
    with pytest.raises(ConfigError, match=f"FXQUANT_ISA = '{foreign}' is not of this processor, {machine}: .*portable"):
        isa.forced_isa()


def test_an_unknown_one_names_the_nearest_of_any_processor(monkeypatch):
    monkeypatch.setenv(isa.VARIABLE, "neon_i8m")
    with pytest.raises(ConfigError, match="'neon_i8m' is not known: did you mean 'neon_i8mm'"):
        isa.forced_isa()


def test_one_that_this_cpu_lacks_is_an_error(monkeypatch):
    if not isa.NATIVE:
        pytest.skip("there are no C++ kernels for this processor")
    monkeypatch.setenv(isa.VARIABLE, isa.NATIVE[0])
    monkeypatch.setattr(native, "_load", lambda: None)

    def lacking(name):
        raise RuntimeError(f"fxquant: this CPU has no {name}; it has none\n  more of a trace")

    monkeypatch.setattr(native, "use_isa", lacking)
    with pytest.raises(
        ConfigError, match=f"^FXQUANT_ISA = '{isa.NATIVE[0]}': fxquant: this CPU has no .*; it has none$"
    ):
        native._usable.__wrapped__()
