"""A quantized model as a checkpoint of GPTQ and of compressed-tensors, read again, and by compressed-tensors itself.

pip install fxquant[transformers] compressed-tensors
python examples/foreign_checkpoints.py
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import fxquant as fxq


def main() -> None:
    """Quantize a small LLaMA, export it in both formats, and generate from each."""
    if find_spec("transformers") is None:
        print("transformers is not installed: pip install fxquant[transformers]")
        return
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    llama, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(3, 128, (1, 8))
    recipe = fxq.Recipe(base="weight-only-int4", specs={"weight": {"symmetric": True}})
    program = fxq.quantize(llama, {"input_ids": ids}, recipe=recipe)
    greedy = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    print("as quantized           ", program.generate(ids, **greedy)[0, 8:].tolist())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gptq", "compressed-tensors"):
            written = fxq.export(program, Path(folder, name), format=name)
            again = fxq.load_checkpoint(written.folder)
            print(f"from {name:18}", again.generate(ids, **greedy)[0, 8:].tolist())
        print(written.summary())
        if find_spec("compressed_tensors") is None:
            print("compressed-tensors is not installed")
            return
        theirs = transformers.AutoModelForCausalLM.from_pretrained(Path(folder, "compressed-tensors"))
        print("by transformers        ", theirs.generate(ids, **greedy)[0, 8:].tolist())


if __name__ == "__main__":
    main()
