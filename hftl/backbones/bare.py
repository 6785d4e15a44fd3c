"""Base models of transformers with a pooling in place of a classification class, and one linear layer on top.

DINOv3, AIMv2, the image towers of CLIP and SigLIP, MAE and Pixio are published without a classifier, and so are many
text encoders. `PooledClassifier` gives them one that behaves as transformers' own do, so that everything else works on
it: cuts, heads, fine-tuning. What is exported is the base model in its own class, which any transformers loads, with
the head in two plain files beside it: ``head.safetensors`` and ``head.json``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput
from typing_extensions import Self

from hftl.backbones.pooling import MASKS, Layout, Pooled, last_of, layout_of, tokens_of
from hftl.backbones.pretrained import PretrainedBackbone
from hftl.backbones.sentence import MODULES, POOLINGS
from hftl.backbones.source import Source
from hftl.backbones.text import TextBackbone, padding_index
from hftl.backbones.vision import ImageBackbone
from hftl.errors import BackboneError, RecipeError
from hftl.wording import listing, named_error, one_line

HEAD_FACTS, HEAD_WEIGHTS = "head.json", "head.safetensors"
BODY, HEAD = "body", "classifier"
# Kinds that weights of the model's own make, beside its tokens.
OWN = ("pooler", "projection")


class PooledClassifier(PreTrainedModel):  # type: ignore[misc]
    """A base model, a pooling, and a linear layer; `classifier_class` makes the class of each family.

    Loaded from a checkpoint of the base model as a classification class of transformers is: the body's tensors are
    found under their own names, and the head is new.
    """

    base_model_prefix = BODY
    pooling: Pooled
    width: int
    # Whether the checkpoint brought no weights for its pooled output, which is then noise.
    lacks_pooler = False

    def __init__(self, config: Any, body: Any = None) -> None:
        super().__init__(config)
        self.body = AutoModel.from_config(config) if body is None else body
        if self.pooling.call != "forward":
            self.body.forward = getattr(self.body, self.pooling.call)
            self.never_run = [f"{BODY}.{name}" for name, _ in self.body.named_children() if name.startswith("text_")]
        self.classifier = nn.Linear(self.width, config.num_labels)
        if body is None:
            self.post_init()

    def forward(self, **inputs: Tensor) -> ImageClassifierOutput:
        """Logits (n, C) of a batch."""
        return ImageClassifierOutput(logits=self.classifier(self.pooling.of(self.body(**inputs), inputs)))


def classifier_class(config: Any, base: type, pooling: Pooled, width: int) -> type[PooledClassifier]:
    """The classifier of a family of models: what the family says of devices and attention holds for it too.

    Args:
        config: of the base model.
        base: the base model's own class.
        pooling: how its output is pooled.
        width: numbers of a pooled vector.
    """
    family = next(each for each in base.__mro__ if each.__name__.endswith("PreTrainedModel"))
    inherited = {name: getattr(family, name) for name in ("_no_split_modules", "_supports_sdpa", "main_input_name")}
    fields = {**inherited, "config_class": type(config), "pooling": pooling, "width": width}
    return type(f"{base.__name__}Pooled", (PooledClassifier,), fields)


def _meta_model(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)


def has_text_tower(base: nn.Module) -> bool:
    """Whether a base model for pictures embeds texts too, so that the scaled product of the two says what fits."""
    return all(hasattr(base, name) for name in ("get_image_features", "get_text_features", "logit_scale"))


class _PooledAuto:
    """What `PretrainedBackbone` asks of one of transformers' Auto classes, for a class of ours."""

    def __init__(self, kind: type[PooledClassifier], base: Any) -> None:
        self.kind, self.base = kind, base

    def from_config(self, config: Any, **_: Any) -> PooledClassifier:
        made: PooledClassifier = self.kind._from_config(config)
        return made

    def from_pretrained(self, _: None, *, config: Any, **options: Any) -> tuple[PooledClassifier, dict[str, Any]]:
        # transformers finds the base model in a classifier's checkpoint too, whatever that calls it.
        body, loading = self.base.from_pretrained(None, config=config, **options)
        model = self.kind(config, body)
        inside = {name: [f"{BODY}.{key}" for key in loading[name]] for name in ("missing_keys", "unexpected_keys")}
        new = [name for name, _ in model.named_parameters() if not name.startswith(f"{BODY}.")]
        mismatched = [(f"{BODY}.{name}", *shapes) for name, *shapes in loading["mismatched_keys"]]
        return model, {**inside, "missing_keys": [*inside["missing_keys"], *new], "mismatched_keys": mismatched}


@dataclass(frozen=True)
class Output:
    """What a base model returns.

    Attributes:
        tokens: how many, of the first probe.
        width: numbers of a token.
        pooled: numbers of its own pooled output; None where it has none.
        layout: of its last output; see `Pooled`.
        mask: the input that tells tokens from padding, if there is one.
    """

    tokens: int
    width: int
    pooled: int | None
    layout: Layout
    mask: str | None


