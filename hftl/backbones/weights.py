"""Weight files of an exported model, copied tensor by tensor, without the model ever being in memory.

How a checkpoint's tensor names become the exported model's is found once, when the backbone is loaded to compute
features, by loading them back; it is recorded in the feature space. A warm run then only copies.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hftl.backbones.precision import HALVES, slices
from hftl.backbones.quantized import is_quantized


@dataclass(frozen=True)
class NameRule:
    """How a checkpoint's tensor names become the model's.

    Attributes:
        add: prefix put before every name.
        drop: tensors that the model does not have (another head, a pooler it does not use).
    """

    add: str
    drop: list[str]

    def renamed(self, files: Mapping[str, Path]) -> dict[str, tuple[Path, str]]:
        """For each tensor of the exported model that comes from the checkpoint: its file, and its name there."""
        dropped = set(self.drop)
        return {self.add + name: (file, name) for name, file in files.items() if name not in dropped}


def find_rule(model: Any, head: set[str], files: Mapping[str, Path]) -> NameRule | None:
    """The rule by which an exported file is to be named, proved by loading such a file through the model's own class.

    What is loaded are stand-ins of the tensors, so that a model of any size takes no memory a second time.

    Args:
        model: the loaded model, on the CPU.
        head: names of the parameters that train, which are not taken from the checkpoint.
        files: tensor names in the checkpoint and their files.

    Returns:
        None if the tensors so named do not load as the very model (one may have another shape in it), or it is no
        ``PreTrainedModel``, or quantised; it must then be saved by its own class.
    """
    if not isinstance(model, PreTrainedModel) or is_quantized(model):
        return None
    state = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    # A checkpoint of the base model has its names without the prefix under which the classification model holds it.
    inside = hasattr(model, model.base_model_prefix) and not any(name.startswith(prefix) for name in files)
    rule = NameRule(prefix if inside else "", sorted(head.intersection(files)))
    renamed = {before: name for name, (_, before) in rule.renamed(files).items()}
    shapes = tensor_shapes(files)
    if any(name in state and list(state[name].shape) != shapes[before] for before, name in renamed.items()):
        return None
    # In place of each tensor a number of its own in its shape, which takes no memory: where it comes to lie is asked.
    marks = {before: torch.tensor(float(i)).expand(shapes[before]) for i, before in enumerate(renamed, 1)}
    written = {name: marks[before] for before, name in renamed.items()}
    try:
        published, _ = _loaded(model, marks)
        again, loading = _loaded(model, written | {name: torch.zeros(()).expand(state[name].shape) for name in head})
    except RuntimeError:
        # A tensor that transformers renames as it reads it has another shape here.
        return None
    if loading["missing_keys"] or loading["mismatched_keys"]:
        return None
    if not all(torch.equal(published[name], again[name]) for name in state if name not in head):
        return None
    unused = {name.removeprefix(rule.add) for name in loading["unexpected_keys"]}
    return NameRule(rule.add, sorted({*rule.drop, *unused.intersection(files)}))


def _loaded(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the class of a model makes of tensors that it finds under some names."""
    with whole_on_every_process():
        loaded, loading = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
        )
    return loaded.state_dict(), loading


def read_model(
    auto_class: Any, config: Any, files: Mapping[str, Path], dtype: torch.dtype, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model with its weights, and what transformers says of reading them.

    Args:
        auto_class: the Auto class that makes it, or what stands in for one.
        config: its configuration.
        files: tensor names in the checkpoint and their files.
        dtype: of the model's weights.
        options: others of ``from_pretrained``.
    """
    kind = auto_class
    if inspect.isclass(kind):
        # One of transformers takes a folder only, the class that it stands for takes tensors.
        with torch.device("meta"):
            kind = type(kind.from_config(copy.deepcopy(config), trust_remote_code=False))  # type: ignore[attr-defined]
    with whole_on_every_process(), one_after_the_other() if dtype in HALVES else nullcontext():
        read: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            None, config=config, state_dict=slices(files, dtype), dtype=dtype, output_loading_info=True, **options
        )
    return read


def whole_on_every_process() -> AbstractContextManager[None]:
    """Load a model whole, also under ``accelerate launch --use_fsdp``.

    There transformers leaves the new head out of all processes but each machine's first, because FSDP would send it;
    but every process computes features, and sees which parameters the logits depend on, before weights are spread.
    """
    asked: AbstractContextManager[None] = patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false")
    return asked


def one_after_the_other() -> AbstractContextManager[None]:
    """Read tensors without threads, each of which would hold one in the file's dtype while it is converted."""
    asked: AbstractContextManager[None] = patch_environment(HF_DEACTIVATE_ASYNC_LOAD="1")
    return asked


def write_weights(
    target: Path, rule: NameRule, files: Mapping[str, Path], head: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Write a model's safetensors file: tensors of a checkpoint under the model's names, and a trained head.

    Tensors pass through memory one at a time. Floating point tensors of the checkpoint are written in ``dtype``, the
    head in float32, integers as they are.

    Args:
        target: the file.
        rule: how names change.
        files: tensor names in the checkpoint and their files.
        head: the head's tensors by the model's names.
        dtype: what floating point tensors of the checkpoint are written in.
    """
    sources = rule.renamed(files)
    for name in head:
        sources.pop(name, None)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    plan: list[tuple[str, tuple[Path, str] | None]] = [
        *sorted(sources.items()),
        *((name, None) for name in sorted(head)),
    ]
    described = _described(sources)
    for name, source in plan:
        shape, kind = described[name] if source else (list(head[name].shape), head[name].dtype)
        if kind.is_floating_point:
            kind = dtype if source else torch.float32
        size = kind.itemsize * int(torch.Size(shape).numel())
        header[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for parts, kind in ((_read_all(dict(sorted(sources.items()))), dtype), (sorted(head.items()), torch.float32)):
            for _, value in parts:
                file.write(_raw(value.cpu().to(kind) if value.is_floating_point() else value.cpu()))
        file.flush()
        os.fsync(file.fileno())


_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: kind for kind, name in _NAMES.items()}


def tensor_shapes(files: Mapping[str, Path]) -> dict[str, list[int]]:
    """The shape of each tensor of a checkpoint; reads the files' headers only."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as opened:
            shapes |= {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _described(sources: Mapping[str, tuple[Path, str]]) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and dtype of tensors, by the names that they are asked for under."""
    described = {}
    for file, names in _by_file(sources).items():
        with safe_open(file, framework="pt") as opened:
            for name in names:
                part = opened.get_slice(sources[name][1])
                described[name] = (list(part.get_shape()), _DTYPES[part.get_dtype()])
    return described


def _read_all(sources: Mapping[str, tuple[Path, str]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors in the order asked for, with one file open at a time."""
    for file, names in itertools.groupby(sources, lambda name: sources[name][0]):
        # Not mapped: what was read of a mapped file stays in memory until it is closed.
        with safe_open(file, framework="pt", backend="pread") as opened:
            for name in names:
                yield name, opened.get_tensor(sources[name][1])


def _by_file(sources: Mapping[str, tuple[Path, str]]) -> dict[Path, list[str]]:
    files: dict[Path, list[str]] = {}
    for name, (file, _) in sources.items():
        files.setdefault(file, []).append(name)
    return files


def _raw(value: Tensor) -> memoryview:
    """A tensor's bytes in row-major order, without a copy; viewed as bytes because numpy has no bfloat16."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data
