"""What hftl asks of a backbone. The built-in ones and a plugin's answer the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from hftl.errors import BackboneError
from hftl.tasks import Task


@dataclass(frozen=True)
class Encoded:
    """One row, ready to be put into a batch.

    Attributes:
        inputs: keyword arguments of the model's forward for this row alone, without the batch dimension.
        cost: what the row costs the model, in tokens; 1 where all rows cost the same.
        truncated: whether the row was longer than the model reads, and cut.
    """

    inputs: dict[str, Any]
    cost: int = 1
    truncated: bool = False

    @property
    def lines(self) -> int:
        """Lines of logits that the row has."""
        return 1


@runtime_checkable
class Backbone(Protocol):
    """A pretrained network, before its weights are read.

    Making one reads configuration and preprocessing files; only `build` reads weights, and a warm run never calls it.

    Attributes:
        name: what a person calls it: a Hub id, a registered name, a folder's name.
        commit: the resolved commit of a Hub repository; None for local files, which are identified by their contents.
        modality: what it reads, for people: ``"image"``, ``"text"``, ``"audio"``, …
        wants: how a row arrives: ``"file"`` (encoded bytes) or ``"text"`` (a tuple of one or two strings).
        suffixes: the file name endings that a folder of data may hold, such as ``.png``; empty for text.
        pipeline_tag: the Hub's task name of the exported model, such as ``"image-classification"``.
        library: the Hub's name of the library that loads the exported model, such as ``"transformers"``.
        max_length: tokens kept of a row; None where rows are not cut.
        license: what the model's card states: ``license``, ``license_name``, ``license_link``, those given.
        pickled: whether the weights were published as a pickle, from which safetensors were made.
        notes: what a person should know about how this checkpoint is read, one sentence each.
        base_reference: what a library loads the pretrained model from: a Hub id, or a folder.
    """

    name: str
    commit: str | None
    modality: str
    wants: Literal["file", "text"]
    suffixes: frozenset[str]
    pipeline_tag: str
    library: str

    @property
    def max_length(self) -> int | None:  # noqa: D102
        ...

    @property
    def license(self) -> Mapping[str, str]:  # noqa: D102
        ...

    @property
    def pickled(self) -> bool:  # noqa: D102
        ...

    @property
    def notes(self) -> Sequence[str]:  # noqa: D102
        ...

    @property
    def base_reference(self) -> str:  # noqa: D102
        ...

    def identity(self) -> dict[str, Any]:
        """Everything about model and preprocessing that can change a feature, as JSON.

        The weights of local files are left to hftl, which hashes `weight_files` where ``commit`` is None.
        """
        ...

    def encode(self, rows: Sequence[Any], names: Sequence[str]) -> list[Encoded]:
        """Raw rows (bytes, or tuples of strings), made ready; called from threads, for files in other processes too.

        Raises:
            BadRowError: a row cannot be decoded; ``names`` says which.
        """
        ...

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Encoded rows as one batch of keyword arguments for the forward; first dimension ``len(rows)``."""
        ...

    def probes(self) -> list[dict[str, Tensor]]:
        """A few batches on which a cut is proved: of ragged lengths, with a row of full length, on every padding side.

        The first one is padded as `collate` pads; it tells whether padding changes a row's numbers.
        """
        ...

    def config(self, task: str, label_names: Sequence[str]) -> Any:
        """The ``PreTrainedConfig`` of the exported model for these labels."""
        ...

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """The pretrained classification model in eval mode, float32, and the names of the parameters of its head.

        The head's parameters are those that a base checkpoint does not bring, or whose shape the labels change.

        Raises:
            BackboneError: the weights cannot be read or do not fit.
        """
        ...

    def load_trained(self) -> tuple[nn.Module, set[str]]:
        """The classification model as the checkpoint has it, head included, in eval mode, float32.

        Returns:
            The model, and the names of parameters that the checkpoint lacks: a model that was never trained has some.

        Raises:
            BackboneError: the weights cannot be read.
        """
        ...

    def skeleton(self, config: Any) -> nn.Module:
        """The same model without its weights, on the meta device."""
        ...

    def weight_files(self) -> Mapping[str, Path]:
        """Each tensor's name in the checkpoint, and the safetensors file that holds it."""
        ...

    def save_processor(self, folder: Path) -> None:
        """Write the preprocessing files that the exported model needs."""
        ...


@runtime_checkable
class Shortenable(Protocol):
    """A backbone that can be had without its last blocks, as every `hftl.PretrainedBackbone` can."""

    def at_depth(self, depth: int) -> Backbone:
        """The first blocks of it and its final norm, as a backbone of its own; itself at its full depth.

        Raises:
            UserError: it has fewer blocks, or cannot be had without its last ones.
        """
        ...

    def prove_depth(self, model: nn.Module) -> None:
        """See that a model which `build` made has the blocks of this depth and no others.

        Raises:
            BackboneError: it has not.
        """
        ...


def at_depth(backbone: Backbone, depth: int) -> Backbone:
    """The first blocks of a backbone and its final norm.

    Raises:
        BackboneError: it cannot be had without its last blocks.
        RecipeError: it has fewer blocks.
    """
    if not isinstance(backbone, Shortenable):
        raise BackboneError(
            f"depth={depth}: {backbone.name} is a {type(backbone).__name__}, which offers no depths (it has no method "
            "at_depth): leave depth out, or choose another backbone"
        )
    return backbone.at_depth(depth)


@dataclass(frozen=True)
class Target:
    """A pretrained network and the configuration of the model that it is to become.

    Attributes:
        backbone: the pretrained network.
        config: from `Backbone.config`: label names, kind of task, float32.
    """

    backbone: Backbone
    config: Any

    def build(self) -> tuple[nn.Module, set[str]]:
        """The model with its pretrained weights, and its head's parameter names; see `Backbone.build`.

        Raises:
            BackboneError: the weights cannot be read, or the model has not the blocks that were asked for.
        """
        model, head = self.backbone.build(self.config)
        if isinstance(self.backbone, Shortenable):
            self.backbone.prove_depth(model)
        return model, head

    def skeleton(self) -> nn.Module:
        """The model without its weights; see `Backbone.skeleton`."""
        return self.backbone.skeleton(self.config)

    def at_depth(self, depth: int) -> Target:
        """The same labels on the backbone's first blocks; see `at_depth`."""
        backbone = at_depth(self.backbone, depth)
        names = [self.config.id2label[number] for number in range(len(self.config.id2label))]
        task = Task.of_config(self.config)
        return Target(backbone, backbone.config(task, names))
