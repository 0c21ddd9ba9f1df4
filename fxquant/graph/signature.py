"""`Signature`: how a graph is called and what it returns; `SignatureCodeGen`: what makes a graph obey it.

A signature binds a call as the model's own forward would, checks it against what capture saw, flattens it into the
graph's inputs, and puts the graph's outputs back into the model's structure. It is data: it can be saved with a graph.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import fx

from fxquant.errors import ArtifactError
from fxquant.graph import edit, guards, structure
from fxquant.graph.attributes import read_directly
from fxquant.graph.calling import Fit, Leaf, Limits, Parameter, bind, explain, name_arguments, python_signature

NAME = "_fxquant_signature"  # of the signature in generated code


@dataclass(frozen=True)
class Signature:
    """How a graph is called and what it returns.

    Invariants:
        - `parameters` are those of the model's forward, in order.
        - `inputs` is the structure (graph/structure.py) of a dict from the names of the arguments that capture was
          given to their values; its leaves are `leaves`, which are the graph's placeholders, in order.
        - `ranges` gives the smallest and the largest size (None: any) of the symbols in `leaves` that are not free.
        - `conditions` (graph/guards.py) are those on the sizes that shapes and ranges do not state.
        - `outputs` is the structure of what is returned; its leaves are the graph's outputs, in order.
    """

    parameters: tuple[Parameter, ...]
    inputs: structure.Data
    leaves: tuple[Leaf, ...]
    outputs: structure.Data
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    conditions: tuple[guards.Tree, ...] = ()
    unflatten: Callable[[Sequence[Any]], Any] = field(init=False, repr=False, compare=False)
    python: inspect.Signature = field(init=False, repr=False, compare=False)
    _flat: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _limits: Limits = field(init=False, repr=False, compare=False)
    _fits: Fit = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        structure.builder(self.inputs)
        flat = all(item["kind"] == "leaf" for item in self.inputs["items"])
        object.__setattr__(self, "unflatten", structure.builder(self.outputs))
        object.__setattr__(self, "python", python_signature(self.parameters))
        object.__setattr__(self, "_flat", tuple(self.inputs["keys"]) if flat else ())
        if structure.count(self.inputs) != len(self.leaves):
            raise ArtifactError(f"a signature has {len(self.leaves)} leaves, its inputs {structure.count(self.inputs)}")
        for tree in self.conditions:
            guards.check(tree, [len(leaf.shape) for leaf in self.leaves])
        object.__setattr__(self, "_limits", Limits(self.ranges, self.conditions))
        object.__setattr__(self, "_fits", Fit(self.leaves, self._limits))

    def __hash__(self) -> int:
        return hash((self.parameters, self.leaves))  # generated code finds its globals by hash

    def to_dict(self) -> dict[str, Any]:
        """Return the signature as JSON-able data; `from_dict` reads it back."""
        return {
            "parameters": [asdict(parameter) for parameter in self.parameters],
            "inputs": self.inputs,
            "leaves": [
                {"name": leaf.name, "dtype": str(leaf.dtype).removeprefix("torch."), "shape": list(leaf.shape)}
                for leaf in self.leaves
            ],
            "outputs": self.outputs,
            "ranges": {symbol: list(range) for symbol, range in self.ranges.items()},
            "conditions": list(self.conditions),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build a signature from data, which may come from a damaged or hostile file.

        Raises:
            ArtifactError: the data is no signature.
        """
        try:
            return cls(
                parameters=tuple(_parameter(**each) for each in data["parameters"]),
                inputs=data["inputs"],
                leaves=tuple(Leaf(str(e["name"]), _dtype(e["dtype"]), _sizes(e["shape"])) for e in data["leaves"]),
                outputs=data["outputs"],
                ranges={str(symbol): _range(*limits) for symbol, limits in data["ranges"].items()},
                conditions=tuple(data["conditions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"{type(error).__name__}: {error}"
            raise ArtifactError(f"the call signature of a graph cannot be read ({found})") from None

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the graph's inputs for a call.

        Raises:
            InputError: the call is not one that the graph was captured for; the text names the argument.
        """
        if torch.compiler.is_compiling():  # tracers bring symbolic sizes, and guard on what they need themselves
            return tuple(bind(self.parameters, self.inputs, self._name(args, kwargs)))
        if not args and len(kwargs) == len(self._flat):
            # the common call: flat tensors, by their names
            leaves = [kwargs.get(name) for name in self._flat]
            if self._fits(leaves):
                return tuple(leaves)
        leaves = bind(self.parameters, self.inputs, self._name(args, kwargs))
        if not self._fits(leaves):
            explain(self.leaves, self._limits, leaves)
        return tuple(leaves)

    def _name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        known = f"the graph was captured with {', '.join(self.inputs['keys'])}"
        return name_arguments(self.parameters, args, kwargs, known) if args else kwargs

    def sign(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Let `inspect.signature` show the model's parameters for a generated forward, as a Trainer needs."""
        forward.__signature__ = self.python  # type: ignore[attr-defined]
        return forward


class SignatureCodeGen(fx.graph.CodeGen):
    """Generates a forward that flattens its arguments and rebuilds its result by a signature."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature
        self._body_transformer = read_directly

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        """Return the head of forward: its definition, and the line that takes the arguments apart."""
        head = f"@{NAME}.sign\ndef {self._func_name}(self, *args, **kwargs){maybe_return_annotation}:"
        annotations = [name for name in free_vars if ":" in name]
        names = [name.split(":")[0].split("#")[0].strip() for name in free_vars]
        lines = [*annotations, f"{', '.join(names)}, = {NAME}.flatten(args, kwargs)"]
        return "\n    ".join([head, *lines]) if names else head

    def generate_output(
        self,
        output_args: Any,
        *,
        descs: Sequence[str] | None = None,
        repr_fn: Callable[[object], str] | None = None,
    ) -> str:
        """Return the statement that returns the model's structure."""
        leaves = ", ".join((repr_fn or repr)(leaf) for leaf in output_args)
        return f"return {NAME}.unflatten(({leaves}{',' if leaves else ''}))"

    def process_inputs(self, *args: Any) -> Any:
        """Return the placeholders' values for the arguments of an fx.Interpreter, which has no names to give.

        As many as capture was given are those, in the order of forward; else they are forward's positional ones.
        """
        names = self.signature.inputs["keys"]
        if len(args) == len(names):
            return self.signature.flatten((), dict(zip(names, args, strict=True)))
        return self.signature.flatten(args, {})

    def process_outputs(self, outputs: Any) -> Any:
        """Return the model's structure for the value of the output node."""
        return self.signature.unflatten(outputs)

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return the names that the generated code reads."""
        return [(NAME, self.signature)]


def signature_of(gm: fx.GraphModule) -> Signature:
    """Return the signature by which a captured graph is called."""
    codegen = gm.graph._codegen
    assert isinstance(codegen, SignatureCodeGen), "graphs come from capture, which gives them a signature"
    return codegen.signature


def without_signature(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy, on the same tensors, that takes its placeholders' values by position and returns its outputs."""
    flat = edit.clone(gm)
    flat.graph.set_codegen(fx.graph.CodeGen())
    flat.recompile()
    return flat


def _parameter(name: Any, kind: Any, required: Any, default: Any) -> Parameter:
    if not isinstance(name, str) or not name.isidentifier() or not isinstance(default, structure.CONSTANTS):
        raise TypeError(f"{name!r} with the default {default!r} is no parameter")
    return Parameter(name, str(kind), bool(required), default)


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
    return dtype


def _sizes(shape: Any) -> tuple[int | str, ...]:
    if not all(isinstance(size, str) or type(size) is int for size in shape):
        raise TypeError(f"{shape!r} is no shape")
    return tuple(shape)


def _range(least: Any, most: Any) -> tuple[int, int | None]:
    return int(least), None if most is None else int(most)
