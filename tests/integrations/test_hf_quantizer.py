"""FxQuantConfig in transformers' own from_pretrained, save_pretrained, generate, pipeline and Trainer."""

import json
import subprocess
import sys
import weakref

import generative
import pytest
import torch
import transformers
from folders import SENTENCES, write_bert, write_gpt2
from safetensors.torch import load_file, save_file

import fxquant as fxq
from fxquant.integrations.hf import quantizer
from fxquant.integrations.transformers import FxQuantConfig

Classifier = transformers.AutoModelForSequenceClassification
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture(scope="module", autouse=True)
def _no_bars():
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a float classifier, and in `dynamic` what quantizing it with a skipped head saved."""
    place = tmp_path_factory.mktemp("models")
    write_bert(place / "float", transformers.BertForSequenceClassification)
    config = FxQuantConfig(recipe="dynamic", modules_to_not_convert=["classif.*"])
    model = Classifier.from_pretrained(place / "float", quantization_config=config)
    model.save_pretrained(place / "dynamic")
    return place


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder / "float")


@pytest.fixture(scope="module")
def batch(tokenizer):
    return dict(tokenizer(SENTENCES[:4], return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def quantized(folder):
    """The classifier as it is loaded from what was saved, without a config."""
    return Classifier.from_pretrained(folder / "dynamic")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The folder of a float GPT-2, and in `dynamic` what quantizing it saved in shards; and that model."""
    place = tmp_path_factory.mktemp("gpt2")
    write_gpt2(place / "float")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "float", quantization_config=FxQuantConfig())
    model.save_pretrained(place / "dynamic", max_shard_size="20KB")
    return place, model


def test_loading_what_was_saved_gives_the_same_bits(folder, quantized, batch):
    config = FxQuantConfig(modules_to_not_convert=["classifier"])
    first = Classifier.from_pretrained(folder / "float", quantization_config=config)
    assert torch.equal(quantized(**batch).logits, first(**batch).logits)


def test_quantized_model_is_near_the_float_model_and_no_larger(folder, quantized, batch):
    float_model = Classifier.from_pretrained(folder / "float")
    expected, found = float_model(**batch).logits, quantized(**batch).logits
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert type(quantized) is type(float_model)
    assert type(quantized(**batch)) is type(float_model(**batch))
    assert quantized.get_memory_footprint() < 0.5 * float_model.get_memory_footprint()
    assert fxq.ledger(quantized.fxquant).coverage > 0.9


def test_checkpoint_holds_integers_and_no_float_weights(folder):
    tensors = load_file(folder / "dynamic" / "model.safetensors")
    matrices = {name: each.dtype for name, each in tensors.items() if each.ndim == 2}
    assert matrices.pop("fxquant.tensors.classifier.weight") == torch.float32
    assert set(matrices.values()) <= {torch.int8, torch.int64}
    assert "fxquant.tensors.bert.encoder.layer.0.intermediate.dense.weight_int8" in matrices


def test_float_weights_are_let_go(folder, monkeypatch):
    own, weights = quantizer.quantize_loaded, []

    def quantize_loaded(model, config):
        weights.extend(weakref.ref(each) for each in model.parameters() if each.ndim == 2)
        return own(model, config)

    monkeypatch.setattr(quantizer, "quantize_loaded", quantize_loaded)
    model = Classifier.from_pretrained(folder / "float", quantization_config=FxQuantConfig("weight-only"))
    assert len(weights) > 5
    assert [each for each in weights if each() is not None] == []
    assert model.training is False


def test_config_keeps_the_modules_that_were_skipped(folder, quantized):
    stored = json.loads((folder / "dynamic" / "config.json").read_text())["quantization_config"]
    assert stored == {
        "quant_method": "fxquant",
        "recipe": "dynamic",
        "backend": "x86",
        "modules_to_not_convert": ["classifier"],
        "strict": False,
        "padded_outputs": "exact",
    }
    assert quantized.config.quantization_config.to_dict() == stored


def test_saving_again_writes_the_same_weights(folder, quantized, tmp_path):
    quantized.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "dynamic" / "model.safetensors").read_bytes()


