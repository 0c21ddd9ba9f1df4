"""The other architectures of the zoo: vision, audio, text with images, and modules of torch."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from zoo_specimen import Inputs, Specimen, image, noise, pretrained, sound, specimens, text, tokens
from zoo_text import COMMON

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
IMAGES = {
    "vit": ("ViTModel", VISION),
    "deit": ("DeiTModel", VISION),
    "beit": ("BeitModel", VISION),
    "data2vec_vision": ("Data2VecVisionModel", VISION),
    "dinov2": ("Dinov2Model", VISION),
    "vit_msn": ("ViTMSNModel", VISION),
    "ijepa": ("IJepaModel", VISION),
    "yolos": ("YolosModel", {**VISION, "image_size": [32, 32], "num_detection_tokens": 3}),
    "convnext": ("ConvNextModel", STAGES),
    "convnextv2": ("ConvNextV2Model", STAGES),
    "swin": (
        "SwinModel",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    ),
    "swinv2": (
        "Swinv2Model",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    ),
    "resnet": ("ResNetModel", {**STAGES, "embedding_size": 8}),
    "regnet": ("RegNetModel", {**STAGES, "embedding_size": 8, "groups_width": 8}),
    "mobilenet_v2": ("MobileNetV2Model", {"image_size": 32, "depth_multiplier": 0.25}),
    "segformer": ("SegformerModel", {**STAGES, "num_attention_heads": [1, 2, 2, 2]}),
    "poolformer": ("PoolFormerModel", STAGES),
    "pvt": ("PvtModel", {**STAGES, "num_attention_heads": [1, 2, 2, 2], "sequence_reduction_ratios": [4, 2, 1, 1]}),
    "vit classifier": ("ViTForImageClassification", {**VISION, "num_labels": 3}),
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
WAVES = {
    "wav2vec2": ("Wav2Vec2Model", SPEECH),
    "hubert": ("HubertModel", SPEECH),
    "wavlm": ("WavLMModel", SPEECH),
    "unispeech": ("UniSpeechModel", SPEECH),
    "unispeech_sat": ("UniSpeechSatModel", SPEECH),
    "data2vec_audio": ("Data2VecAudioModel", {**SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
    "sew": ("SEWModel", {**SPEECH, "squeeze_factor": 2}),
}


def whisper() -> nn.Module:
    """Return Whisper for spectrograms of 64 frames."""
    options = {"d_model": 32, "num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 64}
    options |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    options |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1}
    return pretrained("WhisperForConditionalGeneration", **options, eos_token_id=2, decoder_start_token_id=1)


def spoken(batch: int, length: int) -> dict[str, Tensor]:
    """Return the spectrogram of fixed length that Whisper takes, and a decoder's tokens."""
    return {"input_features": noise(batch, 8, 64), "decoder_input_ids": tokens(batch, length)}


def spectrogram(batch: int, length: int) -> dict[str, Tensor]:
    """Return the spectrogram of fixed length that AST takes."""
    return {"input_values": noise(batch, 64, 16)}


def text_and_image(batch: int, length: int) -> dict[str, Tensor]:
    """Return text, and as many images."""
    return {**text(batch, length), **image(batch, length)}


def dual(name: str) -> nn.Module:
    """Return a model of a text and an image encoder."""
    return pretrained(name, text_config=COMMON, vision_config=VISION, projection_dim=16)


def recurrent(cls: type[nn.Module]) -> nn.Module:
    """Return a classifier of token sequences by the last state of a recurrent layer."""
    return _Recurrent(cls)


class _Recurrent(nn.Module):
    def __init__(self, cls: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(99, 32)
        self.layer = cls(32, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, _ = self.layer(self.words(input_ids))
        logits: Tensor = self.head(hidden.mean(1))
        return logits


class _Attention(nn.Module):
    """nn.MultiheadAttention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        both: tuple[Tensor, Tensor | None] = self.attention(x, x, x)
        return both


def convolutional() -> nn.Module:
    """Return convolutions with batch norms, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def stacked() -> nn.Module:
    """Return nn.TransformerEncoder."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def named(name: str, of: Inputs) -> Inputs:
    """Return inputs whose one tensor has another name."""
    return lambda batch, length: {name: next(iter(of(batch, length).values()))}


def features(batch: int, length: int) -> dict[str, Tensor]:
    """Return random features (batch, length, 32)."""
    return {"x": noise(batch, length, 32)}


def ids_alone(batch: int, length: int) -> dict[str, Tensor]:
    """Return ids without a mask."""
    return {"input_ids": tokens(batch, length)}


def other_specimens() -> Iterator[Specimen]:
    """Yield vision, audio, text with images, and modules of torch."""
    yield from specimens("vision", IMAGES, image)
    yield from specimens("audio", WAVES, sound)
    ast = {**VISION, "max_length": 64, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    yield Specimen("ast", "audio", partial(pretrained, "ASTModel", **ast), spectrogram)
    yield Specimen("whisper", "audio", whisper, spoken)
    for name in ("CLIP", "SiglipModel", "ChineseCLIP", "AltCLIP"):
        cls = name if name.endswith("Model") else f"{name}Model"
        yield Specimen(name.removesuffix("Model").lower(), "text and images", partial(dual, cls), text_and_image)
    vilt = partial(pretrained, "ViltModel", **COMMON, image_size=32, patch_size=8, max_image_length=-1)
    yield Specimen("vilt", "text and images", vilt, text_and_image)
    yield Specimen("CNN", "torch", convolutional, named("input", image))
    yield Specimen("nn.TransformerEncoder", "torch", stacked, named("src", features))
    yield Specimen("nn.MultiheadAttention", "torch", _Attention, features)
    yield Specimen("nn.LSTM classifier", "torch", partial(recurrent, nn.LSTM), ids_alone)
    yield Specimen("nn.GRU classifier", "torch", partial(recurrent, nn.GRU), ids_alone)
