"""Least squares with a ridge, added up batch by batch: for weights that are fitted on calibration text.

Shapes: N positions of any sequence, F features, D outputs.
"""

import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError


class LeastSquares:
    """min over X_DF of sum_n w_n |residual_n - X feature_n|^2 + ridge * e * |X|^2, e: mean square of a feature.

    The sums are in fp64 on the features' device. `diagonal`: X has one number for each channel, and features and
    residuals are of one width.
    """

    def __init__(
        self, features: int, outputs: int, *, diagonal: bool = False, device: torch.device | None = None
    ) -> None:
        self.diagonal = diagonal
        gram, cross = ((features,), (outputs,)) if diagonal else ((features, features), (features, outputs))
        self.gram = torch.zeros(gram, dtype=torch.float64, device=device)
        self.cross = torch.zeros(cross, dtype=torch.float64, device=device)

    def add(self, features_NF: Tensor, residual_ND: Tensor, weight_N: Tensor) -> None:
        """Positions with the weights of their squared errors."""
        root_N1 = weight_N.double().sqrt()[:, None]
        weighed_NF, weighed_ND = features_NF.double() * root_N1, residual_ND.double() * root_N1
        if self.diagonal:
            self.gram += weighed_NF.square().sum(0)
            self.cross += (weighed_NF * weighed_ND).sum(0)
        else:
            self.gram.addmm_(weighed_NF.T, weighed_NF)
            self.cross.addmm_(weighed_NF.T, weighed_ND)

    def solve(self, ridge: float) -> Tensor:
        """X_DF in fp64; a vector of D where it is diagonal. Raises BoomspecError for sums that are not finite."""
        if not (torch.isfinite(self.gram).all() and torch.isfinite(self.cross).all()):
            raise BoomspecError("hidden states on the calibration text are not finite: nothing can be fitted to them")
        squares = self.gram if self.diagonal else self.gram.diagonal()
        damping = max(ridge * float(squares.mean()), torch.finfo(torch.float64).tiny)
        if self.diagonal:
            return self.cross / (self.gram + damping)
        damped = self.gram + damping * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            hint = "give more calibration sequences, or a larger ridge"
            raise BoomspecError("the calibration text determines too few of the weights to be fitted", hint=hint)
        return torch.cholesky_solve(self.cross, factor).T
