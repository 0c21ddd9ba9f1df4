"""The README keeps its word: its Python runs, its commands exist, its ledger is one that fxquant writes."""

import shlex

import pytest
import torch
from pages import PAGES, ROOT, blocks, run_python, write_files
from torch import nn

import fxquant as fxq
from fxquant.cli import _parser, main
from fxquant.kernels.cpu import native
from fxquant.passes.base import Pipeline
from fxquant.passes.canonicalize import canonicalize

README = ROOT / "README.md"
COMMANDS = [
    pytest.param(line, id=f"{page.name}-{line.partition('#')[0].strip()}")
    for page in PAGES
    for text in blocks(page, "sh")
    for line in text.splitlines()
]


class Negated(nn.Module):
    def forward(self, x):
        return x.neg().neg().neg().neg().neg().exp()


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The folder in which the README's blocks ran, and the names they left."""
    folder = tmp_path_factory.mktemp("readme")
    write_files(README, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run_python(README)


def test_quickstart_reloads_the_same_bits(readme):
    _, names = readme
    with torch.no_grad():
        outputs, again = names["outputs"], names["again"](**names["example_inputs"])
    assert torch.equal(outputs.last_hidden_state, again.last_hidden_state)
    assert type(outputs) is type(names["model"](**names["example_inputs"]))


def test_quickstart_has_six_lines():
    assert len(blocks(README, "python")[0].replace("\n\n", "\n").splitlines()) == 6


def test_pass_removes_double_negatives(readme):
    _, names = readme
    x = torch.randn(3)
    graph = canonicalize(fxq.capture(Negated(), (x,)))
    Pipeline((names["RemoveDoubleNegatives"](),)).run(graph)
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.neg.default", "aten.exp.default"]
    torch.testing.assert_close(graph(x), (-x).exp(), rtol=0, atol=0)


def test_backend_file_is_valid(readme, capsys):
    folder, _ = readme
    assert main(["backend", "check", str(folder / "mine.toml")]) == 0
    assert "mine.toml is valid" in capsys.readouterr().out


def test_exported_graph_gives_the_same_numbers(readme):
    _, names = readme
    found = names["exported"].module()(**names["example_inputs"])
    assert torch.equal(found.last_hidden_state, names["lowered"](**names["example_inputs"]).last_hidden_state)


def test_ledger_excerpt_is_one(readme):
    _, names = readme
    head, _, *rows = blocks(README, "text")[0].partition("\n\n")[0].splitlines()
    table = fxq.ledger(fxq.quantize(names["model"], names["example_inputs"])).to_table()
    assert head.split() == table.splitlines()[0].split()
    starts = [head.index(column) for column in head.split()]
    assert len(rows) >= 5
    for row in rows:
        op, _, _, _, dtype, kernel, reason = (
            row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)
        )
        matching = [line for line in table.splitlines() if line.startswith(f"{op} ")]
        wanted = [dtype, kernel] if native.available() else [dtype]
        assert any(all(cell in line for cell in wanted) and line.endswith(reason) for line in matching), row


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    name, *arguments = shlex.split(command, comments=True)
    if name == "fxquant":
        _parser().parse_args(arguments)  # leaves with an error where it does not know a command or an option
    elif name == "make":
        targets = [line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()]
        assert arguments[0] in targets
    else:
        assert name == "python"
        assert (ROOT / arguments[0]).is_file()
