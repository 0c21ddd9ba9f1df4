import pytest
import torch

from fxquant.errors import ConfigError
from fxquant.kernels.x86 import isa as isa_module
from fxquant.kernels.x86.isa import isa


def test_the_environment_forces_an_isa_once(on_isa, monkeypatch):
    on_isa("portable")
    assert isa() == "portable"
    monkeypatch.setenv("FXQUANT_ISA", "onednn")
    assert isa() == "portable"


def test_an_unknown_isa_names_the_known_ones(on_isa):
    on_isa("onedn")
    with pytest.raises(ConfigError, match="FXQUANT_ISA = 'onedn' is not known: did you mean 'onednn'"):
        isa()


def test_a_machine_that_saturates_gets_the_portable_kernels(monkeypatch):
    def saturating(a, b):
        return torch.full((a.shape[0], b.shape[1]), 32767 * 32, dtype=torch.int32)

    monkeypatch.delenv("FXQUANT_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(isa_module.torch, "_int_mm", saturating)
    isa.cache_clear()
    assert isa() == "portable"
    isa.cache_clear()
