import copy
import inspect
import json

import captured as shared
import pytest
import torch
from models import encoder_inputs
from torch import nn

from fxquant.errors import ArtifactError, InputError
from fxquant.graph import structure
from fxquant.graph.calling import Leaf, Parameter
from fxquant.graph.capture import capture
from fxquant.graph.signature import Signature, signature_of

LEAF = {"kind": "leaf"}


def small(**changes) -> Signature:
    """A signature of forward(ids, mask=None, scale=2, *, flag=False) captured with ids, mask and flag=True."""
    constant = {"kind": "constant", "value": True, "type": "bool"}
    facts = {
        "parameters": (
            Parameter("ids"),
            Parameter("mask", required=False),
            Parameter("scale", required=False, default=2),
            Parameter("flag", "KEYWORD_ONLY", required=False, default=False),
        ),
        "inputs": {"kind": "dict", "keys": ["ids", "mask", "flag"], "items": [LEAF, LEAF, constant]},
        "leaves": (Leaf("ids", torch.int64, ("d0", "d1")), Leaf("mask", torch.float32, ("d0", 3))),
        "outputs": {"kind": "tuple", "items": [LEAF, {"kind": "constant", "value": None, "type": "NoneType"}]},
        "ranges": {"d1": (0, 8), "d0": (3, None)},
        "conditions": (["==", ["%", ["size", 0, 1], 2], 0],),
    }
    return Signature(**{**facts, **changes})


def ids(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


def test_positional_and_keyword_calls_bind_as_python_would():
    signature, a, b = small(), ids(4, 2), torch.zeros(4, 3)
    for args, kwargs in [((a, b), {}), ((a,), {"mask": b}), ((), {"mask": b, "ids": a})]:
        leaves = signature.flatten(args, kwargs)
        assert leaves[0] is a and leaves[1] is b and len(leaves) == 2
    assert signature.unflatten([a]) == (a, None)


@pytest.mark.parametrize(
    "extra", [{"flag": True}, {"flag": None}, {"scale": 2}, {"scale": None}, {"unheard": None}], ids=str
)
def test_repeated_constants_defaults_and_none_are_accepted(extra):
    assert len(small().flatten((ids(4, 2), torch.zeros(4, 3)), extra)) == 2


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((ids(4, 2),), {}, r"argument 'mask' is missing: the graph was captured with 'ids', 'mask', 'flag'"),
        ((), {"mask": torch.zeros(4, 3)}, r"argument 'ids' is missing"),
        ((ids(4, 2), torch.zeros(4, 3), 2, True), {}, r"4 positional arguments were given, but forward takes 3"),
        ((ids(4, 2), torch.zeros(4, 3)), {"ids": ids(4, 2)}, r"'ids' was given twice"),
        ((ids(4, 2), torch.zeros(4, 3)), {"flag": False}, r"'flag' is False, and was captured as True: leave it out"),
        ((ids(4, 2), torch.zeros(4, 3)), {"scale": 3}, r"unexpected argument 'scale'.*capture again with 'scale'"),
        ((ids(4, 2), torch.zeros(4, 3)), {"makss": 3}, r"unexpected argument 'makss'.*no such parameter; did you mean"),
        (([[1]], torch.zeros(4, 3)), {}, r"argument 'ids' is a list: expected a torch.Tensor"),
        ((ids(4, 2), None), {}, r"argument 'mask' is None: expected a torch.Tensor"),
        ((ids(4, 2).int(), torch.zeros(4, 3)), {}, r"'ids' is torch.int32, and was captured as torch.int64: convert"),
        ((ids(4), torch.zeros(4, 3)), {}, r"'ids' has shape \(4,\), and was captured with 2 dimensions \(d0, d1\)"),
        (
            (ids(4, 2), torch.zeros(4, 5)),
            {},
            r"dimension 1 of 'mask' has size 5, and was captured with the fixed size 3",
        ),
        (
            (ids(4, 9), torch.zeros(4, 3)),
            {},
            r"dimension 1 of 'ids' has size 9, and the model takes at most 8: truncate",
        ),
        (
            (ids(2, 2), torch.zeros(2, 3)),
            {},
            r"dimension 0 of 'ids' has size 2, and the captured graph takes at least 3",
        ),
        ((ids(4, 2), torch.zeros(5, 3)), {}, r"dimension 0 of 'mask' has size 5, but dimension 0 of 'ids' has 4"),
        ((ids(4, 3), torch.zeros(4, 3)), {}, r"right where \(ids.shape\[1\] % 2\) == 0, and the inputs are not so"),
    ],
)
def test_wrong_call_names_the_argument(args, kwargs, text):
    signature = small()
    signature.flatten((ids(4, 2), torch.zeros(4, 3)), {})  # an accepted call must not let the next one slip through
    for _ in range(2):
        with pytest.raises(InputError, match=text):
            signature.flatten(args, kwargs)


