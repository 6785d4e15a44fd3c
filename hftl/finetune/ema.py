"""An exponential moving average of what trains, evaluated and exported in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hftl.finetune.engine import assign


class Ema:
    """The average ``a ← d·a + (1 − d)·p`` after each step t (Polyak & Juditsky 1992).

    Early averages are short: ``d = min(decay, (1 + t) / (10 + t))``.

    Args:
        parameters: those that train, by name.
        decay: of the average; close to 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.averages = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step; 0 is the first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.averages.values()), [p.detach() for p in self.parameters.values()], step)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Go on from averages of a checkpoint."""
        for name, value in self.averages.items():
            assign(value, averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in the model's parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)
