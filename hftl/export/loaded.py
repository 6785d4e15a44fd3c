"""`LoadedModel`: an exported model that can be asked, whoever exported it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hftl.backbones.loading import load_backbone
from hftl.backbones.protocol import Backbone, Encoded
from hftl.errors import BackboneError
from hftl.hub.client import staying_offline
from hftl.onednn import speed_up
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.runs.folder import RunFolder
from hftl.tasks import Task


@dataclass(frozen=True)
class LoadedModel:
    """An exported model that can be asked.

    Attributes:
        backbone: its preprocessing.
        network: the classification model in eval mode, on ``device``.
        label_names: names of its outputs.
        task: what its outputs are.
        device: where it runs.
    """

    backbone: Backbone
    network: Any
    label_names: list[str]
    task: Task
    device: torch.device

    @classmethod
    def load(cls, ref: str | Path, *, offline: bool = False) -> LoadedModel:
        """Load a run's folder, a model's folder, or a Hub id, with its trained head.

        Args:
            ref: which.
            offline: use only what is on this machine.

        Raises:
            BackboneError: there is no such model, or it has no trained head.
        """
        run = RunFolder(Path(ref).expanduser())
        where = str(run.model) if run.model.is_dir() else str(ref)
        if (Path(where) / "modules.json").exists():
            raise BackboneError(
                f"{where} is a sentence-transformers model: "
                f"SentenceTransformer({where!r}).encode(texts) gives its logits"
            )
        with staying_offline(offline):
            backbone = load_backbone(find(where), BackboneOptions(offline=offline))
            network, untrained = backbone.load_trained()
        if untrained:
            raise BackboneError(
                f"{where} has no trained head ({', '.join(sorted(untrained))} missing): run a recipe first"
            )
        speed_up(network)
        device = PartialState().device
        config: Any = network.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        return cls(backbone, network.to(device), names, Task.of_problem_type(config.problem_type), device)

    def logits(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Logits (n, C) of encoded rows, float32 on the CPU."""
        batch = {name: value.to(self.device) for name, value in self.backbone.collate(encoded).items()}
        with torch.inference_mode():
            logits: torch.Tensor = self.network(**batch).logits.float().cpu()
        return logits

    def scores(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Probabilities (n, C) of encoded rows, or targets for a regression; float32 on the CPU."""
        return self.task.scores(self.logits(encoded))