class Bare(PretrainedBackbone):
    """What base models have in common, whatever they read.

    Raises:
        BackboneError: the model returns nothing that can be pooled.
        RecipeError: it has nothing that this pooling could take.
    """

    # Classes that transformers classifies such inputs with, and one of them for a person.
    classes: Any
    one = ""
    pipeline_tag: str
    # The method of the base model that is called.
    call = "forward"
    # As the recipe names it; None for the model's own.
    asked: str | None = None

    def __copy__(self) -> Self:
        # As a shorter model is made, of which all that was found of this one is found anew.
        other = object.__new__(type(self))
        found = ("_output", "pooling", "skip", "auto_class")
        other.__dict__ = {name: value for name, value in self.__dict__.items() if name not in found}
        return other

    @property
    def poolings(self) -> list[str]:
        """The kinds that one pass of the model gives, each of one vector a row."""
        raise NotImplementedError

    @property
    def usual(self) -> str:
        """The pooling where none is asked for."""
        raise NotImplementedError

    @property
    def skip(self) -> int:
        """Tokens that no mean counts; see `Pooled`."""
        return 0

    @cached_property
    def _output(self) -> Output:
        """What the base model returns of its first probe, without its weights."""
        batch = self.probes()[0]
        try:
            output = _shaped_output(self.base_config, self.call, batch)
            last, rows = last_of(output), len(next(iter(batch.values())))
            if len(last) != rows:
                raise BackboneError(f"it returns {len(last)} rows for a batch of {rows}")
            layout = layout_of(last)
            tokens = tokens_of(output, layout)
        except Exception as error:  # whatever a model's class raises, or lacks, on what its preprocessing gives
            why = one_line(error, 200) if isinstance(error, BackboneError) else named_error(error)[:200]
            raise BackboneError(
                f"{self.name} returns nothing that can be pooled to one vector a {self.one} ({why}): take another "
                "backbone"
            ) from error
        pooled = getattr(output, "pooler_output", None)
        of_rows = isinstance(pooled, Tensor) and pooled.dim() == 2
        return Output(
            tokens=tokens.shape[1],
            width=tokens.shape[2],
            pooled=pooled.shape[1] if pooled is not None and of_rows else None,
            layout=layout,
            mask=next((name for name in MASKS if name in batch and batch[name].shape == tokens.shape[:2]), None),
        )

    @property
    def kind(self) -> str:
        """How its output is pooled: as asked, as an export says of itself, or as usual."""
        return str(self.asked or self._stated.get("pooling") or self.usual)

    @cached_property
    def pooling(self) -> Pooled:
        """How one vector is made of a row's tokens."""
        kind = self.kind
        if lacking := [part for part in Pooled(kind).parts if part not in self.poolings]:
            names = {"cls": "class token", "pooler": "pooled output", "projection": "text tower beside it"}
            what = names.get(lacking[0], lacking[0])
            others = ["cls+mean", *self.poolings] if "cls" in self.poolings else self.poolings
            raise RecipeError(f"pooling={kind!r}: {self.name} has no {what}; take {listing(others)}")
        return Pooled(kind, self.skip, self._output.layout, self._output.mask, self.call)

    @property
    def _stated(self) -> dict[str, Any]:
        """What an export says of its own head; nothing of any other model."""
        file = self.source.folder / HEAD_FACTS
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        except (ValueError, TypeError) as error:
            raise BackboneError(f"{self.name}: its {HEAD_FACTS} is damaged ({error}); fetch it again") from error

    @cached_property
    def auto_class(self) -> Any:
        """The class that the model becomes."""
        output, parts = self._output, self.pooling.parts
        width = sum((output.pooled or 0) if part in OWN else output.width for part in parts)
        base = type(self._base)
        return _PooledAuto(classifier_class(self.base_config, base, self.pooling, width), base)

    @cached_property
    def _base(self) -> Any:
        """The base model without its weights."""
        return _meta_model(self.base_config)

    @property
    def base_class(self) -> str:
        """The name of the base model's own class."""
        return type(self._base).__name__

    def identity(self) -> dict[str, Any]:
        """As for every model, and which tokens of which class are pooled; how, is said by the view."""
        return super().identity() | {"base": {"class": self.base_class, "skip": self.skip}}

    @property
    def notes(self) -> list[str]:
        """As for every model, and how its output is pooled."""
        own = type(self.base_config) in self.classes
        why = "as asked, in place of its classification class" if own else "which has no classification class"
        made = "for sentence-transformers" if self.pipeline_tag == "text-classification" else f"with {HEAD_FACTS}"
        return [*super().notes, f"pooling: {self.pooling.kind} of the base model, {why}; exported {made}"]

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """As for every model; the head is the linear layer alone.

        Raises:
            BackboneError: the weights do not fit, or lack the pooled output that is asked for.
        """
        model, head = super().build(config)
        own = {name for name in head if name.startswith(f"{HEAD}.")}
        if self.pooling.kind in OWN and head != own:
            others = [kind for kind in self.poolings if kind not in OWN]
            raise BackboneError(
                f"{self.name}: its weights lack what its pooled output is made by ({sorted(head - own)[0]}): take "
                f"pooling={listing(others)}"
            )
        # What else the checkpoint lacks is a pooler, or a text tower, that nothing reads.
        made: Any = model
        made.lacks_pooler = head != own
        self._drawn = []
        return model, own

    def load_trained(self) -> tuple[Any, set[str]]:
        """The model with the head that lies beside it."""
        model, lacking = super().load_trained()
        untrained = {name for name in lacking if name.startswith(f"{HEAD}.")}
        file = self.source.folder / HEAD_WEIGHTS
        if file.is_file():
            try:
                head = {f"{HEAD}.{name}": value for name, value in load_file(file).items()}
                model.load_state_dict(head, strict=False)
            except (SafetensorError, RuntimeError) as error:
                raise BackboneError(f"{self.name}: its {HEAD_WEIGHTS} is damaged ({one_line(error, 120)})") from error
            untrained -= set(head)
        return model, untrained