def test_masks_may_be_left_out_as_in_the_float_model(folder, quantized, batch):
    bare = quantized(batch["input_ids"])
    whole = quantized(
        **{**batch, "attention_mask": torch.ones_like(batch["input_ids"]), "token_type_ids": 0 * batch["input_ids"]}
    )
    assert torch.equal(bare.logits, whole.logits)
    assert quantized(batch["input_ids"], return_dict=False)[0].equal(bare.logits)


def test_loss_is_that_of_the_logits(quantized, batch):
    outputs = quantized(**batch, labels=LABELS)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, LABELS))
    assert next(iter(outputs)) == "loss"


def test_pipeline_classifies(folder, tokenizer, quantized):
    pipe = transformers.pipeline("text-classification", model=str(folder / "dynamic"), tokenizer=tokenizer)
    found = pipe(SENTENCES[0])[0]
    logits = quantized(**tokenizer(SENTENCES[0], return_tensors="pt")).logits
    assert found["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-6)


def test_trainer_evaluates_and_does_not_train(quantized, tokenizer, tmp_path):
    pytest.importorskip("accelerate")
    data = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(SENTENCES[:8])]
    arguments = transformers.TrainingArguments(
        tmp_path, report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=4, max_steps=1
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(quantized, arguments, data_collator=collator, train_dataset=data)
    found = trainer.evaluate(data)["eval_loss"]
    batches = [collator(data[:4]), collator(data[4:])]
    expected = sum(quantized(**each).loss.item() for each in batches) / 2
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(fxq.InputError, match="quantized for inference, and was called to train"):
        trainer.train()
    quantized.eval()


def test_device_map(folder, quantized, batch):
    pytest.importorskip("accelerate")
    model = Classifier.from_pretrained(folder / "dynamic", device_map="cpu")
    assert torch.equal(model(**batch).logits, quantized(**batch).logits)
    with pytest.raises(fxq.ConfigError, match=r"spreads the model over cpu, disk: .* device_map=\"cpu\""):
        Classifier.from_pretrained(folder / "dynamic", device_map={"bert": "cpu", "classifier": "disk"})


def test_static_recipe_calibrates_with_the_batches_of_the_config(folder, tokenizer, batch, tmp_path):
    batches = [{**tokenizer(text, return_tensors="pt"), "labels": torch.tensor([0])} for text in SENTENCES[:3]]
    config = FxQuantConfig(recipe=fxq.Recipe(base="static", specs={"activation": {"observer": "minmax"}}))
    config.calibration = batches
    model = Classifier.from_pretrained(folder / "float", quantization_config=config)
    assert config.calibration is batches
    assert model.config.quantization_config.calibration is None
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.config.quantization_config.recipe.specs == {"activation": {"observer": "minmax"}}
    float_logits = Classifier.from_pretrained(folder / "float")(**batch).logits
    assert (model(**batch).logits - float_logits).abs().max() < 0.05 * float_logits.abs().max()


def test_causal_lm_generates_from_shards_as_it_did_before(gpt2):
    place, model = gpt2
    again = transformers.AutoModelForCausalLM.from_pretrained(place / "dynamic")
    assert len(list((place / "dynamic").glob("model-*.safetensors"))) > 1
    inputs = {name: tensor % 50 for name, tensor in generative.prompts().items()}
    for options in (
        {"num_beams": 2, "do_sample": False},
        {"do_sample": True},
        {"do_sample": False, "use_cache": False},
    ):
        expected = generative.generating(model.generate, inputs, **options)
        assert expected.shape[1] > inputs["input_ids"].shape[1]
        assert torch.equal(generative.generating(again.generate, inputs, **options), expected)
    outputs = again(**inputs, labels=inputs["input_ids"])
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten()
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(logits, targets))


def test_pipeline_generates(gpt2):
    place, model = gpt2
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "float")
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    (found,) = pipe("a wise man", max_new_tokens=4, do_sample=False, return_tensors=True)
    ids = tokenizer("a wise man", return_tensors="pt")
    assert found["generated_token_ids"] == model.generate(**ids, max_new_tokens=4, do_sample=False)[0].tolist()


