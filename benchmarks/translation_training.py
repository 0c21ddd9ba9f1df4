"""A translation model of Marian's architecture, trained for `translation.py` on the CPU and kept in a folder.

The run is given by its seed: it continues from its last checkpoint as if it had never stopped.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from translation_data import END, PAD, Batch, Pair, epoch

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The model's sizes and how it is trained."""

    vocabulary: int = 8000
    width: int = 256
    layers: int = 3
    epochs: int = 7
    cosine: int = 10  # epochs after which the learning rate would be 0; a quarter of its peak is left at the end
    tokens: int = 1024  # of a batch, padded, the longer side
    peak: float = 1.2e-3
    warmup: float = 1.0  # epochs in which the learning rate rises to its peak
    dropout: float = 0.15
    smoothing: float = 0.1
    decay: float = 0.998  # of the running average of the weights, which is the model
    seed: int = 1


@dataclass
class Run:
    """A run between two epochs: all that the next epoch depends on."""

    model: Any
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    done: int = 0  # epochs
    steps: int = 0
    seconds: float = 0.0


def new_model(plan: Plan) -> Any:
    """Return an untrained MarianMTModel; one matrix embeds both languages and is the head."""
    config = transformers.MarianConfig(
        vocab_size=plan.vocabulary, d_model=plan.width, encoder_layers=plan.layers, decoder_layers=plan.layers,
        encoder_attention_heads=plan.width // 64, decoder_attention_heads=plan.width // 64,
        encoder_ffn_dim=4 * plan.width, decoder_ffn_dim=4 * plan.width, max_position_embeddings=256,
        dropout=plan.dropout, attention_dropout=0.0, activation_dropout=0.0, activation_function="swish",
        scale_embedding=True, init_std=plan.width**-0.5, pad_token_id=PAD, eos_token_id=END,
        forced_eos_token_id=None, decoder_start_token_id=PAD,
    )  # fmt: skip
    # of sentences this short, attention written out takes half the time of the fused kernels' backward in bfloat16
    return transformers.MarianMTModel._from_config(config, attn_implementation="eager")


def start(plan: Plan) -> Run:
    """Return a run before its first epoch."""
    torch.manual_seed(plan.seed)
    model = new_model(plan)
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return Run(model, {name: value.detach().clone() for name, value in model.named_parameters()}, optimizer)


def train(plan: Plan, pairs: Sequence[Pair], held_out: Sequence[Batch], path: Path, log: Log) -> Any:
    """Return the trained model, in eval mode; what is done is kept in a file after every epoch.

    Args:
        plan: sizes and schedule.
        pairs: ids of the sentences that train.
        held_out: batches whose loss is logged after every epoch.
        path: the checkpoint's file.
        log: takes a line.
    """
    run = start(plan)
    if path.exists():
        resume(run, path, plan)
    while run.done < plan.epochs:
        loss = one_epoch(run, plan, pairs)
        model = averaged(run, plan)
        log(f"epoch {run.done}: loss {loss:.3f}, held out {held_out_loss(model, held_out):.3f}, {run.seconds:.0f} s")
        save(run, path, plan)
    return averaged(run, plan)


def one_epoch(run: Run, plan: Plan, pairs: Sequence[Pair]) -> float:
    """Train on every pair once; return the mean loss of a token."""
    torch.manual_seed(1000 * plan.seed + run.done)  # of the dropout
    batches = list(epoch(pairs, plan.tokens, random.Random(1000 * plan.seed + run.done)))
    start_of_epoch, total, count = time.perf_counter(), 0.0, 0
    run.model.train()
    for batch in batches:
        for group in run.optimizer.param_groups:
            group["lr"] = rate(plan, run.steps, len(batches))
        loss, tokens = losses(run.model, batch, plan.smoothing)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.steps += 1
        follow(run, min(plan.decay, (1 + run.steps) / (10 + run.steps)))
        total, count = total + float(loss.detach()), count + tokens
    run.done += 1
    run.seconds += time.perf_counter() - start_of_epoch
    return total / count


def rate(plan: Plan, steps: int, batches: int) -> float:
    """Return the learning rate after some steps: up in a straight line, down as half a cosine."""
    epochs = steps / batches
    if epochs < plan.warmup:
        return plan.peak * epochs / plan.warmup
    return plan.peak * 0.5 * (1 + math.cos(math.pi * (epochs - plan.warmup) / (plan.cosine - plan.warmup)))


def losses(model: Any, batch: Batch, smoothing: float) -> tuple[Tensor, int]:
    """Return the sum of the losses of a batch's tokens, and their number; padding has no logits."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast()):
        hidden = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, decoder_input_ids=batch.shifted, use_cache=False
        ).last_hidden_state
        places = batch.wanted != PAD
        logits = model.lm_head(hidden[places])
    loss = functional.cross_entropy(logits.float(), batch.wanted[places], reduction="sum", label_smoothing=smoothing)
    return loss, int(places.sum())


@cache
def bfloat16_is_fast() -> bool:
    """Say whether this CPU multiplies bfloat16 faster than float32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


@torch.no_grad()
def follow(run: Run, decay: float) -> None:
    """Move the average of the weights towards them."""
    for name, value in run.model.named_parameters():
        run.average[name].lerp_(value, 1 - decay)


@torch.no_grad()
def averaged(run: Run, plan: Plan) -> Any:
    """Return a model of the averaged weights."""
    model = new_model(plan).eval()
    for name, value in model.named_parameters():
        value.copy_(run.average[name])
    return model


@torch.no_grad()
def held_out_loss(model: Any, batches: Sequence[Batch]) -> float:
    """Return the mean loss of a token, without smoothing."""
    found = [losses(model, batch, 0.0) for batch in batches]
    return sum(float(loss) for loss, _ in found) / sum(count for _, count in found)


def save(run: Run, path: Path, plan: Plan) -> None:
    """Keep a run in a file, which is the old or the new one at every moment."""
    state = {"plan": asdict(plan), "done": run.done, "steps": run.steps, "seconds": run.seconds}
    tensors = {"model": run.model.state_dict(), "average": run.average, "optimizer": run.optimizer.state_dict()}
    unfinished = path.with_suffix(".part")
    torch.save({**state, **tensors}, unfinished)
    unfinished.replace(path)


def resume(run: Run, path: Path, plan: Plan) -> None:
    """Continue from a checkpoint of the same plan, whose epochs may have been fewer; leave where it is another's."""
    state = torch.load(path, weights_only=True)
    if {**state["plan"], "epochs": plan.epochs} != asdict(plan) or state["done"] > plan.epochs:
        raise SystemExit(f"{path} was trained by another plan, {state['plan']}: give another --work, or remove it")
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.average.update(state["average"])
    run.done, run.steps, run.seconds = state["done"], state["steps"], state["seconds"]
