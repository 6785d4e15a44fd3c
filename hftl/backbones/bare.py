"""Base models of transformers that have no classification class: their tokens pooled, and one linear layer on top.

DINOv3, AIMv2, the image towers of CLIP and SigLIP, MAE and Pixio are published without a classifier. `PooledClassifier`
gives them one that behaves as transformers' own do, so that everything else works on it: cuts, heads, fine-tuning. What
is exported is the base model in its own class, which any transformers loads, with the head in two plain files beside
it: ``head.safetensors`` and ``head.json``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hftl.backbones.files import WEIGHTS
from hftl.backbones.source import Source
from hftl.backbones.vision import ImageBackbone
from hftl.errors import BackboneError, RecipeError
from hftl.wording import named_error

HEAD_FACTS, HEAD_WEIGHTS = "head.json", "head.safetensors"
BODY, HEAD = "body", "classifier"


@dataclass(frozen=True)
class Pooled:
    """How one vector is made of what a base model returns.

    Attributes:
        kind: ``cls`` for the first token, ``mean`` over the patches, ``cls+mean`` for both behind each other (which
            DINOv2 and DINOv3 are evaluated with), ``pooler`` for the model's own pooled output.
        skip: tokens before the first patch: the class token, and registers, which stand for no patch.
    """

    kind: str
    skip: int

    def of(self, output: Any) -> Tensor:
        """The vectors (n, d) of a base model's output."""
        if self.kind == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        tokens = tokens_of(output)
        parts = {"cls": lambda: tokens[:, 0], "mean": lambda: tokens[:, self.skip :].mean(1)}
        return torch.cat([parts[part]() for part in self.kind.split("+")], dim=1)


def tokens_of(output: Any) -> Tensor:
    """A base model's last output as tokens (n, t, d); a map (n, d, h, w) is read row by row."""
    tokens: Tensor = output.last_hidden_state
    return tokens.flatten(2).mT if tokens.dim() == 4 else tokens


class PooledClassifier(PreTrainedModel):  # type: ignore[misc]
    """A base model, a pooling, and a linear layer; `classifier_class` makes the class of each family.

    Loaded from a checkpoint of the base model as a classification class of transformers is: the body's tensors are
    found under their own names, and the head is new.
    """

    base_model_prefix = BODY
    pooling: Pooled
    width: int

    def __init__(self, config: Any, body: Any = None) -> None:
        super().__init__(config)
        self.body = AutoModel.from_config(config) if body is None else body
        self.classifier = nn.Linear(self.width, config.num_labels)
        if body is None:
            self.post_init()

    def forward(self, **inputs: Tensor) -> ImageClassifierOutput:
        """Logits (n, C) of a batch."""
        return ImageClassifierOutput(logits=self.classifier(self.pooling.of(self.body(**inputs))))


def classifier_class(config: Any, pooling: Pooled, width: int) -> type[PooledClassifier]:
    """The classifier of a family of models: what the family says of devices and attention holds for it too.

    Args:
        config: of the base model.
        pooling: how its output is pooled.
        width: numbers of a pooled vector.
    """
    base = _meta_model(config).__class__
    family = next(each for each in base.__mro__ if each.__name__.endswith("PreTrainedModel"))
    inherited = {name: getattr(family, name) for name in ("_no_split_modules", "_supports_sdpa", "main_input_name")}
    fields = {**inherited, "config_class": type(config), "pooling": pooling, "width": width}
    return type(f"{base.__name__}Pooled", (PooledClassifier,), fields)


def _meta_model(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)


class _PooledAuto:
    """What `PretrainedBackbone` asks of one of transformers' Auto classes, for a class of ours."""

    def __init__(self, kind: type[PooledClassifier]) -> None:
        self.kind = kind

    def from_config(self, config: Any, **_: Any) -> PooledClassifier:
        made: PooledClassifier = self.kind._from_config(config)
        return made

    def from_pretrained(self, _: None, *, config: Any, **options: Any) -> tuple[PooledClassifier, dict[str, Any]]:
        # transformers finds the base model in a classifier's checkpoint too, whatever that calls it.
        body, loading = type(_meta_model(config)).from_pretrained(None, config=config, **options)
        model = self.kind(config, body)
        inside = {name: [f"{BODY}.{key}" for key in loading[name]] for name in ("missing_keys", "unexpected_keys")}
        new = [name for name, _ in model.named_parameters() if not name.startswith(f"{BODY}.")]
        mismatched = [(f"{BODY}.{name}", *shapes) for name, *shapes in loading["mismatched_keys"]]
        return model, {**inside, "missing_keys": [*inside["missing_keys"], *new], "mismatched_keys": mismatched}


