"""The text architectures of the zoo, tiny: encoders, decoders, mixtures of experts, encoder-decoders."""

from collections.abc import Iterator
from typing import Any

from zoo_specimen import Specimen, specimens, text, text_pair


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the options but for those of these names."""
    return {name: value for name, value in options.items() if name not in names}


# What most configurations call their sizes; a family that has other names, or needs more, adds to it below.
COMMON = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
HEAD = {**GROUPED, "head_dim": 8}
EXPERTS = {**HEAD, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

ENCODERS = {
    "bert": ("BertModel", COMMON),
    "roberta": ("RobertaModel", COMMON),
    "albert": ("AlbertModel", {**COMMON, "embedding_size": 16}),
    "distilbert": ("DistilBertModel", {**COMMON, "hidden_dim": 64}),
    "electra": ("ElectraModel", {**COMMON, "embedding_size": 16}),
    "xlm_roberta": ("XLMRobertaModel", COMMON),
    "xlm_roberta_xl": ("XLMRobertaXLModel", COMMON),
    "mobilebert": ("MobileBertModel", {**COMMON, "intra_bottleneck_size": 16, "embedding_size": 16}),
    "camembert": ("CamembertModel", COMMON),
    "ernie": ("ErnieModel", COMMON),
    "modernbert": ("ModernBertModel", {**COMMON, "cls_token_id": 1, "sep_token_id": 2}),
    "nomic_bert": ("NomicBertModel", {**COMMON, "head_dim": 8}),
    "mpnet": ("MPNetModel", COMMON),
    "roformer": ("RoFormerModel", {**COMMON, "embedding_size": 16}),
    "squeezebert": ("SqueezeBertModel", {**COMMON, "embedding_size": 32}),
    "bigbird (full)": ("BigBirdModel", {**COMMON, "attention_type": "original_full"}),
    "bigbird (sparse)": (
        "BigBirdModel",
        {**COMMON, "attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1},
    ),
    "deberta": (
        "DebertaModel",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "deberta_v2": ("DebertaV2Model", {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "longformer": ("LongformerModel", {**COMMON, "attention_window": 8}),
    "megatron_bert": ("MegatronBertModel", COMMON),
    "rembert": ("RemBertModel", {**COMMON, "input_embedding_size": 16}),
    "convbert": ("ConvBertModel", {**COMMON, "embedding_size": 16}),
    "esm": ("EsmModel", {**COMMON, "position_embedding_type": "rotary", "token_dropout": False}),
    "fnet": ("FNetModel", COMMON),
    "layoutlm": ("LayoutLMModel", COMMON),
    "data2vec_text": ("Data2VecTextModel", COMMON),
    "luke": ("LukeModel", {**COMMON, "entity_vocab_size": 10, "entity_emb_size": 16}),
    "splinter": ("SplinterModel", COMMON),
    "xlm": ("XLMModel", {**COMMON, "n_langs": 1}),
    "xlnet": ("XLNetModel", {**without(COMMON, "max_position_embeddings"), "d_inner": 64, "d_head": 8}),
    "bert classifier": ("BertForSequenceClassification", {**COMMON, "num_labels": 3}),
    "bert masked lm": ("BertForMaskedLM", COMMON),
}
DECODERS = {
    "gpt2": ("GPT2LMHeadModel", COMMON),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {**COMMON, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", COMMON),
    "gpt_neox_japanese": ("GPTNeoXJapaneseForCausalLM", {**COMMON, "intermediate_multiple_size": 2}),
    "gptj": ("GPTJForCausalLM", {**COMMON, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", COMMON),
    "codegen": ("CodeGenForCausalLM", {**COMMON, "rotary_dim": 4}),
    "opt": ("OPTForCausalLM", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", COMMON),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", {**HEAD, "sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", HEAD),
    "gemma": ("GemmaForCausalLM", HEAD),
    "gemma2": ("Gemma2ForCausalLM", {**HEAD, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3ForCausalLM", {**HEAD, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi": ("PhiForCausalLM", GROUPED),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "falcon": ("FalconForCausalLM", COMMON),
    "falcon (new)": ("FalconForCausalLM", {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("MptForCausalLM", {**COMMON, "expansion_ratio": 2}),
    "stablelm": ("StableLmForCausalLM", GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", {**GROUPED, "sliding_window": 8}),
    "olmo": ("OlmoForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "cohere": ("CohereForCausalLM", GROUPED),
    "granite": ("GraniteForCausalLM", GROUPED),
    "glm": ("GlmForCausalLM", HEAD),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED),
    "persimmon": ("PersimmonForCausalLM", COMMON),
    "nemotron": ("NemotronForCausalLM", HEAD),
    "xglm": ("XGLMForCausalLM", {**COMMON, "ffn_dim": 64}),
    "biogpt": ("BioGptForCausalLM", COMMON),
}
MIXTURES = {
    "mixtral": ("MixtralForCausalLM", {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4}),
    "olmoe": ("OlmoeForCausalLM", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("PhimoeForCausalLM", {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **COMMON,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "gpt_oss": ("GptOssForCausalLM", {**HEAD, "num_local_experts": 4, "sliding_window": 8}),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        {
            **COMMON,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "expert_capacity": 64,
        },
    ),
}
SEQ2SEQ = {**COMMON, "d_model": 32, "decoder_start_token_id": 1}
SEQ2SEQ |= {
    f"{side}_{what}": size
    for side in ("encoder", "decoder")
    for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
T5 = {**COMMON, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
ENCODER_DECODERS = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5 (gated)": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "mt5": ("MT5ForConditionalGeneration", T5),
    "umt5": ("UMT5ForConditionalGeneration", T5),
    "longt5": ("LongT5ForConditionalGeneration", {**T5, "local_radius": 4}),
    "marian": ("MarianMTModel", SEQ2SEQ),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ),
    "mbart": ("MBartForConditionalGeneration", SEQ2SEQ),
    "pegasus": ("PegasusForConditionalGeneration", SEQ2SEQ),
    "m2m_100": ("M2M100ForConditionalGeneration", SEQ2SEQ),
    "blenderbot": ("BlenderbotForConditionalGeneration", SEQ2SEQ),
    "blenderbot_small": ("BlenderbotSmallForConditionalGeneration", SEQ2SEQ),
    "plbart": ("PLBartForConditionalGeneration", SEQ2SEQ),
    "fsmt": (
        "FSMTForConditionalGeneration",
        {**SEQ2SEQ, "src_vocab_size": 99, "tgt_vocab_size": 99, "langs": ["en", "de"]},
    ),
    "led": (
        "LEDForConditionalGeneration",
        {
            **SEQ2SEQ,
            "attention_window": 8,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
    ),
}


def text_specimens() -> Iterator[Specimen]:
    """Yield the text architectures."""
    yield from specimens("encoder", ENCODERS, text)
    yield from specimens("decoder", DECODERS, text)
    yield from specimens("mixture of experts", {k: v for k, v in MIXTURES.items() if "switch" not in k}, text)
    yield from specimens("mixture of experts", {k: v for k, v in MIXTURES.items() if "switch" in k}, text_pair)
    yield from specimens("encoder-decoder", ENCODER_DECODERS, text_pair)
