import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxquant import atomic


def write(folder, text):
    with atomic.replacing(folder) as partial:
        (partial / "a").write_text(text)
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text(text)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD, NEW = {"a": "old", "deep/b": "old"}, {"a": "new", "deep/b": "new"}


def test_a_new_folder_appears_with_its_parents(tmp_path):
    write(tmp_path / "x" / "y", "new")
    assert contents(tmp_path / "x" / "y") == NEW
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y"]


def test_a_folder_is_replaced_and_nothing_left_behind(tmp_path):
    write(tmp_path / "f", "old")
    (tmp_path / "f" / "stale").write_text("old")
    write(tmp_path / "f", "new")
    assert contents(tmp_path / "f") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_failing_block_changes_nothing(tmp_path):
    write(tmp_path / "f", "old")
    with pytest.raises(OSError, match="full"), atomic.replacing(tmp_path / "f") as partial:
        (partial / "a").write_text("new")
        raise OSError("disk full")
    assert contents(tmp_path / "f") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "f", "old")
    real = Path.rename

    def rename(path, target):
        if path.suffix == ".partial":
            raise OSError("no rename")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no rename"):
        write(tmp_path / "f", "new")
    assert contents(tmp_path / "f") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


WRITER = """
import importlib.util, os, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
left = int(sys.argv[3])

def dying(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

for name in ("mkdir", "rename", "fsync", "rmdir", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
with atomic.replacing(Path(sys.argv[2])) as partial:
    (partial / "a").write_text("new")
    (partial / "deep").mkdir()
    (partial / "deep" / "b").write_text("new")
"""


def killed_writer(folder, calls):
    """Run a writer that dies at its system call number `calls`; return whether it lived."""
    command = [sys.executable, "-I", "-S", "-c", WRITER, atomic.__file__, str(folder), str(calls)]
    code = subprocess.run(command, check=False).returncode
    assert code in (0, 9)
    return code == 0


def test_a_writer_killed_anywhere_leaves_the_old_or_the_new(tmp_path):
    seen = []
    for calls in range(40):
        folder = tmp_path / str(calls) / "f"
        write(folder, "old")
        lived = killed_writer(folder, calls)
        found = contents(atomic.find(folder))
        assert found in (OLD, NEW)
        seen.append(found["a"])
        write(folder, "next")
        assert contents(folder) == {"a": "next", "deep/b": "next"}
        assert not atomic.previous(folder).exists()
        if lived:
            break
    assert lived
    assert seen == sorted(seen, reverse=True)  # old, old, …, new: never back
    assert seen.count("old") > 4
    assert seen.count("new") > 1


def test_between_the_renames_the_old_contents_are_found(tmp_path):
    write(tmp_path / "f", "old")
    (tmp_path / "f").rename(atomic.previous(tmp_path / "f"))
    assert contents(atomic.find(tmp_path / "f")) == OLD
    with pytest.raises(KeyboardInterrupt), atomic.replacing(tmp_path / "f"):
        assert contents(tmp_path / "f") == OLD
        raise KeyboardInterrupt
    assert contents(tmp_path / "f") == OLD


def test_a_folder_that_is_there_wins_over_the_previous(tmp_path):
    write(tmp_path / "f", "new")
    write(atomic.previous(tmp_path / "f"), "old")
    assert atomic.find(tmp_path / "f") == tmp_path / "f"


def test_what_dead_writers_left_is_removed_and_live_ones_are_not(tmp_path):
    folder = tmp_path / "f[1]"
    for name, age in (("dead", 7200), ("alive", 60)):
        partial = tmp_path / f".{folder.name}.{name}.partial"
        partial.mkdir()
        (partial / "a").write_text("")
        for path in (partial / "a", partial):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / ".other.dead.partial").mkdir()
    write(folder, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f[1].alive.partial", ".other.dead.partial", "f[1]"]