def test_nested_arguments_are_matched_by_structure():
    inputs = {"kind": "dict", "keys": ["pair"], "items": [{"kind": "tuple", "items": [LEAF, LEAF]}]}
    leaves = (Leaf("pair.0", torch.float32, ("d0",)), Leaf("pair.1", torch.float32, ("d0",)))
    signature = small(parameters=(Parameter("pair"),), inputs=inputs, leaves=leaves, ranges={}, conditions=())
    a, b = torch.zeros(2), torch.ones(2)
    assert signature.flatten(([a, b],), {}) == (a, b)
    with pytest.raises(InputError, match=r"argument 'pair' is a tuple, and was captured as a tuple of \[0, 1\]"):
        signature.flatten(((a, b, a),), {})
    with pytest.raises(InputError, match=r"dimension 0 of 'pair.1' has size 3"):
        signature.flatten(((a, torch.ones(3)),), {})


def test_variadic_arguments_bind():
    class Sum(nn.Module):
        def forward(self, first, *rest, scale=1, **named):
            return scale * (first + sum(rest)) - named["last"]

    one = torch.ones(3)
    gm = capture(Sum(), {"first": one, "rest": (one, one), "scale": 4, "last": one})
    torch.testing.assert_close(gm(one, one, one, last=one), 11 * one, rtol=0, atol=0)
    with pytest.raises(InputError, match="'rest' is a tuple, and was captured as a tuple of"):
        gm(one, one, last=one)
    with pytest.raises(InputError, match="unexpected argument 'first_one'"):
        gm(one, one, one, last=one, first_one=one)


def test_signature_survives_json():
    signature = small()
    again = Signature.from_dict(json.loads(json.dumps(signature.to_dict(), allow_nan=False)))
    assert again == signature
    assert again.to_dict() == signature.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"leaves": []},
        {"leaves": [{"name": "a", "dtype": "nn", "shape": []}] * 2},
        {"leaves": [{"name": "a", "dtype": "int64", "shape": [1.5]}] * 2},
        {"parameters": [{"name": "a; import os"}]},
        {"parameters": [{"name": "lambda"}]},
        {"parameters": [{"name": "a", "kind": "__class__"}]},
        {"parameters": [{"name": "a", "code": "1"}]},
        {"conditions": [["eval", 1]]},
        {"inputs": {"kind": "list", "items": [LEAF, LEAF]}},
        {"outputs": {"kind": "output", "class": "os.system", "keys": [], "items": []}},
        {"ranges": {"d0": [1]}},
        {"ranges": None},
    ],
    ids=str,
)
def test_damaged_signature_is_an_artifact_error(change):
    with pytest.raises(ArtifactError):
        Signature.from_dict({**small().to_dict(), **change})


def test_no_signature_is_an_artifact_error():
    for data in (None, {}, [1]):
        with pytest.raises(ArtifactError, match="call signature of a graph cannot be read"):
            Signature.from_dict(data)


@pytest.fixture(scope="module")
def captured():
    return shared.captured("bert")


def test_python_sees_the_parameters_of_the_model(captured):
    model, _, gm = captured
    assert list(inspect.signature(gm.forward).parameters) == list(inspect.signature(model.forward).parameters)


def test_deepcopy_recompile_and_code(captured):
    _, inputs, gm = captured
    again = copy.deepcopy(gm)
    again.recompile()
    assert torch.equal(again(**inputs).last_hidden_state, gm(**inputs).last_hidden_state)
    assert "input_ids, attention_mask, = _fxquant_signature.flatten(args, kwargs)" in gm.code
    assert 'input_ids: "i64[' in gm.print_readable(print_output=False)


def test_interpreter_runs_the_graph():
    model, inputs, gm = shared.captured("gpt2")  # attention_mask is not the second parameter of its forward
    output = torch.fx.Interpreter(gm).run(*inputs.values())
    assert type(output) is type(model(**inputs))
    assert torch.equal(output.logits, gm(**inputs).logits)


@pytest.mark.parametrize("strict", [True, False])
def test_reexport_with_dynamic_sizes(captured, strict):
    model, inputs, gm = captured
    sizes = {name: dict.fromkeys(range(2), torch.export.Dim.AUTO) for name in inputs}
    program = torch.export.export(gm, (), inputs, dynamic_shapes=sizes, strict=strict)
    other = encoder_inputs(3, 7)
    with torch.no_grad():
        assert torch.equal(program.module()(**other)[0], model(**other)[0])


def test_compiles_as_one_graph_for_all_sizes():
    _, inputs, gm = shared.captured("t5")
    seen = []
    compiled = torch.compile(gm, fullgraph=True, dynamic=True, backend=lambda graph, _: seen.append(graph) or graph)
    for rows in (2, 3):
        given = {name: tensor[:1].expand(rows, -1).contiguous() for name, tensor in inputs.items()}
        output = compiled(**given)
        assert type(output).__name__ == "Seq2SeqLMOutput"
        torch.testing.assert_close(output.logits, gm(**given).logits, rtol=0, atol=0)
    assert len(seen) == 1


def test_signature_of_a_capture_states_the_maximum(captured):
    _, inputs, gm = captured
    signature = signature_of(gm)
    assert [leaf.name for leaf in signature.leaves] == list(inputs)
    assert signature.ranges == {signature.leaves[0].shape[1]: (0, 64)}
    with pytest.raises(InputError, match="dimension 1 of 'input_ids' has size 65, and the model takes at most 64"):
        gm(**encoder_inputs(1, 65))
    assert structure.count(signature.outputs) == 2
