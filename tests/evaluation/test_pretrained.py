import json
import sys

import pytest
import torch
import transformers
from folders import SENTENCES, write_bert

from fxquant.errors import DataError
from fxquant.evaluation.pretrained import load_pretrained


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loads_the_class_of_the_config_in_eval_mode(folder):
    found = load_pretrained(folder)
    assert type(found.model) is transformers.BertModel
    assert not found.model.training
    assert found.missing == ()
    assert found.longest == 64


def test_weights_are_those_of_the_checkpoint(folder):
    expected = transformers.BertModel.from_pretrained(folder)
    found = load_pretrained(folder).model
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_half_precision_checkpoints_are_loaded_in_float32(folder):
    load_pretrained(folder).model.half().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert {p.dtype for p in load_pretrained(folder).model.parameters()} == {torch.float32}


def test_a_task_chooses_another_class_and_names_random_weights(folder):
    found = load_pretrained(folder, "sequence-classification")
    assert type(found.model) is transformers.BertForSequenceClassification
    assert found.missing == ("classifier.bias", "classifier.weight")


def test_batches_keep_the_order_and_pad_to_the_longest(folder):
    pretrained = load_pretrained(folder)
    batches = pretrained.batches(SENTENCES, size=10)
    assert [len(batch["input_ids"]) for batch in batches] == [10, 10, len(SENTENCES) - 20]
    alone = [pretrained.tokenizer(text)["input_ids"] for text in SENTENCES]
    rows = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert rows == alone
    assert batches[0]["input_ids"].shape[1] == max(map(len, alone[:10]))


def test_long_sentences_are_cut(folder):
    assert load_pretrained(folder).batch(["a b c " * 100])["input_ids"].shape == (1, 64)


def test_example_inputs_fit_the_model(folder):
    pretrained = load_pretrained(folder)
    inputs = pretrained.example_inputs()
    assert {name: tuple(value.shape) for name, value in inputs.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (2, 32)
    )
    with torch.no_grad():
        assert pretrained.model(**inputs).last_hidden_state.shape == (2, 32, 32)


def test_arguments_that_the_model_lacks_are_dropped(folder):
    config = transformers.DistilBertConfig(vocab_size=59, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    transformers.DistilBertModel(config).save_pretrained(folder)
    pretrained = load_pretrained(folder)
    assert set(pretrained.example_inputs()) <= {"input_ids", "attention_mask"}


def test_a_decoder_gets_shifted_tokens(folder):
    config = transformers.T5Config(
        vocab_size=59, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    inputs = load_pretrained(folder).batch(SENTENCES[:2])
    assert torch.equal(inputs["decoder_input_ids"][:, 1:], inputs["input_ids"][:, :-1])
    assert inputs["decoder_input_ids"][:, 0].tolist() == [0, 0]


def test_loading_leaves_transformers_verbosity_alone(folder):
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    load_pretrained(folder)
    assert before == (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled())


def remove(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no-config": (remove("config.json"), "config.json does not exist: expected a model folder"),
    "broken-config": (lambda f: (f / "config.json").write_text("{"), r"config.json cannot be read: Expecting"),
    "config-is-a-list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds a list: expected a JSON"),
    "unknown-type": (
        lambda f: (f / "config.json").write_text('{"model_type": "nonesuch"}'),
        "transformers cannot load the model: ValueError: The checkpoint you are trying to load has model type",
    ),
    "own-code": (
        lambda f: edit_config(f, architectures=["Mine"]),
        r"config.json: architectures = \['Mine'\] is no class",
    ),
    "other-sizes": (
        lambda f: edit_config(f, intermediate_size=48),
        r"intermediate.dense.bias has shape \(64,\) in the checkpoint, and config.json asks for \(48,\)",
    ),
    "no-weights": (remove("model.safetensors"), "transformers cannot load the model: OSError: Error no file named"),
    "truncated-weights": (truncate, "model.safetensors is damaged or incomplete"),
    "empty-weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors is damaged or incomplete",
    ),
    "no-tokenizer": (
        remove("vocab.txt", "tokenizer_config.json"),
        "has no tokenizer: expected tokenizer.json or vocab.txt beside the weights",
    ),
    "broken-tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "transformers cannot load the tokenizer: JSONDecodeError",
    ),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_with_a_folder_is_named(folder, damage, text):
    damage(folder)
    with pytest.raises(DataError, match=text):
        load_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist: expected the folder of a model"):
        load_pretrained(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file: expected the folder of a model"):
        load_pretrained(tmp_path / "file")


def test_an_unknown_task_gets_the_nearest_name(folder):
    with pytest.raises(DataError, match="unknown task 'casual-lm': did you mean 'causal-lm'"):
        load_pretrained(folder, "casual-lm")


def test_a_model_of_images(folder):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(folder)
    with pytest.raises(DataError, match="ViTModel takes no input_ids, so sentences are no input of it"):
        load_pretrained(folder)


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"which is not installed: pip install 'fxquant\[transformers\]'"):
        load_pretrained(folder)
