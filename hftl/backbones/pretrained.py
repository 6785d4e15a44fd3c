"""`PretrainedBackbone`: what every backbone that transformers can load has in common.

`vision` and `text` add how rows are read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from typing_extensions import Self

from hftl.backbones.configuration import check_layers, digest_text, read_config, without_generation
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
from hftl.backbones.precision import dtype_name, keep_head_float32
from hftl.backbones.quantized import device_of_weights, quantization, quantizer_identity
from hftl.backbones.source import Source
from hftl.backbones.weights import read_model
from hftl.backbones.whole import check_fit, check_shapes, check_size, drawn_beside, first_mismatch
from hftl.errors import BackboneError
from hftl.methods import Bits
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


class PretrainedBackbone:
    """A pretrained transformers model in a local folder.

    Attributes:
        source: where its files are.
    """

    modality: str
    library = "transformers"
    auto_class: Any
    max_length: int | None = None
    # Of the frozen weights: what `in_dtype` says. A head is float32 in any case.
    dtype: torch.dtype = torch.float32
    quantize: Bits | None = None
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

    @property
    def device(self) -> torch.device:
        """Where `build` and `load_trained` put the model, and `probes` are."""
        return device_of_weights(bool(self.quantize or getattr(self.base_config, "quantization_config", None)))

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
            "dtype": dtype_name(self.dtype),
            **({"depth": depth} if self.shortened else {}),
            **({"quantize": quantizer_identity(self.quantize)} if self.quantize else {}),
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
        if self.quantize:
            raise BackboneError(f"{self.name} in {self.quantize} has no depths: leave out depth, or quantize")
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
        """The exported model's configuration: label names, kind of task, dtype of the weights."""
        config = self.agreeing_config()
        if config.num_labels != len(label_names):
            # Some classes keep the number beside the names, and theirs is then the size of the head.
            config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
        config.problem_type = Task(task).problem_type
        config.dtype = self.dtype
        if self.quantize:
            # transformers would leave out its last parameter's module alone, which may be no head at all.
            head = {name.rpartition(".")[0] for name in self.head_of(self.skeleton(config))}
            config.quantization_config = quantization(self.quantize, self.dtype)
            config.quantization_config.llm_int8_skip_modules = sorted(head)
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
        """The classification model with its pretrained weights, in eval mode; and its head's parameter names.

        Raises:
            BackboneError: the weights do not fit the configuration.
        """
        model, untrained = self._load(self.auto_class, copy.deepcopy(config), ignore_mismatched_sizes=True)
        if self.shortened:
            neutral_norm(model, self.shortened.norm)
            untrained -= self.shortened.norm
        head = self.head_of(model)
        self._drawn = drawn_beside(self, model, head, untrained)
        head |= untrained
        head.intersection_update(name for name, _ in model.named_parameters())
        if self.dtype != torch.float32:
            keep_head_float32(model, head)
        return model, head

    def load_trained(self) -> tuple[Any, set[str]]:
        """The model as the checkpoint has it, head included; and the parameters that the checkpoint lacks."""
        model, untrained = self._load(self.auto_class, self.agreeing_config())
        if self.dtype != torch.float32:
            keep_head_float32(model, self.head_of(model), self.weight_files())
        return model, untrained

    def _load(self, auto_class: Any, config: Any, **options: Any) -> tuple[Any, set[str]]:
        """A model of one of the Auto classes in eval mode, and the parameters that the checkpoint lacks."""
        check_size(self, config)
        try:
            if self.quantize:
                # In the configuration it would say that the file's weights are quantised already.
                options["quantization_config"] = config.__dict__.pop("quantization_config")
            if self.device.type != "cpu":
                options["device_map"] = {"": self.device}
            model, loading = read_model(auto_class, config, self.weight_files(), self.dtype, **options)
        # Whatever a model's class raises on a configuration or weights that do not fit it.
        except Exception as error:
            why = str(error) if isinstance(error, BackboneError) else named_error(error)[:300]
            why = first_mismatch(self, config) or why
            raise BackboneError(f"{self.name} cannot be loaded: {why}") from error
        without_generation(model.config)
        check_shapes(self, model, {key[0] for key in loading["mismatched_keys"]})
        model.eval()
        if not self.quantize:
            # On CPUs the first forward packs weights of 4 bits in another way, which is not undone exactly.
            check_fit(self, model)
        return model, set(loading["missing_keys"]) | {key[0] for key in loading["mismatched_keys"]}

    def in_dtype(self, dtype: torch.dtype, quantize: Bits | None = None) -> Self:
        """This backbone with its frozen weights read in another dtype, those of linear layers quantised if asked."""
        if (dtype, quantize) == (self.dtype, self.quantize):
            return self
        other = copy.copy(self)
        other.dtype, other.quantize = dtype, quantize
        return other

    def skeleton(self, config: Any) -> nn.Module:
        """The same model on the meta device.

        Raises:
            BackboneError: the configuration describes no model, or one of more layers than the weights can hold.
        """
        if not is_onnx_folder(self.source.folder):
            check_layers(self.name, config, len(self.weight_files()))
        try:
            # Found before: a bare model's class is told by a forward, which is not to run on the meta device.
            auto_class = self.auto_class
            with torch.device("meta"):
                model: nn.Module = auto_class.from_config(copy.deepcopy(config), trust_remote_code=False)
        except Exception as error:  # whatever a model's class raises on a configuration
            raise BackboneError(f"{self.name} cannot be built: {named_error(error)[:300]}") from error
        without_generation(model.config)
        # A head is trained in float32, whatever the weights below it are read in.
        return model.float().eval()

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
