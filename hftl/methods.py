"""The methods of a recipe and their options: what a user may say about how the model is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

# What is said of a label where nothing else is given, as CLIP's paper does.
PROMPT = "a photo of a {label}"
Pooling = Literal["native", "mean", "cls", "cls+mean", "last", "pooler", "projection"]
CacheBlocks = Literal["auto", "always", "never"]
# Of numbers in the store.
Storage = Literal["float32", "bf16", "fp16"]
# Of frozen weights.
Bits = Literal["8bit", "4bit"]


@dataclass(frozen=True)
class Aim:
    """What thresholds are chosen for.

    Attributes:
        metric: of several labels ``f1``, ``precision`` or ``recall``; of one label a row ``coverage``.
        least: the precision, recall or coverage that is asked for; 0 for F1.
    """

    metric: Literal["f1", "precision", "recall", "coverage"] = "f1"
    least: float = 0.0

    @property
    def field(self) -> str:
        """The recipe's field that asks for it."""
        return self.metric if self.metric == "coverage" else f"at_{self.metric}"

    def __str__(self) -> str:
        return "F1" if self.metric == "f1" else f"{self.metric} {self.least:g}"


F1 = Aim()


class Options(BaseModel):
    """A set of named options that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Head(Options):
    """Train only the head, on features of the frozen backbone that are computed once.

    Attributes:
        pooling: what of the backbone the head reads: ``"native"`` for what the model's own head reads (exported in
            the model's own class), or of its last layer the ``"mean"`` over the tokens, the first (``"cls"``) or, as
            ``"cls+mean"``, both behind each other, or the ``"last"`` (which is what classes of causal language models
            read by themselves), or ``"pooler"``, the base model's own pooled output, or
            ``"projection"``, a picture's embedding beside a text tower (CLIP, SigLIP). What sentence-transformers can
            hold of texts is then exported for it, all else as the base model with the head beside it.
        hidden: units of one hidden layer (GELU), trained with AdamW instead of solved; None for a linear head. Only the
            format of sentence-transformers has a place for it, so it goes with texts and ``"mean"`` or ``"cls"``.
        strengths: L2 strengths to choose from, any order; None for a path of 20.
        folds: stratified folds on which the strength is chosen, where the data bring no validation split.
        rule: ``"best"`` mean, or ``"one_se"`` for the strongest within one standard error of it.
        class_weight: ``"balanced"``, or one weight for each class in the order of the label names.
        calibrate: scale the logits by a temperature fitted on held-out rows.
        mixed_precision: of the frozen part's forward pass, whatever ``storage`` is. With ``"bf16"``
            or ``"fp16"`` a text backbone's weights are read in it, which halves memory, and exported in it, the head in
            float32; other backbones, and those that label words, compute under autocast and are exported in float32.
            Either way the exported model agrees with the run to that precision only, and the run says how far it does.
        quantize: read the linear layers of a text backbone in ``"8bit"`` or ``"4bit"`` through bitsandbytes. The export
            is quantised too, and needs that library.
        storage: of features on the disk; ``"bf16"`` and ``"fp16"`` take half the bytes and round each number, by 0.4 %
            and 0.05 % at most; values that fp16 cannot hold are refused. The run says how far the exported model, which
            computes without that rounding, is from what the features gave.
        views: seeded views of each training picture that the head is solved on, each weighing its share of the picture,
            the first being the picture as it is; 1 for that alone. Whatever chooses or judges sees plain pictures.
        test_views: views of each test picture whose mean probabilities ``metrics.json`` has a line on; 1 for none.
        flip: mirror views at random.
        crop: smallest share of a picture's area that the random crop of a view keeps; None for no cropping.
        trivial_augment: change a view by one random operation of random strength (Müller & Hutter 2021).
    """

    name: Literal["head"] = "head"
    pooling: Pooling = "native"
    hidden: int | None = Field(default=None, ge=1)
    strengths: list[float] | None = Field(default=None, min_length=1)
    folds: int = Field(default=5, ge=2)
    rule: Literal["best", "one_se"] = "best"
    class_weight: Literal["balanced"] | list[float] | None = None
    calibrate: bool = True
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    quantize: Bits | None = None
    storage: Storage = "float32"
    views: int = Field(default=1, ge=1, le=1000)
    test_views: int = Field(default=1, ge=1, le=1000)
    flip: bool = False
    crop: float | None = Field(default=None, gt=0, le=1)
    trivial_augment: bool = False

    @field_validator("strengths")
    @classmethod
    def _positive(cls, strengths: list[float] | None) -> list[float] | None:
        if strengths and not all(s > 0 for s in strengths):
            raise ValueError("strengths are positive")
        return strengths

    @model_validator(mode="after")
    def _hidden_layer_has_a_place(self) -> Self:
        if self.hidden and self.pooling not in ("mean", "cls"):
            raise ValueError("hidden goes with pooling='mean' or 'cls': the model's own class has no hidden layer")
        return self

    @property
    def has_views(self) -> bool:
        """Whether it asks for more than pictures as they are."""
        return self.views > 1 or self.test_views > 1

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if self.has_views:
            _check_views_differ(self)
        elif _changes_pictures(self):
            raise ValueError("flip, crop and trivial_augment change views beyond the plain picture: add views=8")
        return self


class FineTune(Options):
    """What full, LoRA and partial fine-tuning have in common.

    Attributes:
        epochs: passes over the training rows.
        lr: learning rate just below the head, or ``"auto"`` for a range test that chooses one.
        head_lr: learning rate of the head; None for ``lr``.
        batch_size: rows of one optimizer step over all processes; ``"auto"`` for 32 in the largest micro-batches
            that fit.
        micro_batch: most rows of one forward on one process, the rest is accumulated; None for all of the process's
            share, ``"auto"`` for the most that fit.
        init: start of the head: ``"probe"`` solves it on cached features first (LP-FT, Kumar et al. 2022), ``"random"``
            takes it as the checkpoint has it or draws it, ``"zero-shot"`` takes a text tower's embeddings of the names
            of the labels, which goes with ``pooling="projection"``.
        prompts: for ``"zero-shot"``, what is said of a label, ``{label}`` standing for its name; several are averaged.
            None for ``"a photo of a {label}"``.
        schedule: how the learning rate falls after the warm-up.
        warmup: share of the steps in which it rises.
        layer_decay: what the learning rate is multiplied with for each block further from the head.
        weight_decay: of AdamW (Loshchilov & Hutter 2019); never on norms and biases.
        clip: largest norm of the gradient; None for no clipping.
        label_smoothing: share of the target that is spread over all labels.
        class_weight: ``"balanced"``, or one weight for each class in the order of the label names.
        gradient_checkpointing: compute activations again in the backward pass, to save memory.
        ema: decay of an average of the weights that is evaluated and exported in their place; None for off.
        compile: compile the model with ``torch.compile``.
        unfreeze: train the head alone in the first epoch, one more block in each that follows (Howard & Ruder 2018).
        patience: stop after so many epochs without a better validation result; None for never. Where there
            is no validation split, a tenth of the training rows is set aside.
        mixed_precision: of the forward and backward pass; weights stay float32.
        keep: newest checkpoints to keep.
        save_every: steps between checkpoints; None for the ends of epochs only.
        flip: mirror pictures at random.
        crop: smallest share of a picture's area that a random crop keeps; None for no cropping.
        trivial_augment: change a picture by one random operation of random strength (Müller & Hutter 2021).
        mixup: parameter of mixup's Beta distribution (0.2 is usual); 0 for off.
        cutmix: parameter of CutMix's Beta distribution (1 is usual); 0 for off.
        pooling: what of the base model the head reads, as of `Head`.
    """

    epochs: int = Field(default=3, ge=1)
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 5e-5
    head_lr: float | None = Field(default=None, gt=0)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    init: Literal["probe", "random", "zero-shot"] = "probe"
    prompts: list[str] | None = Field(default=None, min_length=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weight: Literal["balanced"] | list[float] | None = None
    gradient_checkpointing: bool = False
    ema: float | None = Field(default=None, gt=0, lt=1)
    compile: bool = False
    unfreeze: bool = False
    patience: int | None = Field(default=None, ge=1)
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    keep: int = Field(default=2, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    flip: bool = False
    crop: float | None = Field(default=None, gt=0, le=1)
    trivial_augment: bool = False
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    pooling: Pooling = "native"

    @model_validator(mode="after")
    def _head_lr_is_relative(self) -> Self:
        if self.lr == "auto" and self.head_lr is not None:
            raise ValueError("with lr='auto' the head has the same learning rate; leave out head_lr")
        return self

    @model_validator(mode="after")
    def _names_go_with_a_text_tower(self) -> Self:
        if self.init == "zero-shot" and self.pooling != "projection":
            raise ValueError("init='zero-shot' goes with pooling='projection', which its embeddings are compared with")
        if self.prompts and self.init != "zero-shot":
            raise ValueError("prompts go with init='zero-shot'")
        return self

    @property
    def probe(self) -> Head:
        """How the head is solved that training starts from."""
        return Head(class_weight=self.class_weight, pooling=self.pooling)


class Full(FineTune):
    """Train every parameter."""

    name: Literal["full"] = "full"


class LoRA(FineTune):
    """Train low-rank updates of all linear layers (Hu et al. 2022) and the head, through PEFT.

    Attributes:
        r: rank of the updates.
        alpha: their scale; None for ``r``.
        dropout: on the input of the updates.
        rslora: scale by ``alpha / sqrt(r)`` (Kalajdzievski 2023) instead of ``alpha / r``.
        dora: learn magnitude and direction apart (Liu et al. 2024).
        pissa: start from the principal components of the weights (Meng et al. 2024).
        lora: any other fields of ``peft.LoraConfig``, such as ``{"target_modules": ["query", "value"]}``.
        from_block: the first block with updates, counted from 0, those below it being frozen; negative counts from the
            end: -2 updates the last two. None updates all.
        cache_blocks: with ``from_block``, as of `Partial`.
        storage: with ``from_block``, as of `Partial`.
        views: with ``from_block``, as of `Partial`.
        quantize: read the linear layers of a text backbone in ``"8bit"`` or ``"4bit"`` through bitsandbytes. To train
            updates of them (QLoRA, Dettmers et al. 2023) takes a CUDA GPU; ``mixed_precision`` is then that of the
            frozen weights too, and the merged export has what they stand for, in that precision.
    """

    name: Literal["lora"] = "lora"
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 2e-4
    r: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = True
    dora: bool = False
    pissa: bool = False
    lora: dict[str, Any] = Field(default_factory=dict)
    from_block: int | None = None
    cache_blocks: CacheBlocks = "auto"
    storage: Storage = "float32"
    views: int | None = Field(default=None, ge=2, le=1000)
    quantize: Bits | None = None

    @model_validator(mode="after")
    def _something_is_stored(self) -> Self:
        for field in ("storage", "views"):
            if getattr(self, field) not in ("float32", None) and self.from_block is None:
                raise ValueError(f"{field} is of what frozen blocks return, and none are frozen: add from_block")
        _check_stored(self)
        return self

    @model_validator(mode="after")
    def _quantized_weights_stay(self) -> Self:
        if self.quantize and self.pissa:
            raise ValueError("pissa moves the frozen weights, and quantize rounds them: leave out one of them")
        if self.quantize and self.from_block is not None:
            raise ValueError("quantize goes with updates of all blocks: leave out from_block")
        if self.quantize and self.pooling != "native":
            raise ValueError("quantize goes with pooling='native': the class that trains is transformers' own")
        return self

    @property
    def probe(self) -> Head:
        """As for every method; of quantised weights on the features that these give."""
        if self.quantize is None:
            return super().probe
        return super().probe.model_copy(update={"quantize": self.quantize, "mixed_precision": self.mixed_precision})


class Partial(FineTune):
    """Freeze the embeddings and the first blocks, train the rest.

    Attributes:
        freeze: blocks to freeze; negative counts from the end: -2 trains the last two.
        cache_blocks: whether what the frozen blocks return is kept in the store and read in every epoch, so that they
            run once for each row: ``"auto"`` where that saves time and the disk has room, ``"always"`` wherever it can
            be done, or ``"never"``.
        storage: of what is kept: ``"float32"`` as it is computed; ``"bf16"`` and ``"fp16"`` take half the bytes. Where
            it was computed in 32 bits that rounds it, so that training differs from that without a store, and the run
            says by how much.
        views: how many seeded views there are of each training picture, the first being the picture as it is: each
            epoch sees one of them, drawn by the seed, and what the frozen blocks return of each can be kept; None to
            change pictures anew in every epoch.
    """

    name: Literal["partial"] = "partial"
    freeze: int = -2
    cache_blocks: CacheBlocks = "auto"
    storage: Storage = "float32"
    views: int | None = Field(default=None, ge=2, le=1000)

    @model_validator(mode="after")
    def _something_is_stored(self) -> Self:
        _check_stored(self)
        return self


def _check_stored(method: LoRA | Partial) -> None:
    """See that what is asked of frozen blocks in the store can be."""
    if method.storage != "float32" and method.cache_blocks == "never":
        raise ValueError("storage is of what the store keeps, and cache_blocks='never' keeps nothing: leave one out")
    if method.views:
        _check_views_differ(method)


def _check_views_differ(method: Head | LoRA | Partial) -> None:
    if not _changes_pictures(method):
        raise ValueError("views differ by what changes them: add flip, crop or trivial_augment")


def _changes_pictures(method: Head | LoRA | Partial) -> bool:
    """Whether anything changes pictures."""
    return method.flip or method.crop is not None or method.trivial_augment


Method = Annotated[Head | Full | LoRA | Partial, Field(discriminator="name")]
METHODS: dict[str, type[Head | Full | LoRA | Partial]] = {"head": Head, "full": Full, "lora": LoRA, "partial": Partial}


def with_later_fields(method: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """A method as it was written, with the fields that came later, which were what their defaults are.

    Args:
        method: by field; one of them is its ``name``.
        without: fields that are not added.
    """
    return METHODS[method["name"]]().model_dump(mode="json", exclude=set(without)) | dict(method)
