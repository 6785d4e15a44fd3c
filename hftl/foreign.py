"""Private names of other libraries, all of them, each with the reason why the public ones do not serve.

A release that takes one away breaks this module and its test, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

# The structure of a module's output. torch has no public tree functions yet, and transformers registers its
# ModelOutput classes with these.
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

if TYPE_CHECKING:
    import datasets

__all__ = [
    "block_classes",
    "fingerprint",
    "forget_precision",
    "initializer",
    "onednn_linear",
    "tree_flatten",
    "tree_unflatten",
    "treespec_dumps",
    "treespec_loads",
]


def onednn_linear() -> Callable[..., torch.Tensor] | None:
    """oneDNN's linear layer, the operator behind torch.compile's on CPUs; None in a torch that was built without it."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def initializer(model: nn.Module) -> Callable[[nn.Module], None] | None:
    """How a transformers class draws one module's initial values: the public `init_weights` draws all of a model's."""
    return getattr(model, "_init_weights", None)


def block_classes(model: Any) -> list[str]:
    """Classes of modules that a transformers model wants on one device each; accelerate reads the same name."""
    return sorted(model._no_split_modules or ())


def forget_precision() -> None:
    """Let the next Accelerator of this process choose its own precision: the first one's is kept for all of them."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def fingerprint(data: datasets.Dataset) -> str:
    """What `datasets` names the content of a data set by, transformations included; it has no public reader."""
    return str(data._fingerprint)
