"""The repeated blocks of a model, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn


def idle_parts(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of what a model holds and never runs, such as the text tower beside an image tower."""
    parts = ((name, part) for name, module in model.named_modules() for part in getattr(module, "never_run", ()))
    return tuple(f"{name}.{part}.".removeprefix(".") for name, part in parts)


def block_lists(model: nn.Module, head: Collection[str]) -> dict[str, int]:
    """The outermost lists of modules of one class, in the model's order: their names, and how many blocks each has.

    Args:
        model: the whole model.
        head: names of the head's parameters; a list inside the head, such as its layers, is none of the backbone's.
    """
    lists: dict[str, int] = {}
    idle = idle_parts(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.startswith(idle):
            continue
        if any(name.startswith(f"{outer}.") for outer in lists):
            continue
        if len({type(child) for child in module}) != 1:
            continue
        parameters = [f"{name}.{own}" for own, _ in module.named_parameters()]
        if parameters and not any(parameter in head for parameter in parameters):
            lists[name] = len(module)
    return lists


@dataclass(frozen=True)
class Depths:
    """How deep each parameter of a model lies.

    Attributes:
        of: by parameter name: 0 for embeddings and for what is never run, 1 … ``blocks`` for the repeated blocks,
            ``blocks + 1`` for what follows and for the head.
        names: of the repeated blocks, in order.
    """

    of: dict[str, int]
    names: tuple[str, ...]

    @property
    def blocks(self) -> int:
        """The number of repeated blocks."""
        return len(self.names)


def find_depths(model: nn.Module, head: set[str]) -> Depths:
    """Find the repeated blocks of any architecture: the outermost lists of modules of one class, in the model's order.

    Args:
        model: the whole model.
        head: names of the head's parameters.
    """
    names = tuple(f"{name}.{i}" for name, count in block_lists(model, head).items() for i in range(count))
    starts = [f"{name}." for name in names]
    depth_of: dict[str, int] = {}
    seen, idle = 0, idle_parts(model)
    for name, _ in model.named_parameters():
        inside = next((i for i, start in enumerate(starts) if name.startswith(start)), None)
        if name in head:
            depth_of[name] = len(starts) + 1
        elif name.startswith(idle):
            depth_of[name] = 0
        elif inside is not None:
            depth_of[name] = inside + 1
            seen = max(seen, inside + 1)
        else:
            # Registered before the first block: embeddings. After it: final norms and poolers.
            depth_of[name] = len(starts) + 1 if seen else 0
    return Depths(depth_of, names)
