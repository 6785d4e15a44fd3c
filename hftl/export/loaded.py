"""`LoadedModel`: an exported model that can be asked, whoever exported it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hftl.backbones.batching import equal_length_groups, needs_equal_lengths, on_device
from hftl.backbones.loading import load_backbone
from hftl.backbones.protocol import Backbone, Encoded
from hftl.errors import BackboneError
from hftl.hub.client import staying_offline
from hftl.onednn import speed_up
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.runs.folder import RunFolder
from hftl.tasks import Task
from hftl.wording import named_error


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
        if not run.model.is_dir() and (run.path / "adapter").is_dir():
            raise BackboneError(
                f"{where} holds only an adapter, which cannot be merged exactly into its base model: load it with "
                "peft's PeftModel.from_pretrained on that model"
            )
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
        return cls(backbone, network.to(device), _label_names(where, network.config), _task(network.config), device)

    @cached_property
    def equal_lengths(self) -> bool:
        """Whether rows have to run in batches of equal length, because padding changes this model's numbers.

        Raises:
            CutError: a row's numbers depend on its batch mates in any batch.
        """
        probes = [on_device(probe, self.device) for probe in self.backbone.probes()]
        return needs_equal_lengths(self.network, probes, self.backbone.name)

    def logits(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Logits (n, C) of encoded rows, float32 on the CPU: of each what the model gives for it alone.

        Raises:
            BackboneError: the model cannot read a row.
        """
        groups = equal_length_groups(encoded)
        # Rows of one length need no padding, so that nothing has to be known about it.
        if len(groups) > 1 and not self.equal_lengths:
            groups = [list(range(len(encoded)))]
        logits = torch.cat([self._of_batch([encoded[i] for i in group]) for group in groups])
        return logits[torch.tensor([i for group in groups for i in group]).argsort()]

    def _of_batch(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        batch = {name: value.to(self.device) for name, value in self.backbone.collate(encoded).items()}
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self.network(**batch).logits.float().cpu()
        # Some models refuse a batch for one of its rows, which they take alone.
        except Exception as error:
            if len(encoded) == 1:
                raise BackboneError(f"{self.backbone.name} cannot read a row: {named_error(error)[:200]}") from error
            return torch.cat([self._of_batch([row]) for row in encoded])
        return logits

    def scores(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Probabilities (n, C) of encoded rows, or targets for a regression; float32 on the CPU."""
        return self.task.scores(self.logits(encoded))


def _label_names(where: str, config: Any) -> list[str]:
    """The names of a model's outputs, in order.

    Raises:
        BackboneError: its configuration does not name each of them.
    """
    names = config.id2label or {}
    if sorted(names) != list(range(config.num_labels)):
        keys = ", ".join(map(str, sorted(names)[:3]))
        raise BackboneError(
            f"{where}: id2label in its config.json has to name outputs 0 to {config.num_labels - 1}, it has {keys}, …; "
            "number its keys from 0 in a copy of the model"
        )
    return [str(names[i]) for i in range(config.num_labels)]


def _task(config: Any) -> Task:
    """What a model's outputs are; one output of which nothing is said is a target, as transformers trains it."""
    if config.problem_type is None and config.num_labels == 1:
        return Task.REGRESSION
    return Task.of_problem_type(config.problem_type)
