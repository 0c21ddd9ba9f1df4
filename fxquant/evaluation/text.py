"""Sentences to calibrate and evaluate with: the user's file, or prose that every machine with Python has."""

import ast
import importlib.util
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from fxquant.errors import DataError

# Modules whose docstrings are mostly prose; the order fixes the order of the sentences.
MODULES = (
    "argparse", "asyncio.events", "asyncio.streams", "bdb", "calendar", "codecs", "collections", "concurrent.futures",
    "configparser", "contextlib", "csv", "datetime", "decimal", "difflib", "doctest", "email.message", "enum",
    "fractions", "ftplib", "functools", "gettext", "heapq", "http.client", "http.cookiejar", "imaplib", "inspect",
    "ipaddress", "json", "locale", "logging", "mailbox", "multiprocessing.pool", "nntplib", "optparse", "os", "pathlib",
    "pdb", "pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "random", "sched", "shelve", "shutil",
    "smtplib", "socket", "socketserver", "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "trace", "turtle", "types", "typing", "unittest.case",
    "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.dom.minidom", "zipfile",
)  # fmt: skip
FEWEST_WORDS, MOST_WORDS = 5, 60
# What shows that a paragraph is code, a table or markup and no prose.
_MARKUP = re.compile(r">>>|::|[|{}<>=\\`_*#\[\]]|--|\.\.\.|^\s*-", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_HOLDERS = (ast.stmt, ast.excepthandler, ast.match_case)
_PROSE = re.compile(r"""[A-Z][A-Za-z0-9 ,;:'"()/.!?%+-]*[.!?]""")


@cache
def standard_library_sentences() -> tuple[str, ...]:
    """Return some three thousand English sentences of 5 to 60 words from the docstrings of Python's standard library.

    They are read from the source files, which are not executed, always in the same order, and none comes twice.
    """
    docstrings = (text for module in MODULES for text in _docstrings(module))
    return _distinct(sentence for text in docstrings for sentence in _sentences(text))


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """Return the sentences of a UTF-8 text file, one a line, without blank lines and repetitions.

    Raises:
        DataError: the file is missing, a directory, unreadable, no text, or has no sentence in it.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; expected a text file with one sentence a line") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; give a text file with one sentence a line") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if b"\0" in data:
        raise DataError(
            f"{path}: is a binary file (a zero byte at {data.index(0)}); give UTF-8 text, a sentence a line"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    found = _distinct(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise DataError(f"{path}: is empty; expected one sentence a line")
    return found


def split_sentences(sentences: tuple[str, ...], held_out: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (the rest, `held_out` sentences spread evenly over all): disjoint sets to calibrate and to evaluate with.

    Raises:
        DataError: there are not more than `held_out` sentences.
    """
    if len(sentences) <= held_out:
        raise DataError(
            f"there are {len(sentences)} different sentences; {held_out} to evaluate with, and some more "
            f"to calibrate with, are needed: give a longer text"
        )
    chosen = {number * len(sentences) // held_out for number in range(held_out)}
    rest = tuple(text for number, text in enumerate(sentences) if number not in chosen)
    return rest, tuple(sentences[number] for number in sorted(chosen))


def _distinct(sentences: Iterable[str]) -> tuple[str, ...]:
    """Drop sentences that differ from an earlier one in nothing but case."""
    found: dict[str, str] = {}
    for sentence in sentences:
        found.setdefault(sentence.casefold(), sentence)
    return tuple(found.values())


def _docstrings(module: str) -> Iterator[str]:
    """Yield the docstrings of a module in the order of its source; nothing where this Python lacks it."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    # In the order of ast.walk, but not into expressions: nine nodes of ten, which hold no docstring.
    nodes: deque[ast.AST] = deque([ast.parse(Path(spec.origin).read_text(encoding="utf-8"))])
    while nodes:
        node = nodes.popleft()
        nodes.extend(each for each in ast.iter_child_nodes(node) if isinstance(each, _HOLDERS))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith(" ") or _MARKUP.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS and _PROSE.fullmatch(sentence):
                yield sentence
