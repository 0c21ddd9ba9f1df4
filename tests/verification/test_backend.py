"""A backend file as a whole: the packaged ones hold, and each kind of failure is one line."""

import json
import sys

import pytest
from backend_files import weights_alone

from fxquant.backends import load_backend, packaged_backends
from fxquant.passes.lowering import listed_passes
from fxquant.verification import backend as report_of
from fxquant.verification.backend import NO_VALIDATOR, check_backend, refused_by_schema
from fxquant.verification.rules import check_rules
from fxquant.verification.tables import rules_table

OWN = f"""{weights_alone("own")}
[[op]]
use = "embedding"
note = "never read"
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", packaged_backends())
def test_every_packaged_rule_is_used_and_true(name):
    backend = load_backend(name)
    rows = check_rules(backend, listed_passes(backend.passes, backend.source))
    wrong = [row for row in rows if row.status not in ("ok", "float")]
    assert wrong == []
    assert {row.number for row in rows} == set(range(1, len(backend.rules) + 1))


def test_a_file_that_holds(own):
    report = check_backend(own)
    assert (report.failures, report.schema) == ((), ())
    assert [row.status for row in report.rules] == ["ok", "unused"]
    data = json.loads(report.to_json())
    assert (data["source"], data["failures"], data["rules"][1]["status"]) == (str(own), [], "unused")
    table = rules_table(report.rules).splitlines()
    assert table[2].split()[:3] == ["1", "embedding", "(specs"]
    assert table[3].endswith("unused: rule 1 for embedding stands before it and answers for every match")


def test_failures_are_a_line_each(own, monkeypatch):
    own.write_text(OWN + '[kernel.embedding_int8.weight]\ndtype = ["int8", "uint8"]\naxis = 0\nsymmetric = true\n')
    monkeypatch.setattr(report_of, "backend_schema", lambda passes: {"properties": {"name": {"maxLength": 2}}})
    report = check_backend(own)
    first, *rest = report.failures
    assert first == "JSON Schema: name: 'own' is too long"
    allowed = "limits of kernel embedding_int8 allow weight = "
    assert all(each.startswith(allowed) for each in rest)
    text = f"{allowed}uint8 symmetric per-tensor: kernel embedding_int8: the weight has to be int8"
    assert any(each.startswith(text) for each in rest)


def test_without_a_validator_the_schema_is_left_out(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert refused_by_schema({"name": 3}) is None
    assert "pip install 'fxquant[check]'" in NO_VALIDATOR
