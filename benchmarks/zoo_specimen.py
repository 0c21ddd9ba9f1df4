"""A specimen of the zoo: how to build a tiny model with random weights, and inputs of any batch and length."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = Callable[[int, int], dict[str, Tensor]]
SIZES = ((2, 12), (3, 17), (1, 12), (4, 30), (2, 1))
VOCABULARY = 90
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Specimen:
    """One architecture: `build` makes the model, `inputs` arguments of a batch and a length out of `sizes`."""

    name: str
    group: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    sizes: tuple[tuple[int, int], ...] = SIZES

    def model(self) -> nn.Module:
        """Return the model in eval mode, the same weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build()
            _spread(model)
        return model.eval()


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw matrices of gain one and vectors that are not constant: fresh ones would make attention uniform."""
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, CONVOLUTIONS)}
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.is_floating_point():
            stacked = parameter.ndim == 3 and id(parameter) not in kernels  # the matrices of experts
            parameter.normal_(std=(parameter.shape[-1] if stacked else parameter[0].numel()) ** -0.5)
        elif parameter.is_floating_point():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "key_value_proj_dim"):  # T5's attention divides by no √d: its initial queries do
            module.q.weight.mul_(module.key_value_proj_dim**-0.5)


def specimens(group: str, table: Mapping[str, tuple[str, dict[str, Any]]], inputs: Inputs) -> Iterator[Specimen]:
    """Yield the models of transformers in a table from names to a class and its configuration."""
    for name, (cls, options) in table.items():
        yield Specimen(name, group, lambda cls=cls, options=options: pretrained(cls, **options), inputs)


def pretrained(name: str, **options: Any) -> nn.Module:
    """Return a model of transformers from the name of its class and its configuration's options."""
    cls = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**options))
    return model


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Return token ids (batch, length) none of which is special."""
    return torch.randint(5, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def text(batch: int, length: int) -> dict[str, Tensor]:
    """Return ids and a mask; the last row ends in padding where there is more than one token."""
    mask = torch.ones(batch, length, dtype=torch.long)
    if length > 2:
        mask[-1, -2:] = 0
    return {"input_ids": tokens(batch, length), "attention_mask": mask}


def text_pair(batch: int, length: int) -> dict[str, Tensor]:
    """Return an encoder's inputs, and a decoder's of another length."""
    return {**text(batch, length), "decoder_input_ids": tokens(batch, max(length - 5, 1), seed=1)}


def noise(*shape: int) -> Tensor:
    """Return normal random numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def image(batch: int, length: int) -> dict[str, Tensor]:
    """Return images of 32 x 32; the length says nothing."""
    return {"pixel_values": noise(batch, 3, 32, 32)}


def sound(batch: int, length: int) -> dict[str, Tensor]:
    """Return waves of a length that leaves a few frames behind the strides."""
    return {"input_values": noise(batch, 400 + 320 * length)}
