"""`FxQuantizer`: recipes and backends of fxquant as a quantizer for torchao's prepare_pt2e and convert_pt2e.

Importing this module imports torchao.
"""

from pathlib import Path
from typing import Any

from torch import fx

from fxquant.backends import Backend, load_backend
from fxquant.errors import ConfigError
from fxquant.graph import edit
from fxquant.integrations.packages import need
from fxquant.integrations.pt2e.inwards import BACKEND, module_path
from fxquant.integrations.pt2e.observers import spec_in_torchao
from fxquant.ledger import Ledger, read_ledger
from fxquant.ops.base import read_constant
from fxquant.passes.annotate import Annotate
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.claims import claimed_sites
from fxquant.recipe import Recipe
from fxquant.spec import QuantSpec

_torchao: Any = need("torchao.quantization.pt2e.quantizer", "pt2e", "FxQuantizer")
ANNOTATION = "quantization_annotation"  # the key that torchao reads in the metadata of nodes


class FxQuantizer(_torchao.Quantizer):
    """Annotates an exported graph as a recipe and a backend say, with fxquant's observers: `prepare_pt2e(model, …)`.

    `prepare_pt2e` brings the graph into fxquant's canonical form first, so that the backend's patterns match as they do
    in `fxquant.prepare`. What `convert_pt2e` makes holds the scales and integers that `fxquant.convert` would, in the
    operators of quantized_decomposed; biases stay in float.

    Args:
        recipe: a packaged recipe's name, the path of a recipe file, its data, or a Recipe.
        backend: a packaged backend's name, the path of a backend file, or a Backend.

    `ledger` holds, after `prepare_pt2e`, what will be done to each op of the graph, or why nothing.

    Raises:
        ConfigError: an unknown or invalid backend or recipe.
    """

    def __init__(
        self, recipe: str | Path | Recipe | dict[str, Any] = "static", backend: str | Path | Backend = BACKEND
    ) -> None:
        self.backend = load_backend(backend)
        self.recipe = self.backend.recipe(recipe)
        self.ledger: Ledger | None = None

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Bring an exported graph into the canonical form, in place, and return it; the same numbers, to roundings."""
        for node in model.graph.nodes:
            edit.mark(node, path=module_path(node) or None)
        return CANONICAL.run(model)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write on every op that a rule claims how its inputs are quantized, and return the model."""
        Annotate(self.backend, self.recipe).apply(model)
        for site in claimed_sites(model):
            for role, spec in site.claim.specs.items():
                # torchao has no zero point and scale of a bias, and a result is quantized by what reads it
                if role != "output" and spec.dtype != "int32":
                    for edge in site.edges.get(role, ()):
                        _annotate(edge.user, edge.source, spec)
        self.ledger = read_ledger(model)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Raise `ConfigError` where nothing of the model will be quantized."""
        if not any(ANNOTATION in node.meta for node in model.graph.nodes):
            wish = f"{self.recipe.label} for {self.backend.name}"
            raise ConfigError(f"{wish} quantizes no op of the model; `ledger` of the quantizer says why")


def _annotate(user: fx.Node, source: fx.Node, spec: QuantSpec) -> None:
    found = user.meta.setdefault(ANNOTATION, _torchao.QuantizationAnnotation(_annotated=True))
    found.input_qspec_map[source] = spec_in_torchao(spec, read_constant(source) is not None)
