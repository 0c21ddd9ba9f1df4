"""The pages of the documentation, taken apart: code blocks, tables and links; and what their Python blocks run on."""

import re
from pathlib import Path

import models

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([^`]+)`")


def blocks(page, language):
    """Return the contents of the page's blocks in a language, in order."""
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def names_in_table(page, first_header):
    """Return the code names in the first column of the table whose first header is this; [] where there is none."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"| {first_header} |"):
            rows = lines[number + 2 :]
            end = next((at for at, row in enumerate(rows) if not row.startswith("|")), len(rows))
            return [name for row in rows[:end] for name in _NAME.findall(row.split("|")[1])]
    return []


def headings(page):
    """Return the anchors of the page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in found}


def links(page):
    """Return the targets of the page's links that lie in the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in found if not target.startswith("http")]


def write_files(page, folder):
    """Write each TOML block that begins with its name, as in `# mine.toml`, into `folder`."""
    for text in blocks(page, "toml"):
        name = re.match(r"# (\w+\.toml)\n", text)
        if name:
            (folder / name[1]).write_text(text, encoding="utf-8")


def run_python(page):
    """Run the page's Python blocks one after the other on a tiny BERT, and return the names they left."""
    layers = 2 if page.stem == "recipes" else 1  # its recipe treats the first of several in a way of its own
    model, example_inputs = models.bert(layers)
    batches = [models.encoder_inputs(seed=seed) for seed in range(3)]
    namespace = {"__name__": "page", "model": model, "example_inputs": example_inputs, "batches": batches}
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, python block {number}", "exec"), namespace)
    return namespace
