"""The frozen modules of a model, made to note what they return, or to answer without running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hftl.foreign import tree_flatten, tree_unflatten


@dataclass
class Recorded:
    """What one frontier call returned: flattened leaves, tensors of floats being leaves of the autograd graph."""

    module: str
    leaves: list[Any]
    structure: Any

    def floats(self) -> list[Tensor]:
        """The tensors of floats."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class ReachedError(Exception):
    """The forward came as far as it is of interest."""


class Frontier:
    """Patches the frozen modules of a model while it is entered.

    Recording, they run without gradients and what they return is noted; answering, they do not run at all and return
    the answers in order. A frozen module that is called inside another one, or after something trainable, runs as it
    is.
    """

    def __init__(self, model: nn.Module, head: set[str], frozen: Sequence[str] | None = None) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.owners = [name for name in self.modules if any(owner(p) == name for p in head)]
        self.frozen = list(frozen) if frozen is not None else _frozen_modules(self.modules, head)
        self.recorded: list[Recorded] = []
        self.answers: Callable[[int], Any] | None = None
        # After so many calls nothing else of the forward is of interest: it ends with `ReachedError`.
        self.stop_after: int | None = None
        self._count = self._depth = 0
        self._trainable_ran = False
        self._hooks: list[Any] = []
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Frontier:
        self._hooks = [self.model.register_forward_pre_hook(self._reset)]
        for name in self.owners:
            if name:
                self._hooks.append(self.modules[name].register_forward_pre_hook(self._mark_trainable))
        for name in self.frozen:
            module = self.modules[name]
            # An attribute of the instance shadows the class's forward and leaves hooks and functional_call working.
            self._before[name] = module.__dict__.get("forward")
            module.__dict__["forward"] = self._patched(name, module.forward)
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for name in self.frozen:
            del self.modules[name].__dict__["forward"]
            if self._before[name] is not None:
                # One that answers for another model, as `hftl.backbones.cut.echo` lets it, goes on doing so.
                self.modules[name].__dict__["forward"] = self._before[name]

    def _reset(self, *_: object) -> None:
        self.recorded = []
        self._count = self._depth = 0
        self._trainable_ran = False

    def _mark_trainable(self, *_: object) -> None:
        self._trainable_ran = True

    def _patched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._depth or self._trainable_ran:
                return original(*args, **kwargs)
            if self.answers is not None:
                self._count += 1
                return self.answers(self._count - 1)
            self._depth += 1
            try:
                with torch.inference_mode():
                    output = original(*args, **kwargs)
            finally:
                self._depth -= 1
            leaves, structure = tree_flatten(output)
            leaves = [_graph_leaf(leaf) for leaf in leaves]
            self.recorded.append(Recorded(name, leaves, structure))
            if len(self.recorded) == self.stop_after:
                raise ReachedError
            return tree_unflatten(leaves, structure)

        return forward


def owner(parameter: str) -> str:
    """The name of the module that holds a parameter."""
    return parameter.rpartition(".")[0]


def head_buffers(model: nn.Module, head: set[str]) -> list[str]:
    """Names of the stored buffers that belong to the head, such as the running statistics of a normalisation in it.

    Args:
        model: the model.
        head: names of the head's parameters.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    owners = {owner(name) for name in head}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = {prefix + parameter for parameter, _ in module.named_parameters(remove_duplicate=False)}
        if own and own <= head:
            # All of such a module is the head's, also what has buffers and no parameters.
            owners |= {prefix + inner if inner else name for inner, _ in module.named_modules()}
    return sorted(name for name in model.state_dict() if name not in parameters and owner(name) in owners)


def _graph_leaf(value: Any) -> Any:
    if not isinstance(value, Tensor) or not torch.is_grad_enabled():
        return value
    # A copy, because autograd cannot save what inference mode made.
    value = value.clone()
    return value.requires_grad_() if value.is_floating_point() else value


def _frozen_modules(modules: Mapping[str, nn.Module], head: set[str]) -> list[str]:
    """Every module that has parameters and none of the head's; modules without parameters are cheap and run live."""
    frozen = []
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        own = [prefix + parameter for parameter, _ in module.named_parameters(remove_duplicate=False)]
        if own and not head.intersection(own):
            frozen.append(name)
    return frozen
