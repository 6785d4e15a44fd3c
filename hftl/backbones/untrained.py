"""A backbone's random twin: the same architecture and preprocessing, with the weights that training begins with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hftl.backbones.bare import Bare
from hftl.backbones.configuration import without_generation
from hftl.backbones.pretrained import PretrainedBackbone
from hftl.errors import BackboneError


class Untrained:
    """Answers like the backbone that it is made of, but for its weights.

    Args:
        backbone: a pretrained one of transformers.
        seed: of the weights, which the class draws as it always does.

    Raises:
        BackboneError: the backbone builds its model in a way of its own, which says nothing of random weights.
    """

    def __init__(self, backbone: Any, seed: int) -> None:
        if getattr(type(backbone), "build", None) not in (PretrainedBackbone.build, Bare.build):
            raise BackboneError(f"{backbone.name} builds its model in its own way, not from a configuration")
        self._backbone = backbone
        self._seed = seed
        self.name = f"{backbone.name} untrained {seed}"
        # Names the weights as a commit does: no file holds them.
        self.commit: str | None = f"untrained-{seed}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def identity(self) -> dict[str, Any]:
        """The backbone's own, and all that decides the drawn weights."""
        drawn = {"seed": self._seed, "torch": torch.__version__, "transformers": transformers.__version__}
        return {**self._backbone.identity(), "untrained": drawn}

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """The classification model with random weights, in eval mode, float32; and its head's parameter names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            model = self._backbone.auto_class.from_config(copy.deepcopy(config), trust_remote_code=False)
        without_generation(model.config)
        return model.float().eval(), self._backbone.head_of(model)

    def weight_files(self) -> Mapping[str, Path]:
        """None: the weights are drawn."""
        return {}
