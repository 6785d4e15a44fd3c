"""The repeated blocks of a model, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def block_lists(model: nn.Module, head: Collection[str]) -> dict[str, int]:
    """The outermost lists of modules of one class, in the model's order: their names, and how many blocks each has.

    Args:
        model: the whole model.
        head: names of the head's parameters; a list inside the head, such as its layers, is none of the backbone's.
    """
    lists: dict[str, int] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in lists) or not isinstance(module, nn.ModuleList):
            continue
        if len({type(child) for child in module}) != 1:
            continue
        parameters = [f"{name}.{own}" for own, _ in module.named_parameters()]
        if parameters and not any(parameter in head for parameter in parameters):
            lists[name] = len(module)
    return lists
