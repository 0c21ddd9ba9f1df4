"""Tiny models that generate, with random weights: a factory returns a model in eval mode, the same each time."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 64
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
_COMMON = {**_SIZES, "intermediate_size": 64, "max_position_embeddings": 64, **_SPECIAL}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_WINDOW = {**_GROUPED, "head_dim": 8, "sliding_window": 6, "num_hidden_layers": 2}

# per model: its class, its configuration, and what the latter is made with
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _COMMON),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "num_hidden_layers": 2}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _WINDOW),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _WINDOW),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "falcon": ("FalconForCausalLM", "FalconConfig", _SIZES),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
}
_BOTH = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
_BOTH |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_BOTH |= {"decoder_start_token_id": 2}
_AUDIO = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
ENCODER_DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "marian": ("MarianMTModel", "MarianConfig", _BOTH),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BOTH),
    "m2m-100": ("M2M100ForConditionalGeneration", "M2M100Config", _BOTH),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**_BOTH, **_AUDIO}),
}


def build(model: str, config: str, options: dict[str, Any], seed: int = 0) -> Any:
    """Return a model of transformers with random weights, by the names of its class and its configuration's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = getattr(transformers, config)(**{"vocab_size": VOCABULARY, **_SPECIAL, **options})
        return getattr(transformers, model)(made).eval()


def decoder(name: str) -> Any:
    """Return a tiny decoder-only model."""
    return build(*DECODERS[name])


def encoder_decoder(name: str) -> Any:
    """Return a tiny encoder-decoder."""
    return build(*ENCODER_DECODERS[name])


def seq2seq_inputs(name: str, batch: int = 2, sequence: int = 9) -> dict[str, Tensor]:
    """Return a source, ids with a mask whose first row ends in padding or features, and `decoder_input_ids`."""
    target = {"decoder_input_ids": prompts(batch, 7, 1)["input_ids"].clamp(min=4)}
    if name == "whisper":
        return {"input_features": torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(0)), **target}
    return {**{key: tensor.flip(1) for key, tensor in prompts(batch, sequence).items()}, **target}


def prompts(batch: int = 2, sequence: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of prompts, the first of which is three tokens shorter and padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    if batch > 1:
        ids[0, :3] = mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generating(generate: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Return what a generate makes of inputs, eight tokens more, with the same random numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return generate(**inputs, max_new_tokens=8, **options)
