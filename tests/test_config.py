"""Reading TOML files and checking keys and types."""

import pytest

from fxquant.config import expect, known_keys, read_toml, required, tables, within
from fxquant.errors import ConfigError


def test_read_toml_returns_what_the_file_holds(tmp_path):
    path = tmp_path / "good.toml"
    path.write_text('name = "é"\n[spec.activation]\naxis = 0\n', encoding="utf-8")
    assert read_toml(path) == {"name": "é", "spec": {"activation": {"axis": 0}}}


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 2), ('a = "unclosed', 1), ("a = 1\n\n[spec", 3), ("a = 1\na = 2\n", 2)],
    ids=["no value", "end of document", "open header", "key twice"],
)
def test_invalid_toml_names_file_and_line(tmp_path, text, line):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.toml:{line}: not valid TOML: "):
        read_toml(path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: there is no such file"):
        read_toml(tmp_path / "absent.toml")


def test_directory_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"is a directory; give the path of a \.toml file"):
        read_toml(tmp_path)


def test_unreadable_file(tmp_path):
    # A link to itself cannot be read by anybody, root included.
    path = tmp_path / "loop.toml"
    path.symlink_to(path)
    with pytest.raises(ConfigError, match=r"loop\.toml: cannot be read: "):
        read_toml(path)


def test_binary_file(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_bytes(b"a = 1\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"weights\.toml: is no UTF-8 text \(byte 6\)"):
        read_toml(path)


def test_places_nest_from_the_outside_in():
    with pytest.raises(ConfigError, match=r"^x86\.toml: \[lower\]: wrong$"), within("x86.toml"), within("[lower]"):
        raise ConfigError("wrong")


def test_an_empty_place_adds_nothing():
    with pytest.raises(ConfigError, match=r"^wrong$"), within(""):
        raise ConfigError("wrong")


def test_other_exceptions_pass_through_a_place():
    with pytest.raises(KeyError), within("x86.toml"):
        raise KeyError("a bug of ours")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (3, str, r"key = 3: expected a string, got int"),
        (True, int, r"key = True: expected an integer, got bool"),
        (1, bool, r"key = 1: expected true or false, got int"),
        ("x", list, r"key = 'x': expected a list, got str"),
        ([], dict, r"key = \[\]: expected a table, got list"),
    ],
    ids=["string", "integer", "boolean", "list", "table"],
)
def test_wrong_types(value, kind, text):
    with pytest.raises(ConfigError, match=text):
        expect("key", value, kind)


def test_right_types_come_back():
    assert expect("key", 3, int) == 3
    assert expect("key", False, bool) is False


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown key 'nmae': did you mean 'name'\? Known: kernels, name"):
        known_keys({"nmae": 1}, ("name", "kernels"))


def test_a_required_key_is_missing():
    with pytest.raises(ConfigError, match=r"the key 'name' is missing: expected a string"):
        required({}, "name", str)


def test_tables_of_tables():
    assert tables({}, "spec") == {}
    with pytest.raises(ConfigError, match=r"spec\.weight = 'int8': expected a table, got str"):
        tables({"spec": {"weight": "int8"}}, "spec")
