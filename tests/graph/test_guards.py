import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import ArtifactError
from fxquant.graph import guards

TEXTS = [
    "L['leaves'][0].size()[1] % 2 == 0",
    "((L['leaves'][1].size()[0]*L['leaves'][0].size()[1]) // 3) <= 7",
    "max(1, L['leaves'][0].size()[0]) - L['leaves'][1].size()[0] > -2",
    "L['leaves'][0].size()[0] == 4 or L['leaves'][1].size()[0] != 4 and 1 < L['leaves'][0].size()[1]",
]


class Sized:
    def __init__(self, shape):
        self.shape = shape

    def size(self):
        return self.shape


@pytest.mark.parametrize("text", TEXTS)
@given(shapes=st.tuples(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.tuples(st.integers(0, 9))))
def test_tree_means_what_python_means(text, shapes):
    tree = guards.parse(text)
    guards.check(tree, [2, 1])
    assert bool(guards.compiled(tree)(shapes)) == guards.holds(tree, shapes)
    assert guards.holds(tree, shapes) == bool(eval(text, {"L": {"leaves": [Sized(shape) for shape in shapes]}}))


def test_division_by_zero_does_not_hold():
    assert not guards.holds(guards.parse("4 % L['leaves'][0].size()[0] == 0"), [(0,)])


@pytest.mark.parametrize("text", ["f(1)", "L['leaves'][0].dtype", "1 +", "L['leaves'][0].size()[1] ** 2", "'a' == 1"])
def test_what_a_tree_cannot_say_is_none(text):
    assert guards.parse(text) is None


@pytest.mark.parametrize(
    "tree",
    [["size", 0, 2], ["size", 1, 0], ["size", -1, 0], ["size", True, 0], ["eval", 1, 2], ["//", 1], [], None, "x", 1.5],
    ids=str,
)
def test_damaged_tree_is_an_artifact_error(tree):
    with pytest.raises(ArtifactError, match="no condition on the sizes of 1 inputs"):
        guards.check(["==", tree, 1], [2])


def test_condition_reads_like_python():
    tree = guards.parse("L['leaves'][0].size()[1] % max(2, L['leaves'][1].size()[0]) == 0")
    assert guards.text(tree, ["ids", "mask"]) == "(ids.shape[1] % max(2, mask.shape[0])) == 0"


ALWAYS = [
    "L['leaves'][0].size()[1] + 2 >= L['leaves'][0].size()[1]",
    "min(8*L['leaves'][0].size()[0], 16*L['leaves'][0].size()[0] + 1) == 8*L['leaves'][0].size()[0]",
    "L['leaves'][0].size()[0]*L['leaves'][0].size()[1] <= 3*L['leaves'][0].size()[1]*L['leaves'][0].size()[0]",
    "0 - L['leaves'][1].size()[0] <= 0",
]
SOMETIMES = [
    "L['leaves'][0].size()[1] >= 1",
    "min(8*L['leaves'][0].size()[0], 4*L['leaves'][0].size()[0]) == 8*L['leaves'][0].size()[0]",
    "L['leaves'][0].size()[0] <= L['leaves'][0].size()[1]",
    "L['leaves'][0].size()[0] // 2 <= L['leaves'][0].size()[0]",
    "L['leaves'][0].size()[0] == L['leaves'][0].size()[0]*1",
]


@pytest.mark.parametrize("text", ALWAYS)
@given(shapes=st.tuples(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.tuples(st.integers(0, 9))))
def test_what_always_holds_holds(text, shapes):
    tree = guards.parse(text)
    assert guards.always_holds(tree)
    assert guards.holds(tree, shapes)


@pytest.mark.parametrize("text", SOMETIMES)
def test_what_signs_do_not_show_is_kept(text):
    assert not guards.always_holds(guards.parse(text))


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("L['leaves'][0].size()[1] + L['leaves'][1].size()[0] == L['leaves'][2].size()[0] + L['leaves'][0].size()[1]",
         {(1, 0), (2, 0)}),
        ("2*L['leaves'][0].size()[0] - L['leaves'][0].size()[0] == L['leaves'][1].size()[0]", {(0, 0), (1, 0)}),
        ("L['leaves'][0].size()[1] + 1 == L['leaves'][1].size()[0]", None),
        ("2*L['leaves'][0].size()[1] == L['leaves'][1].size()[0]", None),
        ("L['leaves'][0].size()[1] + L['leaves'][1].size()[0] == 0", None),
        ("L['leaves'][0].size()[1] <= L['leaves'][1].size()[0]", None),
    ],
)  # fmt: skip
def test_equal_sizes_are_what_is_left_of_both_sides(text, pair):
    found = guards.equal_sizes(guards.parse(text))
    assert (set(found) if found else None) == pair
