"""A small Transformer with what an export meets, its Q/DQ graphs, their exports, and ONNX Runtime on them."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

import fxquant as fxq
from fxquant.graph import edit

WIDTH, HEADS, VOCABULARY = 64, 4, 40
QUANTIZE = torch.ops.fxquant.quantize.default


class Block(nn.Module):
    """Look-up, attention under a mask, feed-forward, norms, and a pooled output from a matrix product."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.q, self.k, self.v, self.out, self.pool = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.up, self.down, self.norm = nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, input_ids, mask):
        x = self.words(input_ids)
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, mask.bool()[:, None, None, :])
        x = self.norm(x + self.out(seen.transpose(1, 2).flatten(2)))
        x = x + self.down(functional.gelu(self.up(x)))
        return {"hidden": x, "pooled": torch.tanh(self.pool(x[:, 0]))}


def inputs(batch=2, tokens=6, seed=0):
    """Return ids and a mask whose last row has padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, tokens // 2 :] = 0
    return {"input_ids": torch.randint(VOCABULARY, (batch, tokens), generator=generator), "mask": mask}


@cache
def captured():
    """Return the captured block, which must not be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fxq.capture(Block().eval(), inputs())


@cache
def converted(recipe, backend="x86"):
    """Return a Q/DQ graph of the block, which must not be changed."""
    prepared = fxq.prepare(captured(), backend, recipe)
    if recipe.startswith("static"):
        fxq.calibrate(prepared, [inputs(4, 8, seed) for seed in range(3)], progress=False)
    return fxq.convert(prepared)


@cache
def exported(recipe, target="onnxruntime", backend="x86"):
    """Return the report of an export of the block; exports take seconds."""
    return fxq.export(converted(recipe, backend), Path(mkdtemp()) / "out", target=target)


def run_ort(path, batch, float_activations=False):
    """Return the outputs of ONNX Runtime, and which operators it ran, by its profile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.enable_profiling = 3, 1, True
    options.profile_file_prefix = str(path.parent.parent / "profile")
    if float_activations:  # by default its product with weights of few bits rounds activations to 8 bits, too
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {each.name: batch[each.name].numpy() for each in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = Counter(each["args"]["op_name"] for each in events if each["name"].endswith("_kernel_time"))
    return [torch.from_numpy(each) for each in outputs], ran


def reference(gm, batch):
    """Return what a Q/DQ graph computes, output by output."""
    with torch.no_grad():
        return pytree.tree_leaves(gm(**batch))


def step(gm):
    """Return the largest step between quantized activations of a graph."""
    scales = [node.args[1] for node in gm.graph.nodes if node.target is QUANTIZE and edit.is_constant(node.args[1])]
    return max(float(edit.get_tensor(gm, scale)) for scale in scales)