def test_seq2seq_generates_and_has_its_loss(tmp_path):
    name, config, options = generative.ENCODER_DECODERS["t5"]
    model = generative.build(name, config, {**options, "num_layers": 1})
    model.save_pretrained(tmp_path / "float")
    auto = transformers.AutoModelForSeq2SeqLM
    quantized = auto.from_pretrained(tmp_path / "float", quantization_config=FxQuantConfig())
    quantized.save_pretrained(tmp_path / "dynamic")
    again = auto.from_pretrained(tmp_path / "dynamic")
    inputs = generative.seq2seq_inputs("t5")
    labels = inputs.pop("decoder_input_ids")
    expected = generative.generating(quantized.generate, inputs, do_sample=False)
    assert torch.equal(generative.generating(again.generate, inputs, do_sample=False), expected)
    found, own = again(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss
    assert found.item() == pytest.approx(own.item(), rel=0.01)


def test_images_are_made_up_where_a_model_takes_some(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=16
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, quantization_config=FxQuantConfig("weight-only")
    )
    assert model(torch.randn(3, 3, 32, 32), labels=torch.tensor([0, 1, 0])).loss > 0


def test_another_class_does_not_take_the_graph(folder):
    with pytest.raises(fxq.ArtifactError, match=r"holds a quantized BertForSequenceClassification.*as a BertModel"):
        transformers.AutoModel.from_pretrained(folder / "dynamic")


def test_float_checkpoint_of_other_shapes_is_refused(folder):
    # by transformers itself, before 5.23 by us
    with pytest.raises((RuntimeError, fxq.DataError), match=r"ignore_mismatched_sizes|and config.json asks for \(48"):
        Classifier.from_pretrained(folder / "float", quantization_config=FxQuantConfig(), intermediate_size=48)
    skeleton = torch.nn.Linear(2, 3)
    checked = quantizer.FxHfQuantizer(FxQuantConfig(), pre_quantized=False)
    checked._process_model_before_weight_loading(skeleton)
    skeleton.weight = torch.nn.Parameter(torch.ones(3, 4))
    with pytest.raises(
        fxq.DataError, match=r"weight has shape \(3, 4\) in the checkpoint, and config.json asks for \(3, 2"
    ):
        checked._process_model_after_weight_loading(skeleton)


def test_model_that_its_dummy_inputs_do_not_fit_is_named():
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    images = {**part, "image_size": 8, "patch_size": 4}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**part, "vocab_size": 9, "bos_token_id": 0}, vision_config=images)
    )
    with pytest.raises(fxq.ConfigError, match=r"a CLIPModel cannot be called with .*: give FxQuantConfig\(example_inp"):
        quantizer.quantize_model(clip.eval(), FxQuantConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem() and tensors, "is missing, and its graph reads"),
        (lambda tensors: {**tensors, NAME: tensors[NAME][1:].clone()}, r"is torch.int8 of shape \(63, 32\), and its"),
        (lambda tensors: {**tensors, TEXT: tensors[TEXT][:-9].clone()}, "is not what fxquant writes"),
        (lambda tensors: {name: each for name, each in tensors.items() if name != TEXT}, "its weights hold no fxquant"),
    ],
    ids=["a tensor missing", "another shape", "text cut short", "no text"],
)
def test_altered_checkpoint(folder, tmp_path, change, message):
    (tmp_path / "config.json").write_bytes((folder / "dynamic" / "config.json").read_bytes())
    tensors = dict(sorted(load_file(folder / "dynamic" / "model.safetensors").items()))
    save_file(change(tensors), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fxq.ArtifactError, match=message):
        Classifier.from_pretrained(tmp_path)


TEXT = "fxquant.graph_json"
NAME = "fxquant.tensors.bert.encoder.layer.0.intermediate.dense.weight_int8"


def test_importing_fxquant_is_enough_and_imports_nothing_heavy():
    code = (
        "import sys, torch; before = set(sys.modules); import fxquant; "
        "print({'transformers', 'onnx', 'triton', 'sympy'} & (set(sys.modules) - before)); "
        "import transformers.quantizers.auto as theirs; print(theirs.AUTO_QUANTIZER_MAPPING['fxquant'].__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\nFxHfQuantizer\n", done.stderr
