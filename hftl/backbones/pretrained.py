"""`PretrainedBackbone`: what every backbone that transformers can load has in common.

`vision` and `text` add how rows are read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from typing_extensions import Self

from hftl.backbones.depth import (
    Shortened,
    Stack,
    check_depth,
    check_same,
    find_stack,
    hollow_model,
    names_beyond,
    neutral_norm,
    prove_short,
    shorten_config,
)
from hftl.backbones.files import is_onnx_folder
from hftl.backbones.source import Source
from hftl.backbones.weights import tensor_shapes, whole_on_every_process
from hftl.errors import BackboneError
from hftl.tasks import Task
from hftl.wording import listing, named_error, one_line

# Neither the labels that a checkpoint came with, nor where it lay and who saved it, can change a feature.
NOT_IN_FEATURES = (
    "_name_or_path",
    "transformers_version",
    "id2label",
    "label2id",
    "problem_type",
    "num_labels",
)


# A classifier has a name for each label; a file that states more than this was not made by one.
MOST_LABELS = 1_000_000
# How many times the checkpoint's numbers a model may hold (a checkpoint may lack tied or shared ones), and how many
# besides: a new head.
MOST_DESCRIBED, FREE_DESCRIBED = 4, 100_000_000
# So many layers are built without a look at the weights: some architectures share one layer's tensors.
MOST_LAYERS = 2_000
COUNTS_LAYERS = re.compile(r"^(num|n)_.*(layers?|blocks?|experts|stages)$|(layers|n_layer|depths?|block_sizes)$")


class PretrainedBackbone:
    """A pretrained transformers model in a local folder.

    Attributes:
        source: where its files are.
    """

    modality: str
    library = "transformers"
    auto_class: Any
    max_length: int | None = None
    processor_file = "preprocessor_config.json"
    # Where it has not all of its blocks: which it has, and the backbone that has them all.
    shortened: Shortened | None = None
    whole: Self
    _proved = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.id
        self.commit = source.commit
        self._drawn: list[str] = []

    @property
    def license(self) -> Mapping[str, str]:
        """What the model's card states of its licence."""
        return self.source.license()

    @property
    def pickled(self) -> bool:
        """Whether the weights were published as a pickle."""
        return self.source.pickled

    @property
    def base_reference(self) -> str:
        """The Hub id, or the folder as it was given."""
        return self.name if self.commit else str(self.source.folder)

    @cached_property
    def base_config(self) -> Any:
        """The checkpoint's own configuration.

        Raises:
            BackboneError: transformers does not know the architecture, or the file is damaged.
        """
        return read_config(self.source)

    def processor_identity(self) -> dict[str, Any]:
        """What about preprocessing can change a feature, as JSON."""
        raise NotImplementedError

    def probes(self) -> list[dict[str, Tensor]]:
        """A few batches on which a cut is proved; see `Backbone.probes`."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Model and preprocessing as JSON; the commit is None for a folder, whose weight files hftl hashes."""
        # The file as it is, because a newer transformers may add fields to what it parses.
        config = json.loads((self.source.folder / "config.json").read_text())
        for name in NOT_IN_FEATURES:
            config.pop(name, None)
        if self.shortened:
            depth = {"blocks": self.shortened.depth, "of": self.shortened.stack.blocks, "config": self.shortened.fields}
        return {
            "modality": self.modality,
            "model": self.name if self.commit else None,
            "commit": self.commit,
            "config": digest_text(json.dumps(config, sort_keys=True)),
            "processor": self.processor_identity(),
            "dtype": "float32",
            **({"depth": depth} if self.shortened else {}),
        }

    def weight_files(self) -> Mapping[str, Path]:
        """Each tensor's name in the checkpoint, and the safetensors file that holds it; none of blocks taken away."""
        files = self.source.weight_files()
        if self.shortened is None:
            return files
        beyond = names_beyond(self.shortened.stack, self.shortened.depth, files)
        return {name: file for name, file in files.items() if name not in beyond}

    def at_depth(self, depth: int) -> Self:
        """The first blocks of this backbone and its final norm, as a backbone of its own; itself at its full depth.

        Args:
            depth: how many blocks, or stages where the architecture goes through stages.

        Raises:
            RecipeError: it has fewer.
            BackboneError: its class cannot express fewer, or it has no list of blocks, or more than one.
        """
        if self.shortened:
            return self.whole.at_depth(depth)
        check_depth(depth, self.stack, self.name)
        if depth == self.stack.blocks:
            return self
        if depth not in self._at_depths:
            self._at_depths[depth] = self._at_depth(depth)
        return self._at_depths[depth]

    @cached_property
    def _at_depths(self) -> dict[int, Self]:
        """What `at_depth` made already: it builds a model without weights for each."""
        return {}

    def _at_depth(self, depth: int) -> Self:
        stack = self.stack
        try:
            fields, shorter = shorten_config(self.base_config, stack.blocks, depth)
            if not shorter:
                raise ValueError("its configuration says nowhere how many blocks it has")
            other = copy.copy(self)
            other.base_config = type(self.base_config).from_dict(fields)
            norm, lost = check_same(stack, depth, shorter, other.skeleton(other.agreeing_config()))
        # Whatever a configuration's class, or a model's, raises on fewer blocks.
        except Exception as error:
            why = one_line(error, 200)
            raise BackboneError(
                f"{self.name} cannot be cut at depth {depth}, because its class cannot express it ({why}): "
                "leave depth out, or choose another backbone"
            ) from error
        other.shortened, other.whole = Shortened(depth, stack, shorter, norm, lost), self
        return other

    @cached_property
    def stack(self) -> Stack:
        """The list of blocks that the model goes through.

        Raises:
            BackboneError: it has none, or several.
        """
        whole = self.skeleton(self.agreeing_config())
        return find_stack(whole, self.head_of(whole), self.name)

    def prove_depth(self, model: nn.Module) -> None:
        """See that a model which was built of this backbone has its blocks and no others.

        Args:
            model: from `build`.

        Raises:
            BackboneError: it computes something else than the whole model does up to there.
        """
        if self.shortened is None or self._proved:
            return
        try:
            whole = self.whole.hollow(self.whole.agreeing_config(), model.state_dict())
            prove_short(model, whole, self.shortened, self.probes()[0])
        # Whatever a model's class raises where it lacks what it expects.
        except Exception as error:
            raise BackboneError(
                f"{self.name} cannot be cut at depth {self.shortened.depth}: {one_line(error, 200)}; leave depth out"
            ) from error
        self._proved = True

    def hollow(self, config: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model in eval mode that shares tensors, by its names; what is not given, or has another shape, is meta.

        Args:
            config: from `config`.
            tensors: float32, such as the ``state_dict`` of a deeper model of this backbone.
        """
        model: nn.Module = hollow_model(self.auto_class, config, tensors)
        without_generation(model.config)
        if self.shortened:
            neutral_norm(model, self.shortened.norm)
        return model

    def config(self, task: str, label_names: Sequence[str]) -> Any:
        """The exported model's configuration: label names, kind of task, float32."""
        config = self.agreeing_config()
        if config.num_labels != len(label_names):
            # Some classes keep the number beside the names, and theirs is then the size of the head.
            config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
        config.problem_type = Task(task).problem_type
        config.dtype = torch.float32
        # The export is a classifier too.
        without_generation(config)
        return config

    def agreeing_config(self) -> Any:
        """A copy of the checkpoint's configuration that says the same as its preprocessing, where both say something.

        Raises:
            BackboneError: they cannot be brought to agree.
        """
        config = copy.deepcopy(self.base_config)
        # Where a type has several classes, transformers looks here, and does not expect to find nothing at all.
        config.architectures = config.architectures or []
        return config

    @property
    def notes(self) -> list[str]:
        """What was changed so that configuration and preprocessing agree, and what was taken away, one line each.

        Once the model was built, also what of its body the checkpoint lacks.
        """
        made, notes = self.shortened, []
        if made:
            notes.append(f"depth: the first {made.depth} of {made.stack.blocks} blocks, and the final norm")
        if self._drawn:
            notes.append(f"weights: the checkpoint lacks {listing(self._drawn, 2)}, so these are new, as the head is")
        return notes

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """The classification model with its pretrained weights, in eval mode, float32; and its head's parameter names.

        Raises:
            BackboneError: the weights do not fit the configuration.
        """
        model, untrained = self._load(self.auto_class, copy.deepcopy(config), ignore_mismatched_sizes=True)
        if self.shortened:
            neutral_norm(model, self.shortened.norm)
            untrained -= self.shortened.norm
        head = self.head_of(model)
        self._drawn = self._drawn_beside(model, head, untrained)
        head |= untrained
        return model, head.intersection(name for name, _ in model.named_parameters())

    def load_trained(self) -> tuple[Any, set[str]]:
        """The model as the checkpoint has it, head included, float32; and the parameters that the checkpoint lacks."""
        return self._load(self.auto_class, self.agreeing_config())

    def _load(self, auto_class: Any, config: Any, **options: Any) -> tuple[Any, set[str]]:
        """A model of one of the Auto classes in eval mode, float32, and the parameters that the checkpoint lacks."""
        self._check_size(config)
        try:
            with whole_on_every_process():
                model, loading = auto_class.from_pretrained(
                    self.source.folder,
                    config=config,
                    dtype=torch.float32,
                    output_loading_info=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    **options,
                )
        # Whatever a model's class raises on a configuration or weights that do not fit it.
        except Exception as error:
            why = self._first_mismatch(config) or named_error(error)[:300]
            raise BackboneError(f"{self.name} cannot be loaded: {why}") from error
        without_generation(model.config)
        self._check_shapes(model, {key[0] for key in loading["mismatched_keys"]})
        self._check_fit(model.eval())
        return model, set(loading["missing_keys"]) | {key[0] for key in loading["mismatched_keys"]}

    def _check_shapes(self, model: Any, mismatched: set[str]) -> None:
        """Refuse weights of the body that have another shape than the configuration says.

        transformers would draw them anew, and they would be trained like a head: only the labels may change a shape.
        """
        head = self.head_of(model)
        if self.shortened:
            mismatched = mismatched - self.shortened.norm
        wrong = sorted(mismatched - head) if head else []
        if wrong:
            raise BackboneError(
                f"{self.name}: {len(wrong):,} of its weights, such as {wrong[0]}, have another shape than its "
                "config.json says; they do not belong together: fetch it again"
            )

    def _drawn_beside(self, model: Any, head: set[str], untrained: set[str]) -> list[str]:
        """The body's parameters that the checkpoint lacks: a whole part that ends the body, such as a pooler.

        Many checkpoints were published without one, and it is trained as the head is.

        Raises:
            BackboneError: others are missing, and the logits depend on them.
        """
        body = [name for name, _ in model.named_parameters() if name not in head]
        drawn = [name for name in body if name in untrained]
        # Without a base class nobody knows what is body and what is head.
        if not head or not drawn:
            return []
        parts = {name: name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for name in body}
        held = [name for name in body if name not in untrained]
        held_parts = {parts[name] for name in held}
        after = set(body[body.index(held[-1]) :]) if held else set()
        gone = [name for name in drawn if name not in after or parts[name] in held_parts]
        if gone and self._matter(model, gone):
            raise BackboneError(
                f"{self.name}: its weights lack {len(gone):,} tensors that config.json describes, such as {gone[0]}; "
                "they do not belong together, or the copy is not whole: fetch it again"
            )
        return [name for name in drawn if name not in gone]

    def _matter(self, model: nn.Module, names: Sequence[str]) -> bool:
        """Whether the logits depend on any of some parameters."""
        logits = model(**self.probes()[0]).logits
        gradients = torch.autograd.grad(logits.sum(), [model.get_parameter(name) for name in names], allow_unused=True)
        return any(gradient is not None for gradient in gradients)

    def _check_size(self, config: Any) -> None:
        """Refuse a configuration that describes far more than its weights hold, before memory is taken for it."""
        try:
            held = sum(math.prod(shape) for shape in tensor_shapes(self.weight_files()).values())
        except SafetensorError:
            return  # loading them says what is wrong
        described = sum(parameter.numel() for parameter in self.skeleton(config).parameters())
        if described > MOST_DESCRIBED * held + FREE_DESCRIBED:
            raise BackboneError(
                f"{self.name}: its config.json describes {described:,} parameters, its weights hold {held:,}; "
                "they do not belong together: fetch it again"
            )

    def _first_mismatch(self, config: Any) -> str | None:
        """The first tensor whose shape is not what the configuration describes, which transformers only logs."""
        try:
            held = tensor_shapes(self.weight_files())
        except SafetensorError:
            return None
        model = self.skeleton(config)
        for name, value in model.state_dict().items():
            shape = held.get(name, held.get(name.removeprefix(f"{model.base_model_prefix}.")))
            if shape is not None and shape != list(value.shape):
                return f"its {name} has the shape {shape}, its config.json describes {list(value.shape)}"
        return None

    def _check_fit(self, model: nn.Module) -> None:
        """Run the model once on what its preprocessing gives.

        Raises:
            BackboneError: the two do not fit.
        """
        batch = self.probes()[0]
        try:
            with torch.no_grad():
                model(**batch)
        except Exception as error:  # whatever the model's class raises on inputs that it was not made for
            shapes = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in batch.items())
            raise BackboneError(
                f"{self.name}: the model cannot read what its own preprocessing gives ({shapes} a row): "
                f"{named_error(error)[:200]}; the two files config.json and {self.processor_file} do not fit each other"
            ) from error

    def skeleton(self, config: Any) -> nn.Module:
        """The same model on the meta device.

        Raises:
            BackboneError: the configuration describes no model, or one of more layers than the weights can hold.
        """
        if not is_onnx_folder(self.source.folder):
            check_layers(self.name, config, len(self.weight_files()))
        try:
            with torch.device("meta"):
                model: nn.Module = self.auto_class.from_config(copy.deepcopy(config), trust_remote_code=False)
        except Exception as error:  # whatever a model's class raises on a configuration
            raise BackboneError(f"{self.name} cannot be built: {named_error(error)[:300]}") from error
        without_generation(model.config)
        return model.eval()

    def head_of(self, model: Any) -> set[str]:
        """The parameters that the architecture's base class does not have: what stands on top of it."""
        try:
            with torch.device("meta"):
                base = AutoModel.from_config(model.config, trust_remote_code=False)
        except Exception:
            # An architecture without a base class: only what the checkpoint lacks is the head.
            return set()
        known = {name for name, _ in base.named_parameters()}
        prefix = f"{model.base_model_prefix}."
        names = {name for name, _ in model.named_parameters()}
        return {name for name in names if name not in known and name.removeprefix(prefix) not in known}


