"""Which modules of a layer add to the stream: what can be fitted at the seams of a size, and folded into its weights.

A row of `families` names them, for families whose layers have their norms in front and multiply nothing that they add.
Whether a model is such a one is checked against its tensors; that a product is added as it is, the fit itself checks.
"""

from boomspec.core.errors import BoomspecError
from boomspec.models.facts import ModelFacts
from boomspec.models.families import FAMILIES, row_of
from boomspec.models.fit import place_of


def writes_of(facts: ModelFacts) -> tuple[str, str]:
    """The modules by their names in a layer, of attention and of the MLP; BoomspecError where none are known."""
    found = row_of(facts.model_type).writes
    if found is None:
        known = ", ".join(sorted(name for name, row in FAMILIES.items() if row.writes is not None))
        message = f"it is not known where the layers of a {facts.model_type} model add to the stream"
        raise BoomspecError(message, hint=f"seams of these families can be mended: {known}")
    hidden = facts.token_embedding.shape[1]
    for number, layer in enumerate(facts.layers):
        shapes = {place_of(entry.name, facts.prefix): entry.shape for entry in layer}
        for name in found:
            if hidden not in (shape := shapes.get(f"{name}.weight", ())) or len(shape) != 2:
                raise BoomspecError(f"layer {number} has no matrix '{name}.weight' that adds to a stream of {hidden}")
    return found