def _shaped_output(config: Any, call: str, batch: Mapping[str, Tensor]) -> Any:
    """What a base model returns of a batch, in shape: no weight is read, nor memory taken for one."""
    try:
        with torch.no_grad(), torch.device("meta"):
            model = _meta_model(config).eval()
            return getattr(model, call)(**{name: value.to("meta") for name, value in batch.items()})
    except Exception:  # whatever a class raises where it reads a number that is not there
        with init_empty_weights():
            model = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False).eval()
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            owner, _, own = name.rpartition(".")
            # One zero that stands for all of them.
            setattr(model.get_submodule(owner), own, nn.Parameter(torch.zeros(()).expand(parameter.shape)))
        with torch.no_grad():
            return getattr(model, call)(**batch)


class BareImageBackbone(Bare, ImageBackbone):
    """A base model for images with its image processor, and a pooling in place of a classifier.

    Args:
        source: where its files are.
        pooling: see `Pooled`; None for what its head file says, or else ``cls+mean`` where it has a class token and
            ``mean`` where it has none.
    """

    pipeline_tag = "image-feature-extraction"
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    one = "picture"

    def __init__(self, source: Source, pooling: str | None = None) -> None:
        super().__init__(source)
        self.asked = pooling

    @cached_property
    def base_config(self) -> Any:
        """The checkpoint's own configuration; one of a masked autoencoder shows its model all of a picture."""
        config = super().base_config
        if getattr(config, "mask_ratio", 0):
            config.mask_ratio = 0.0
        return config

    @property
    def poolings(self) -> list[str]:
        """The kinds that one pass of the model gives, each of one vector a row."""
        first = ["cls"] if self.skip else []
        last = "pooler" if self.call == "forward" else "projection"
        return [*first, "mean", *([last] if self._output.pooled else [])]

    @cached_property
    def call(self) -> str:  # type: ignore[override]
        """The image tower's part of a model that also reads texts, whose forward wants both."""
        return "get_image_features" if has_text_tower(self._base) else "forward"

    @property
    def usual(self) -> str:
        """Both where there is a class token, which DINOv2 and DINOv3 are evaluated with."""
        return "cls+mean" if self.skip else "mean"

    @cached_property
    def skip(self) -> int:
        """Tokens before the first patch, by what the configuration says of them and what is left being a grid."""
        config, tokens = self.base_config, self._output.tokens
        if self._output.layout != "tokens" or self._output.mask:
            return 0
        registers = getattr(config, "num_register_tokens", 0) or 0
        for before in dict.fromkeys((getattr(config, "n_cls_tokens", 0), registers + 1, 1, registers, 0, 2)):
            left = tokens - before
            if left > 0 and math.isqrt(left) ** 2 == left:
                return int(before)
        raise BackboneError(f"{self.name} returns {tokens} tokens of a square picture, which are no grid of patches")


class BareTextBackbone(Bare, TextBackbone):
    """A base model for texts with its tokenizer, and a pooling in place of a classifier.

    Args:
        source: where its files are.
        max_length: tokens kept of a row, special tokens included; None for what the model allows.
        pooling: see `Pooled`; None for what its head file says, or else ``mean``.
    """

    classes = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    one = "text"

    def __init__(self, source: Source, max_length: int | None = None, pooling: str | None = None) -> None:
        super().__init__(source, max_length)
        self.asked = pooling
        # One that sentence-transformers holds gives scores; another is a base model to everybody else.
        self.pipeline_tag = "text-classification" if self.kind in POOLINGS else "feature-extraction"

    @property
    def poolings(self) -> list[str]:
        """The kinds that one pass of the model gives, each of one vector a row."""
        return ["cls", "last", "mean", *(["pooler"] if self._output.pooled else [])]

    @property
    def usual(self) -> str:
        """The last token of a causal language model, which alone has seen all others; else what most encoders learn."""
        names = self.base_config.architectures or []
        return "last" if any(name.endswith("ForCausalLM") for name in names) else "mean"

    @cached_property
    def _padding_index(self) -> int | None:
        # Of the base model, because the class that the model becomes is made of what its tokenizer gives.
        return padding_index(self._base)

    def load_trained(self) -> tuple[Any, set[str]]:
        """The model with the head that lies beside it, in either form."""
        if (self.source.folder / MODULES).exists():
            return TextBackbone.load_trained(self)
        return super().load_trained()