class BareImageBackbone(ImageBackbone):
    """A base model for images with its image processor, and a pooling in place of a classifier.

    Args:
        source: where its files are.
        pooling: see `Pooled`; None for what its head file says, or else ``cls+mean`` where it has a class token and
            ``mean`` where it has none.

    Raises:
        BackboneError: the model returns nothing that can be pooled.
        RecipeError: it has nothing that this pooling could take.
    """

    pipeline_tag = "image-feature-extraction"

    def __init__(self, source: Source, pooling: str | None = None) -> None:
        super().__init__(source)
        self._asked = pooling

    @cached_property
    def base_config(self) -> Any:
        """The checkpoint's own configuration; one of a masked autoencoder shows its model all of a picture."""
        config = super().base_config
        if getattr(config, "mask_ratio", 0):
            config.mask_ratio = 0.0
        return config

    @cached_property
    def _output(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what the base model returns of two pictures, without its weights."""
        batch = {name: value.to("meta") for name, value in super().probes()[0].items()}
        try:
            with torch.no_grad():
                output = _meta_model(self.base_config).eval()(**batch)
            shapes = {"last_hidden_state": tuple(tokens_of(output).shape)}
        except Exception as error:  # whatever a model's class raises, or lacks, on what its preprocessing gives
            raise BackboneError(
                f"{self.name} returns nothing that can be pooled to one vector a picture: {named_error(error)[:200]}"
            ) from error
        pooled = getattr(output, "pooler_output", None)
        return shapes | ({"pooler_output": tuple(pooled.shape)} if pooled is not None and pooled.dim() == 2 else {})

    @cached_property
    def pooling(self) -> Pooled:
        """How one vector is made of a picture's tokens."""
        skip = self._skip
        kind = self._asked or self._stated.get("pooling") or ("cls+mean" if skip else "mean")
        if "cls" in kind and not skip:
            raise RecipeError(f"pooling={kind!r}: {self.name} has no class token; take mean")
        if kind == "pooler" and "pooler_output" not in self._output:
            raise RecipeError(
                f"pooling='pooler': {self.name} has no pooled output; take {'cls+mean' if skip else 'mean'}"
            )
        return Pooled(kind, skip)

    @property
    def _stated(self) -> dict[str, Any]:
        """What an export says of its own head; nothing of any other model."""
        file = self.source.folder / HEAD_FACTS
        try:
            stated: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return stated
        except ValueError as error:
            raise BackboneError(f"{self.name}: its {HEAD_FACTS} is damaged ({error}); fetch it again") from error

    @cached_property
    def _skip(self) -> int:
        """Tokens before the first patch, by what the configuration says of them and what is left being a grid."""
        config, tokens = self.base_config, self._output["last_hidden_state"][1]
        registers = getattr(config, "num_register_tokens", 0) or 0
        for before in dict.fromkeys((getattr(config, "n_cls_tokens", 0), registers + 1, 1, registers, 0)):
            left = tokens - before
            if left > 0 and math.isqrt(left) ** 2 == left:
                return int(before)
        raise BackboneError(f"{self.name} returns {tokens} tokens of a square picture, which are no grid of patches")

    @cached_property
    def auto_class(self) -> Any:
        """The class that the model becomes."""
        name = "pooler_output" if self.pooling.kind == "pooler" else "last_hidden_state"
        width = self._output[name][-1] * (1 + self.pooling.kind.count("+"))
        return _PooledAuto(classifier_class(self.base_config, self.pooling, width))

    def identity(self) -> dict[str, Any]:
        """As for every model, and how its output is pooled."""
        return super().identity() | {"pooling_of_base": asdict(self.pooling)}

    @property
    def notes(self) -> list[str]:
        """As for every model, and how its output is pooled."""
        own = type(self.base_config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        why = "as asked, in place of its classification class" if own else "which has no classification class"
        return [*super().notes, f"pooling: {self.pooling.kind} of the base model, {why}"]

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """As for every model; the head is the linear layer alone.

        Raises:
            BackboneError: the weights do not fit, or lack the pooled output that is asked for.
        """
        model, head = super().build(config)
        own = {name for name in head if name.startswith(f"{HEAD}.")}
        if self.pooling.kind == "pooler" and head != own:
            raise BackboneError(
                f"{self.name}: its weights lack what its pooled output is made by ({sorted(head - own)[0]}): take "
                "pooling='cls+mean' or 'mean'"
            )
        # What else the checkpoint lacks is a pooler that nothing reads.
        self._drawn = []
        return model, own

    def load_trained(self) -> tuple[Any, set[str]]:
        """The model with the head that lies beside it."""
        model, lacking = super().load_trained()
        untrained = {name for name in lacking if name.startswith(f"{HEAD}.")}
        file = self.source.folder / HEAD_WEIGHTS
        if file.is_file():
            head = {f"{HEAD}.{name}": value for name, value in load_file(file).items()}
            model.load_state_dict(head, strict=False)
            untrained -= set(head)
        return model, untrained

    def part_head(self, folder: Path, label_names: list[str]) -> None:
        """Make of an exported classifier what others can load: the base model in its own class, the head beside it.

        Args:
            folder: with the classifier's weights and configuration.
            label_names: of its outputs.
        """
        tensors = load_file(folder / WEIGHTS)
        inside = f"{BODY}."
        body = {name.removeprefix(inside): value for name, value in tensors.items() if name.startswith(inside)}
        head = {name.removeprefix(f"{HEAD}."): value for name, value in tensors.items() if not name.startswith(inside)}
        save_file(body, folder / WEIGHTS, metadata={"format": "pt"})
        save_file(head, folder / HEAD_WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = [type(_meta_model(self.base_config)).__name__]
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        facts = {"pooling": self.pooling.kind, "skip": self.pooling.skip, "labels": label_names}
        (folder / HEAD_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
