"""What is freed goes back to the system."""

from pathlib import Path

import pytest
import torch

from fxquant.memory import _trim, give_back


def resident():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) << 10


@pytest.mark.skipif(_trim() is None, reason="the C library keeps what it has")
def test_holes_between_live_blocks_are_given_back():
    size = 1 << 16  # bytes, too few for a mapping of its own
    blocks = [torch.ones(size, dtype=torch.uint8) for _ in range(1000)]
    live = blocks[::10] + blocks[-1:]
    before = resident()
    del blocks
    give_back()
    assert before - resident() > 500 * size
    assert all(bool(each.all()) for each in live)


def test_nothing_is_done_where_there_is_no_way(monkeypatch):
    monkeypatch.setattr("fxquant.memory._trim", lambda: None)
    give_back()
