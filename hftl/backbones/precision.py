"""Weights in 16 bits: which dtype they are read in, a head that stays float32, and proofs that compute in float32.

Weights in bfloat16 take half the memory of float32, and a second copy in float32 would take that back twice over. So
what has to be proved to five digits is computed module by module: its own weights are float32 only while it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hftl.errors import BackboneError
from hftl.wording import one_line

Precision = Literal["no", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    """What a configuration calls a dtype, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def weights_dtype(backbone: Any) -> torch.dtype:
    """What the frozen weights of a backbone are read in; a plugin's own class says nothing, and reads float32."""
    dtype: torch.dtype = getattr(backbone, "dtype", torch.float32)
    return dtype


def has_halves(model: nn.Module) -> bool:
    """Whether any weights of a model are in 16 bits."""
    return any(parameter.dtype in HALVES for parameter in model.parameters())


def slices(files: Mapping[str, Path], dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of a checkpoint by name, each read only when transformers takes it.

    A file that is of the dtype already is mapped, so that its weights are the file's own pages; of another one each
    tensor is read, converted and let go, so that no file is ever in memory whole.

    Args:
        files: tensor names, and the safetensors file of each.
        dtype: what floating point tensors will be converted to.

    Raises:
        BackboneError: a file is damaged, or a tensor is not in the file that an index names for it.
    """
    made: dict[str, Any] = {}
    for file in sorted(set(files.values())):
        names = [name for name, where in files.items() if where == file]
        try:
            made |= _slices_of(file, names, dtype)
        except SafetensorError as error:
            raise BackboneError(f"{file.name} is damaged ({one_line(error, 100)}): fetch it again") from error
    return made


def _slices_of(file: Path, names: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Some tensors of one file."""
    opened: Any = safe_open(file, framework="pt")
    found = {name: opened.get_slice(name) for name in names}
    if any(part.get_dtype() != _SHORT[dtype] for part in found.values()):
        opened = safe_open(file, framework="pt", backend="pread")
        found = {name: opened.get_slice(name) for name in names}
    return found


_SHORT = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def keep_head_float32(model: nn.Module, head: Collection[str], trained: Mapping[str, Path] | None = None) -> None:
    """Turn a model's head into float32, and what goes into it: what is solved in float64 is not rounded to 8 bits.

    Args:
        model: with weights in 16 bits; changed in place.
        head: names of the parameters that train.
        trained: where the head's own tensors are, by the model's names, if it was trained: they are read again, because
            the model's loader rounded them.
    """
    for name in head:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        value = model.get_parameter(name).detach().float()
        if trained and name in trained:
            with safe_open(trained[name], framework="pt") as opened:
                value = opened.get_tensor(name).float().to(value.device)
        setattr(module, own, nn.Parameter(value))
    for owner in {name.rpartition(".")[0] for name in head}:
        model.get_submodule(owner).register_forward_pre_hook(_widened, with_kwargs=True)


def _widened(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}


def _widened_output(_module: nn.Module, _args: Any, output: Any) -> Any:
    return _wide(output)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While this is entered, a model with weights in 16 bits computes in float32, with these weights.

    Each module's own parameters are replaced by float32 copies only while its forward runs.
    """
    with ExitStack() as hooks:
        for module in model.modules() if isinstance(model, nn.Module) else ():
            if getattr(module, "compute_dtype", None) in HALVES:
                # What bitsandbytes multiplies weights of 4 bits in.
                hooks.callback(setattr, module, "compute_dtype", module.compute_dtype)
                module.compute_dtype = torch.float32  # type: ignore[assignment]
            if isinstance(module, nn.Embedding):
                # What is looked up is widened, which is the same, and not the whole vocabulary.
                hooks.callback(module.register_forward_hook(_widened_output).remove)
            elif any(own is not None and own.dtype in HALVES for own in module._parameters.values()):
                held = _Held(module)
                for hook in (
                    module.register_forward_pre_hook(held.widen, with_kwargs=True, prepend=True),
                    module.register_forward_hook(held.restore, always_call=True),
                ):
                    hooks.callback(hook.remove)
        yield


class _Held:
    """A module's own weights, while float32 copies stand in for them."""

    def __init__(self, module: nn.Module) -> None:
        # Beside a bias in 16 bits may stand a weight in 8, which is left as it is.
        self.own = {name: v for name, v in module._parameters.items() if v is not None and v.dtype in HALVES}

    def widen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        for name, value in self.own.items():
            # Where this is entered twice, the other's copies are there already.
            if module._parameters[name] is value:
                module._parameters[name] = nn.Parameter(_wide(value.detach()), requires_grad=value.requires_grad)
        return _widened(module, args, kwargs)

    def restore(self, module: nn.Module, _args: Any, _output: Any) -> None:
        module._parameters.update(self.own)
