"""The pages under docs/ and the code say the same: tables, layers, links, examples and goldens."""

import re
from dataclasses import fields

import pytest
import torch
from golden import FOLDER as GOLDENS
from pages import PAGES, ROOT, blocks, headings, links, names_in_table, run_python, write_files
from test_layers import LAYERS

import fxquant as fxq
from fxquant.backends import load_backend, packaged_backends, schema
from fxquant.backends.rules import INNER, LIMITED
from fxquant.kernels.cpu import isa
from fxquant.kernels.devices import Device
from fxquant.kernels.table import KERNEL_SETS
from fxquant.observers import OBSERVERS
from fxquant.ops import OPS
from fxquant.passes.canonicalize import CANONICAL, canonicalize
from fxquant.passes.claims import UNINTENDED, Reason
from fxquant.passes.lowering import LOWERING
from fxquant.recipe import SPEC_FIELDS, Override, Recipe
from fxquant.verification.backend import check_backend
from fxquant.verification.tables import limits_tables

DOCS = {page.stem: page for page in PAGES}
NEEDS = {"optimum": "optimum", "transformers": "transformers.exporters.quantizers"}
WITH_PYTHON = [page for page in PAGES if page.name != "README.md" and blocks(page, "python")]


class Scaled(torch.nn.Module):
    def forward(self, x):
        return x / 8.0 + x / 3.0


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem], reason="the page is of a package that is not there, or too old")
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    names = run_python(page)
    if page.stem == "passes":
        x = torch.randn(4)
        graph = canonicalize(fxq.capture(Scaled(), (x,)))
        assert names["MultiplyByPowers"]().apply(graph) == 1
        graph.recompile()
        torch.testing.assert_close(graph(x), Scaled()(x), rtol=0, atol=0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        assert not anchor or anchor in headings(other), target


def test_layers_are_those_of_the_test():
    (listing,) = re.findall(r"## Layers: imports point down\n\n((?:    .+\n)+)", DOCS["design"].read_text())
    drawn = [re.split(r" {2,}", line.strip())[0].split(", ") for line in listing.splitlines()]
    names = [[each.removesuffix(".py").removesuffix("/") for each in line] for line in drawn]
    package = {path.stem for path in (ROOT / "fxquant").iterdir() if path.suffix == ".py" or path.is_dir()}
    expected = [[name for name in line if name in package] for line in LAYERS]
    assert names == [line for line in expected if line and line != ["__main__"]]


def test_keys_of_backend_files():
    page = DOCS["backends"]
    assert names_in_table(page, "key of a file") == list(schema._KEYS)
    assert names_in_table(page, "key of a rule") == ["use", "kernel", "note"]
    assert names_in_table(page, "limit") == [*LIMITED, INNER]


def test_the_backend_file_holds_what_it_promises(tmp_path):
    write_files(DOCS["backends"], tmp_path)
    report = check_backend(tmp_path / "mine.toml")
    assert (report.failures, report.schema) == ((), ())
    table = limits_tables(report.limits)
    (shown,) = (text for text in blocks(DOCS["backends"], "text") if text.startswith("linear_int8 x"))
    assert [line for line in shown.splitlines() if line not in table.splitlines()] == []


def test_fields_of_a_device():
    assert names_in_table(DOCS["kernels"], "field of a device") == [each.name for each in fields(Device)]


def test_ops_and_their_roles():
    documented = names_in_table(DOCS["backends"], "op")
    assert set(documented) == {rule.use for name in packaged_backends() for rule in load_backend(name).rules}
    lines = [line for line in DOCS["backends"].read_text().splitlines() if line.startswith("| `")]
    for line in lines:
        _, ops, roles, *_ = line.split("|")
        for name in re.findall(r"`(\w+)`", ops):
            if name in documented and "," in roles and "one of" not in line:
                assert tuple(roles.strip().split(", ")) == OPS[name].roles, name


def test_reasons():
    rows = [line.split("|") for line in DOCS["backends"].read_text().splitlines() if line.startswith("| `")]
    errors = {row[1].strip(" `") for row in rows if row[3].strip() == "yes"}
    assert names_in_table(DOCS["backends"], "code") == [*map(str, Reason), "fallback"]
    assert errors == {*map(str, UNINTENDED), "fallback"}


def test_fields_of_specs_and_recipes():
    page = DOCS["recipes"]
    assert names_in_table(page, "field") == list(SPEC_FIELDS)
    assert names_in_table(page, "key of a recipe") == list(Recipe().to_dict())
    assert names_in_table(page, "key of an override") == list(Override().to_dict())
    assert names_in_table(page, "recipe") == list(load_backend("x86").recipes)


def test_observers_and_their_options():
    text = DOCS["recipes"].read_text()
    assert set(names_in_table(DOCS["recipes"], "observer")) == set(OBSERVERS)
    for name in OBSERVERS:
        for option, details in OBSERVERS[name].OPTIONS.items():
            default = str(details.default)
            assert re.search(rf"\| `{option}` \| [`\"]*{re.escape(default)}[`\"]* \|", text), option


def test_kernels_of_each_set():
    rows = [line.split("|") for line in DOCS["kernels"].read_text().splitlines()]
    documented = {(row[1].strip(" `"), row[2].strip(" `")) for row in rows if len(row) == 5 and row[1].strip(" `")}
    packaged = {(name, kernel) for name in ("reference", "x86", "arm", "cuda") for kernel in KERNEL_SETS[name]}
    assert {each for each in documented if each[0] in KERNEL_SETS} == packaged
    native = [name for names in isa.PROCESSORS.values() for name in names]
    assert names_in_table(DOCS["kernels"], "instruction set") == [*native, *isa.TORCH]
    assert {isa.VARIABLE, "FXQUANT_CACHE"} <= set(names_in_table(DOCS["kernels"], "variable"))


def test_passes_in_their_order():
    staged = ["annotate", "observe", "smooth_activations", "correct_biases", "convert", "share_qparams", "lower"]
    expected = [*(each.name for each in CANONICAL.passes), *staged, *LOWERING]
    assert names_in_table(DOCS["passes"], "pass") == expected


def test_graphs_shown_are_the_goldens():
    shown = blocks(DOCS["passes"], "text")
    assert len(shown) >= 5
    for text in shown:
        name = re.match(r"before (\w+):", text)[1]
        assert text == (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")


def test_changelog_names_the_version():
    assert f"## [{fxq.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
