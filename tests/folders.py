"""Model folders in Hugging Face's layout, written from scratch: a tiny BERT with a WordPiece tokenizer of letters."""

import json
import string

import torch
import transformers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), ".", ","]
SENTENCES = [f"{first} wise {second} reads the {third}." for first in ("a", "one", "no") for second in ("man", "cat")
             for third in ("book", "sign", "map", "note")]  # fmt: skip


def write_tokenizer(folder, **more):
    """Write a tokenizer that spells words in letters, with more settings."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_bert(folder, model_class=transformers.BertModel):
    """Write a BERT of one layer, hidden 32, with random weights, and return the folder."""
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_gpt2(folder):
    """Write a GPT-2 of one layer, hidden 32, with random weights, and return the folder."""
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=32, n_layer=1, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    write_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    return folder


def write_sentences(path, sentences=SENTENCES):
    """Write a text of one sentence a line and return its path."""
    path.write_text("\n".join(sentences) + "\n")
    return path
