"""Texts kept in `tests/goldens`: compared, or written anew where FXQUANT_UPDATE_GOLDENS=1 is set."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "goldens"


def check_golden(name, text):
    """Compare `text` with the golden file of this name."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("FXQUANT_UPDATE_GOLDENS") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no golden {path.name}: write it with FXQUANT_UPDATE_GOLDENS=1"
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; FXQUANT_UPDATE_GOLDENS=1 accepts the change"