def read_config(source: Source) -> Any:
    """A checkpoint's configuration.

    Raises:
        BackboneError: transformers does not know the architecture, or the file is damaged.
    """
    try:
        raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        labels = max(_counts_in(raw, "num_labels"), default=0)
        if labels > MOST_LABELS:
            # transformers would make a name for each before anything else looks at them.
            raise BackboneError(f"{source.id}: its config.json names {labels:,} labels, which is no classifier's")
        kernel = next(_kernels(raw), None)
        if kernel is not None:
            raise BackboneError(
                f"{source.id} asks for the kernel {kernel!r} of the Hub, which is code that hftl does not run: take "
                "the line out of a copy of its config.json, and give that folder"
            )
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except BackboneError:
        raise
    # Classes of configurations check, derive and convert as they like.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise BackboneError(
                f"{source.id} needs Python code of its own repository, which hftl does not run; choose a model whose "
                "architecture transformers has, or write a plugin that loads it"
            ) from error
        raise BackboneError(f"{source.id}: {one_line(error)}") from error


def _counts_in(config: Any, key: str) -> Iterator[int]:
    """The integers under a key at any depth of a configuration."""
    if isinstance(config, dict):
        for name, value in config.items():
            if name == key and isinstance(value, int):
                yield value
            yield from _counts_in(value, key)


