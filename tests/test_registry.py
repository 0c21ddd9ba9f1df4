import pytest

from fxquant.errors import ConfigError
from fxquant.registry import Registry


@pytest.fixture
def fruits() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.add("apple", 1)
    registry.add("pear", 2)
    return registry


def test_lookup_length_iteration_and_membership(fruits):
    assert (fruits["apple"], fruits["pear"]) == (1, 2)
    assert len(fruits) == 2
    assert list(fruits) == ["apple", "pear"]
    assert "pear" in fruits
    assert "plum" not in fruits


def test_unknown_name_suggests_the_nearest_and_lists_all(fruits):
    with pytest.raises(ConfigError, match=r"unknown fruit 'aple': did you mean 'apple'\? Known: apple, pear"):
        fruits["aple"]


def test_name_unlike_any_lists_all_without_a_guess(fruits):
    with pytest.raises(ConfigError, match=r"unknown fruit 'zzz': Known: apple, pear"):
        fruits["zzz"]


def test_unhashable_name_is_the_same_error(fruits):
    with pytest.raises(ConfigError, match=r"unknown fruit \['apple'\]"):
        fruits[["apple"]]


def test_empty_registry_says_that_nothing_is_known():
    with pytest.raises(ConfigError, match=r"Known: \(none\)"):
        Registry("fruit")["apple"]


def test_registering_twice_is_refused(fruits):
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        fruits.add("apple", 3)
    assert fruits["apple"] == 1


def test_register_is_a_decorator_that_returns_its_object(fruits):
    @fruits.register("fig")
    def fig() -> None: ...

    assert fruits["fig"] is fig
