"""Packages that integrations need, missing or too old."""

import sys

import pytest

import fxquant as fxq
from fxquant.integrations.packages import need


def test_package_that_is_there():
    assert need("torch", "x", "this", (2, 0)).__name__ == "torch"


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum", None)
    with pytest.raises(
        fxq.MissingExtraError, match=r"that needs the package optimum.*pip install 'fxquant\[optimum\]'"
    ):
        need("optimum", "optimum", "that")


def test_old_package_names_the_version():
    with pytest.raises(ImportError, match=r"this needs torch 99.1 or newer, found .*pip install 'fxquant\[x\]'"):
        need("torch", "x", "this", (99, 1))
