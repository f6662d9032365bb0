"""Parameters that losses train beside the student: projections, embeddings of CRD, variances of VID.

They belong to the losses: made from them and the student's shape, seeded, trained by the student's optimiser and kept
in its checkpoints, and dropped at the end. What they are at first depends on the seed and their names alone.
"""

import torch
from torch import Tensor, nn

from boomspec.core.identity import text_digest
from boomspec.core.losses import Losses, PairLoss
from boomspec.core.losses.pairs import Trained


class LossParameters(nn.Module):
    """By loss, the number of a pair, and name: "hidden_mse.0.projection"."""

    def __init__(self, losses: Losses, *, layers: int, hidden: int, seed: int, device: torch.device) -> None:
        """Of a student of so many layers and so wide states."""
        super().__init__()
        for kind, term in losses.terms().items():
            if isinstance(term, PairLoss) and (trained := term.trained(hidden)):
                pairs = nn.ModuleList()
                for number in range(len(term.sites(layers))):
                    made = {name: _initial(of, f"{seed}/{kind}/{number}/{name}") for name, of in trained.items()}
                    pairs.append(nn.ParameterDict({name: tensor.to(device) for name, tensor in made.items()}))
                self.add_module(kind, pairs)

    def of(self, kind: str, number: int) -> dict[str, Tensor]:
        """Those of one pair of a loss."""
        pairs = self._modules.get(kind)
        return {} if not isinstance(pairs, nn.ModuleList) else dict(pairs[number].items())  # type: ignore[operator]


def _initial(of: Trained, seed: str) -> Tensor:
    if of.initial == "identity":
        return torch.eye(of.shape[0])
    if of.initial == "uniform":
        numbers = torch.Generator().manual_seed(int(text_digest(seed)[:15], 16))
        bound = of.shape[-1] ** -0.5
        return torch.empty(of.shape).uniform_(-bound, bound, generator=numbers)
    return torch.full(of.shape, float(of.initial))
