"""`LoadedModel`: an exported model that can be asked, whoever exported it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hftl.backbones.batching import batch_logits, equal_length_groups, needs_equal_lengths, on_device
from hftl.backbones.files import is_onnx_folder
from hftl.backbones.loading import as_published, for_words, load_backbone
from hftl.backbones.protocol import Backbone, Encoded
from hftl.errors import BackboneError, HftlError
from hftl.export.onnx import ONNX_FOLDERS, OnnxNetwork
from hftl.hub.client import staying_offline
from hftl.onednn import speed_up
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.runs.folder import RunFolder
from hftl.runs.record import RunRecord
from hftl.tasks import Task
from hftl.wording import listing, named_error, one_line


@dataclass(frozen=True)
class LoadedModel:
    """An exported model that can be asked.

    Attributes:
        backbone: its preprocessing.
        network: the classification model in eval mode, on ``device``.
        label_names: names of its outputs.
        task: what its outputs are.
        device: where it runs.
        run: the run that exported it; None where the model stands alone.
        thresholds: of several labels, the probability of each above which it is predicted; None for 0.5.
        abstain_below: of one label a row, the highest probability below which none is predicted; None to answer always.
    """

    backbone: Backbone
    network: Any
    label_names: list[str]
    task: Task
    device: torch.device
    run: RunFolder | None = None
    thresholds: list[float] | None = None
    abstain_below: float | None = None

    @cached_property
    def record(self) -> RunRecord | None:
        """What that run was made of."""
        return self.run.record() if self.run else None

    @property
    def input_columns(self) -> list[str] | None:
        """The columns that the model was trained on, two for pairs of texts; None where nobody recorded them."""
        return self.record.input_columns if self.record else None

    def trained_on(self) -> dict[str, Any]:
        """How the run read its data, as arguments of `hftl.data.load_evaluation_data`; empty without a run."""
        if self.record is None:
            return {}
        return {
            "trained_on": (self.record.input_columns or (), self.record.label_columns or ()),
            "label_separator": self.record.recipe.get("label_separator"),
            "unlabelled": self.record.recipe.get("unlabelled"),
            "out_of_scope": self.record.recipe.get("out_of_scope"),
        }

    @classmethod
    def load(cls, ref: str | Path, *, offline: bool = False) -> LoadedModel:
        """Load a run's folder, a model's folder, or a Hub id, with its trained head.

        Args:
            ref: which.
            offline: use only what is on this machine.

        Raises:
            BackboneError: there is no such model, or it has no trained head.
            HftlError: the files are not those that the run wrote.
        """
        given = Path(ref).expanduser()
        run = run_of(given)
        in_onnx = run is not None and given.name in ONNX_FOLDERS
        if run and not in_onnx and not run.model.is_dir() and (run.path / "adapter").is_dir():
            raise BackboneError(
                f"{run.path} holds only an adapter, which cannot be merged exactly into its base model: load it with "
                "peft's PeftModel.from_pretrained on that model"
            )
        if run and not in_onnx:
            run.check_files(run.model)
        where = str(run.model) if run and not in_onnx else str(ref)
        with staying_offline(offline):
            backbone = as_published(load_backbone(find(where), BackboneOptions(offline=offline)))
            config = getattr(backbone, "base_config", None)
            if config is not None and Task.of_config(config).of_words:
                backbone = for_words(backbone)
            network, untrained = _trained(backbone, Path(where).expanduser())
        if untrained:
            raise BackboneError(
                f"{where} has no trained head ({', '.join(sorted(untrained))} missing): run a recipe first"
            )
        speed_up(network)
        device = PartialState().device
        config = network.config
        lacking = [number for number in range(config.num_labels) if number not in config.id2label]
        if lacking:
            raise BackboneError(
                f"{where}: its config.json names no label for output {lacking[0]} (id2label has the keys "
                f"{listing(list(config.id2label))}); number them from 0 to {config.num_labels - 1}"
            )
        names = unique_names([config.id2label[i] for i in range(config.num_labels)])
        task = Task.of_config(config)
        thresholds = checked_thresholds(getattr(config, "thresholds", None), len(names), where)
        below = checked_abstention(getattr(config, "abstain_below", None), task, where)
        return cls(backbone, network.to(device), names, task, device, run, thresholds, below)

    def on_cpu(self) -> LoadedModel:
        """The same model on the CPU."""
        return replace(self, network=self.network.cpu(), device=torch.device("cpu"))

    def logits(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Logits (n, C) of encoded rows, float32 on the CPU: of each what the model gives for it alone.

        Of sentences those of all words, (words, C).

        Raises:
            BackboneError: the model cannot read a row.
            HftlError: the logits are no numbers.
        """
        if isinstance(self.network, OnnxNetwork) and self.network.ranges_of_batch:
            groups = [[row] for row in range(len(encoded))]
        else:
            groups = equal_length_groups(encoded)
            # Rows of one length need no padding, so that nothing has to be known about it.
            if len(groups) > 1 and not self.equal_lengths:
                groups = [list(range(len(encoded)))]
        parts: list[torch.Tensor] = [torch.empty(0, len(self.label_names))] * len(encoded)
        for group in groups:
            batch = on_device(self.backbone.collate([encoded[i] for i in group]), self.device)
            try:
                with torch.inference_mode():
                    found = batch_logits(self.network, batch).float().cpu()
            except Exception as error:
                raise BackboneError(f"{self.backbone.name} cannot read a row: {named_error(error)}") from error
            for i, lines in zip(group, torch.split(found, [encoded[i].lines for i in group]), strict=True):
                parts[i] = lines
        logits = torch.cat(parts) if parts else torch.empty(0, len(self.label_names))
        self.check(logits)
        return logits

    @cached_property
    def equal_lengths(self) -> bool:
        """Whether padding changes the model's numbers, so that rows run in batches of equal length.

        Raises:
            CutError: a row's numbers depend on its batch mates in any batch.
        """
        probes = [on_device(probe, self.device) for probe in self.backbone.probes()]
        return needs_equal_lengths(self.network, probes, self.backbone.name)

    def check(self, logits: torch.Tensor) -> None:
        """Refuse logits that are no numbers; a label made of them would look like any other.

        Raises:
            HftlError: there is one.
        """
        if not torch.isfinite(logits).all():
            name = self.run.path if self.run else self.backbone.name
            raise HftlError(f"{name} gives scores that are no numbers (NaN or infinite): its weights are damaged")

    def scores(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Probabilities (n, C) of encoded rows, or targets for a regression; float32 on the CPU."""
        return self.task.scores(self.logits(encoded))


def _trained(backbone: Backbone, folder: Path) -> tuple[Any, set[str]]:
    """A folder's model, and the parameters that it lacks: an ONNX file where there is one, else its weights."""
    return (OnnxNetwork(folder), set()) if is_onnx_folder(folder) else backbone.load_trained()


def run_of(path: Path) -> RunFolder | None:
    """The finished run that a folder is, or that it is the model of; None where it is neither.

    Raises:
        UserError: the run did not finish.
    """
    if RunFolder.is_run(path):
        return RunFolder.open(path)
    if path.name in (RunFolder(path.parent).model.name, *ONNX_FOLDERS) and RunFolder.is_run(path.parent):
        return RunFolder.open(path.parent)
    return None


def checked_thresholds(stated: Any, labels: int, where: str) -> list[float] | None:
    """The thresholds that a configuration states, if any.

    Raises:
        BackboneError: they are not one probability for each label.
    """
    if stated is None:
        return None
    if not isinstance(stated, list) or len(stated) != labels or not all(is_probability(each) for each in stated):
        raise BackboneError(
            f"{where}: thresholds in its config.json are {one_line(stated, 60)}; write {labels} numbers from 0 to 1, "
            "one for each label, or remove them"
        )
    return [float(each) for each in stated]


def checked_abstention(stated: Any, task: Task, where: str) -> float | None:
    """The probability below which a configuration says that the model abstains, if it says so.

    Raises:
        BackboneError: it is no probability, or rows have not one label each.
    """
    if stated is None:
        return None
    if not task.is_exclusive or not is_probability(stated):
        raise BackboneError(
            f"{where}: abstain_below in its config.json is {one_line(stated, 60)}; write a number from 0 to 1 for a "
            "model of one label a row, or remove it"
        )
    return float(stated)


def is_probability(value: Any) -> bool:
    """Whether a value from a JSON file is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of outputs, those that stand twice (ImageNet has two cranes) with the output's number behind them."""
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
