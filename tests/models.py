"""Tiny models with random weights: a factory returns `(model.eval(), example_inputs)`, the same weights each time.

What layers share is seen in BERT and T5's encoder, which have two; the others have one, as each takes a good part of a
second to capture.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Example = tuple[nn.Module, dict[str, Tensor]]

VOCABULARY = 64
_ENCODER = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
_ENCODER |= {"intermediate_size": 64, "max_position_embeddings": 64}


def ids(batch: int = 2, sequence: int = 12, seed: int = 0) -> Tensor:
    """Return random token ids (batch, sequence) that no tiny model takes for padding or a special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (batch, sequence), generator=generator)


def encoder_inputs(batch: int = 2, sequence: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Return ids and a mask whose last row ends in padding (where there is more than one token)."""
    mask = torch.ones(batch, sequence, dtype=torch.long)
    if sequence > 2:
        mask[-1, -2:] = 0
    return {"input_ids": ids(batch, sequence, seed), "attention_mask": mask}


def seq2seq_inputs(batch: int = 2, sequence: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Return an encoder's inputs and `decoder_input_ids` of another length."""
    return {**encoder_inputs(batch, sequence, seed), "decoder_input_ids": ids(batch, max(sequence - 5, 1), seed + 1)}


def tensors(output: Any) -> list[Tensor]:
    """Return the tensors that a model or a graph gave, without those of a cache.

    Whether torch looks into a cache depends on what ran before in the process: exporters register its type.
    """
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    leaves = pytree.tree_leaves(values, is_leaf=lambda value: isinstance(value, transformers.Cache))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _random(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config).eval()


def bert(layers: int = 2) -> Example:
    """Return a BERT encoder, hidden 32, at most 64 positions."""
    config = transformers.BertConfig(**_ENCODER | {"num_hidden_layers": layers})
    return _random(transformers.BertModel, config), encoder_inputs()


def bert_classifier() -> Example:
    """Return BERT with a sequence classification head of three labels."""
    config = transformers.BertConfig(**_ENCODER | {"num_hidden_layers": 2, "num_labels": 3})
    return _random(transformers.BertForSequenceClassification, config), encoder_inputs()


def bert_masked_lm() -> Example:
    """Return BERT with a language modelling head whose decoder is tied to the word embedding."""
    return _random(transformers.BertForMaskedLM, transformers.BertConfig(**_ENCODER)), encoder_inputs()


def roberta() -> Example:
    """Return a RoBERTa encoder; its positions are counted from the ids that are not padding."""
    return _random(transformers.RobertaModel, transformers.RobertaConfig(**_ENCODER, pad_token_id=1)), encoder_inputs()


def distilbert() -> Example:
    """Return a DistilBERT encoder."""
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    return _random(transformers.DistilBertModel, config), encoder_inputs()


def gpt2() -> Example:
    """Return GPT-2 with its (tied) language modelling head."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return _random(transformers.GPT2LMHeadModel, config), encoder_inputs()


def llama() -> Example:
    """Return Llama with grouped-query attention (4 heads, 2 of keys and values)."""
    config = transformers.LlamaConfig(**_ENCODER, num_key_value_heads=2)
    return _random(transformers.LlamaForCausalLM, config), encoder_inputs()


def _t5_config(layers: int) -> Any:
    return transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4)


def t5_encoder() -> Example:
    """Return T5's encoder alone, of two layers, which share their relative positions."""
    return _random(transformers.T5EncoderModel, _t5_config(2)), encoder_inputs()


def t5() -> Example:
    """Return T5 with its language modelling head; it also needs `decoder_input_ids`."""
    return _random(transformers.T5ForConditionalGeneration, _t5_config(1)), seq2seq_inputs()


class MLP(nn.Module):
    """linear(16, 32) → relu → linear(32, 8), any number of leading dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.act = nn.ReLU()
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 8) for x (…, 16)."""
        return self.down(self.act(self.up(x)))


class ConvNet(nn.Module):
    """conv → batch norm → relu → max-pool → conv → mean → linear, for images (N, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, 4) for image (N, 3, H, W)."""
        hidden = self.pool(torch.relu(self.norm(self.first(image))))
        return self.head(torch.relu(self.second(hidden)).mean((2, 3)))


def mlp() -> Example:
    """Return the MLP with an input of (4, 16)."""
    return _random(lambda _: MLP(), None), {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(0))}


def convnet() -> Example:
    """Return the ConvNet with images of (2, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    return _random(lambda _: ConvNet(), None), {"image": torch.randn(2, 3, 16, 16, generator=generator)}


TRANSFORMERS: dict[str, Callable[[], Example]] = {
    "bert": bert,
    "bert-classifier": bert_classifier,
    "bert-masked-lm": bert_masked_lm,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt2": gpt2,
    "llama": llama,
    "t5-encoder": t5_encoder,
    "t5": t5,
}
PLAIN: dict[str, Callable[[], Example]] = {"mlp": mlp, "convnet": convnet}
EVERY: dict[str, Callable[[], Example]] = {**TRANSFORMERS, **PLAIN}
