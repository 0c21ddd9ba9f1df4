"""`cuda_graphs`: what a module or a program launches is recorded once a shape, and replayed."""

from functools import partial

from torch import nn

from fxquant.errors import ConfigError
from fxquant.generation.recorded import RecordedSteps
from fxquant.kernels.cuda.graphs import CudaGraphs, check, recorded
from fxquant.program import Program


def cuda_graphs(
    module: nn.Module, *, max_graphs: int = 16, outputs: str = "copied", tokens: int = 256
) -> CudaGraphs | Program:
    """Return `module`, lowered and on a CUDA device, with its calls recorded as CUDA graphs, one for each shape.

    A shape is recorded at its first call, which takes as long as a few. Weights that are changed in place are seen;
    where one was moved or replaced, all is recorded anew.

    Of a Program of a decoder, single tokens behind a cache are recorded, on caches of a fixed length: its `generate`,
    and calls with `past_key_values`, replay one graph a token. Prompts run as before.

    Args:
        module: what to call; it must not wait for the GPU, and its inputs must be on one.
        max_graphs: how many shapes to keep; the one that was not used for longest makes room.
        outputs: "copied", or "shared": results are in memory that the next call of any shape may overwrite, which
            saves copying them. A decoder's are copied.
        tokens: of a decoder: for how many its caches are made at first. Longer ones are recorded anew, twice as long.

    Raises:
        ConfigError: a number is not positive, or `outputs` is unknown, or is "shared" of a decoder.
        FxQuantError: there is no CUDA device, the module is not on one, or it is a program whose steps cannot have a
            cache of fixed length: an encoder-decoder's, or those of a decoder that needs to know its length otherwise.
        InputError: on a call, where an input is not on the module's device.

    A call that cannot be recorded runs as it did, and an `FxQuantWarning` says why, once for each shape.
    """
    if not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"tokens = {tokens!r}: expected a positive integer")
    check(module, max_graphs, outputs)
    if not isinstance(module, Program) or not module.generates:
        return recorded(module, max_graphs, outputs)
    if outputs == "shared":
        raise ConfigError("outputs = 'shared': what a decoder returns is kept beyond the next token; leave it out")
    replayed = partial(recorded, max_graphs=1, outputs="copied")
    return module.with_steps(lambda step: RecordedSteps(step, replayed, tokens, max_graphs))