def check_layers(name: str, config: Any, tensors: int) -> None:
    """Refuse more layers than there could be tensors for, because each layer is made as Python objects.

    Raises:
        BackboneError: a number of layers is far above the number of tensors in the weights.
    """
    for key, value in _layer_counts(config.to_dict()):
        if value > max(MOST_LAYERS, tensors):
            raise BackboneError(
                f"{name}: its config.json says {key} = {value:,}, but its weights hold {tensors:,} tensors; "
                "they do not belong together: fetch it again"
            )


def _layer_counts(config: Any) -> Iterator[tuple[str, int]]:
    if isinstance(config, dict):
        for name, value in config.items():
            counts = value if isinstance(value, list) else [value]
            if isinstance(name, str) and COUNTS_LAYERS.search(name):
                yield from ((name, count) for count in counts if isinstance(count, int))
            yield from _layer_counts(value)


def _kernels(config: Any, asked: bool = False) -> Iterator[str]:
    """Hub repositories that ``attn_implementation`` and the like name at any depth: code that would be run."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _kernels(value, asked or "_implementation" in key)
    elif asked and isinstance(config, str) and "/" in config:
        yield config


def without_generation(config: Any) -> None:
    """Keep a decoder from returning its key/value cache, which no classifier reads."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False


def digest_text(text: str) -> str:
    """32 hex digits that name a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
