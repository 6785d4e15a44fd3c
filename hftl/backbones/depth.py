"""A backbone without its last blocks: its first blocks, then its own final norm, as its own class says it.

What is shortened is the configuration, by the class's own fields, so that the result is the same standard class with
fewer layers, and loads anywhere. Which fields these are is not looked up: every field that counts the blocks, or has an
entry for each of them, is shortened, and what comes of that is compared with the whole model, name by name and number
by number, before anything is made of it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from hftl.backbones.blocks import block_lists
from hftl.errors import BackboneError, RecipeError
from hftl.foreign import tree_flatten

# Fields of one number that count blocks. Of fields with as many entries as there are blocks: numbers that are of
# something else all the same, and words that are of the blocks.
COUNT = re.compile(r"^(num|n)_.*(layers?|blocks?|stages)$|^(n_layers?|layers)$")
NOT_BY_BLOCK = re.compile(r"size$")
BY_BLOCK = re.compile(r"layer|block|stage")
# Which stages a body hands to a detector; every class has a default, which is its last one.
OF_DETECTORS = ("out_features", "out_indices", "stage_names")
CLOSE = 1e-5


@dataclass(frozen=True)
class Stack:
    """The repeated blocks of a whole model.

    Attributes:
        name: the list of modules that holds them.
        blocks: how many there are.
        shapes: of every tensor of the model, by name.
        head: names of the parameters that the model's base class does not have.
    """

    name: str
    blocks: int
    shapes: Mapping[str, torch.Size]
    head: frozenset[str]

    def beyond(self, depth: int, name: str) -> bool:
        """Whether a tensor belongs to a block after the first ``depth`` ones."""
        number = block_number(self.name, name)
        return number is not None and number >= depth


@dataclass(frozen=True)
class Shortened:
    """What was taken from a backbone.

    Attributes:
        depth: how many blocks are left.
        stack: of the whole model.
        fields: what the configuration says otherwise than the checkpoint's, as JSON; fields of a configuration inside
            it by that one's name.
        norm: parameters of a final norm that has another width than the whole model's, because the stages of the
            architecture have different ones: it begins as one that does nothing.
        lost: parameters that the last block has in the whole model only, such as what leads to the next stage.
    """

    depth: int
    stack: Stack
    fields: dict[str, Any]
    norm: frozenset[str]
    lost: frozenset[str]


def find_stack(model: nn.Module, head: set[str], name: str) -> Stack:
    """The one list of blocks that a model goes through.

    Args:
        model: without weights.
        head: names of the parameters that its base class does not have.
        name: the backbone's, for the error.

    Raises:
        BackboneError: it has none, or several.
    """
    lists = {stack: count for stack, count in block_lists(model, head).items() if count > 1}
    if len(lists) != 1:
        has = f"{len(lists)} lists of blocks ({', '.join(lists)})" if lists else "no list of equal blocks"
        raise BackboneError(
            f"{name} cannot be cut at a depth, because {type(model).__name__} has {has}: leave depth out"
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    ((stack, blocks),) = lists.items()
    return Stack(stack, blocks, shapes, frozenset(head))


def check_depth(depth: int, stack: Stack, name: str) -> None:
    """Refuse a depth that a backbone does not have.

    Raises:
        RecipeError: it has fewer blocks.
    """
    if not 1 <= depth <= stack.blocks:
        raise RecipeError(f"depth={depth}: {name} has {stack.blocks} blocks; give 1 to {stack.blocks}")


def shorten_config(config: Any, blocks: int, depth: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration of fewer blocks.

    Args:
        config: of the whole model.
        blocks: how many the whole model has.
        depth: how many to keep.

    Returns:
        The configuration as its class reads it, and of it the fields that were shortened; empty where it says nowhere
        how many blocks there are.
    """
    fields: dict[str, Any] = config.to_dict()
    shorter: dict[str, Any] = {}
    inside = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", ())}
    for name, value in list(fields.items()):
        if name in OF_DETECTORS or (name not in inside and _is_derived(config, name)):
            del fields[name]
        elif inside.get(name) is not None:
            fields[name], changed = shorten_config(inside[name], blocks, depth)
            shorter |= {name: changed} if changed else {}
        elif isinstance(value, list | tuple) and len(value) == blocks and _is_by_block(name, value):
            fields[name] = shorter[name] = [*value[:depth]]
        elif value == blocks and type(value) is int and COUNT.search(name):
            fields[name] = shorter[name] = depth
    return fields, shorter


def _is_by_block(name: str, entries: Sequence[Any]) -> bool:
    words = any(isinstance(entry, str) for entry in entries)
    return bool(BY_BLOCK.search(name) if words else not NOT_BY_BLOCK.search(name))


def _is_derived(config: Any, name: str) -> bool:
    """Whether a field is one that the class computes of the others, such as the width after the last stage."""
    kind: Any = type(config)
    stated = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {name}
    if name in stated:
        return False
    again = kind(**{key: value for key, value in config.to_dict().items() if key in stated})
    return bool(getattr(again, name, None) == getattr(config, name, None))


def check_same(
    stack: Stack, depth: int, fields: Mapping[str, Any], short: nn.Module
) -> tuple[frozenset[str], frozenset[str]]:
    """See that a model made of a shortened configuration is the whole one without its last blocks.

    Args:
        stack: of the whole model.
        depth: the blocks that are left.
        fields: those that were shortened.
        short: the model, without weights.

    Returns:
        Parameters of a norm behind the blocks that has another width, and what the last block has no more.

    Raises:
        ValueError: it is another model.
    """
    kept = {name: shape for name, shape in stack.shapes.items() if not stack.beyond(depth, name)}
    own = {name: value.shape for name, value in short.state_dict().items()}
    if added := sorted(own.keys() - kept.keys()):
        raise ValueError(f"it has {added[0]}, which the whole model has not")
    if not any(block_number(stack.name, name) == depth - 1 for name in own):
        raise ValueError(f"it has no block {depth}")
    lost = kept.keys() - own.keys()
    # Stages, which have entries of their own in lists, may lose what leads to the next one.
    stages = any(isinstance(value, list) for value in fields.values())
    if wrong := sorted(name for name in lost if not stages or block_number(stack.name, name) != depth - 1):
        raise ValueError(f"it lacks {wrong[0]}")
    other = {name for name in own if own[name] != kept[name] and name not in stack.head}
    parameters = {name for name, _ in short.named_parameters()}
    for name in sorted(other):
        module = short.get_submodule(name.rpartition(".")[0])
        is_norm = "Norm" in type(module).__name__ and name in parameters
        if not is_norm or block_number(stack.name, name) is not None:
            raise ValueError(f"its {name} has another shape than the whole model's")
    return frozenset(other), frozenset(lost)


def block_number(stack: str, name: str) -> int | None:
    """The number of the block that a tensor belongs to; None for one outside of the blocks."""
    number = name.removeprefix(f"{stack}.").partition(".")[0] if name.startswith(f"{stack}.") else ""
    return int(number) if number.isdecimal() else None


def names_beyond(stack: Stack, depth: int, names: Iterable[str]) -> set[str]:
    """Names of a checkpoint's tensors that belong to blocks after the first ``depth`` ones.

    A checkpoint may be of the base model, or call its blocks what an older transformers called them; the numbers are
    the same.

    Args:
        stack: of the whole model.
        depth: how many blocks are kept.
        names: of all tensors of the checkpoint.
    """
    numbered: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if found := re.match(r"(.*?)\.(\d+)\.", f".{name}"):
            numbered.setdefault(found[1][1:], {}).setdefault(int(found[2]), []).append(name)
    stacks = {prefix: blocks for prefix, blocks in numbered.items() if sorted(blocks) == list(range(stack.blocks))}
    own = [prefix for prefix in stacks if stack.name == prefix or stack.name.endswith(f".{prefix}")] or list(stacks)
    if len(own) != 1:
        # Nothing is lost: what the model does not have is left out of an export in any case.
        return set()
    return {name for number, inside in stacks[own[0]].items() if number >= depth for name in inside}


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _ReachedError(Exception):
    """The forward came to where it was to be looked at, and need not go on."""


def hollow_model(auto_class: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A model in eval mode that shares the tensors it is given; those not given, or of another shape, have no numbers.

    Args:
        auto_class: the Auto class that makes it.
        config: its configuration.
        tensors: by the model's names.
    """
    # What is no parameter is computed by the model's class, which cannot be done without numbers.
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(copy.deepcopy(config), trust_remote_code=False)
    share_tensors(model, tensors)
    return model.eval()


def share_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model tensors, by its names, without a copy; those of another shape it leaves as it has them."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    given = {name: value for name, value in tensors.items() if shapes.get(name) == value.shape}
    model.load_state_dict(given, strict=False, assign=True)


def neutral_norm(model: nn.Module, norm: Iterable[str]) -> None:
    """Let a norm neither scale nor shift; its parameters may have had no numbers."""
    for name in norm:
        owner, _, own = name.rpartition(".")
        value = torch.full(model.get_parameter(name).shape, float(own == "weight"))
        setattr(model.get_submodule(owner), own, nn.Parameter(value))


def prove_short(short: nn.Module, whole: nn.Module, made: Shortened, batch: Mapping[str, Tensor]) -> None:
    """See that a short model computes what the whole one does, as far as its last block.

    Args:
        short: the model of fewer blocks, with its weights.
        whole: the whole model, with weights as far as the short one has them.
        made: how the one was made of the other.
        batch: keyword arguments of the forward.

    Raises:
        ValueError: it computes something else.
    """
    ours, theirs = _at_block(short, made, batch), _at_block(whole, made, batch)
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise ValueError(
                f"block {made.depth} gets {tuple(mine.shape)} where the whole model gives {tuple(other.shape)}"
            )
        worst = float((mine - other).abs().max()) if mine.numel() else 0.0
        if not worst <= CLOSE * max(1.0, float(other.abs().max())):
            raise ValueError(f"what block {made.depth} sees differs from the whole model's by {worst:.1e}")


def _at_block(model: nn.Module, made: Shortened, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """What the last block of a short model is given, and what it makes of it where it is the whole model's block."""
    seen: list[Tensor] = []

    def given(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.extend(_numbers((args, kwargs)))
        if made.lost:
            raise _ReachedError

    def returned(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.extend(_numbers(output))
        raise _ReachedError

    block = model.get_submodule(f"{made.stack.name}.{made.depth - 1}")
    with ExitStack() as hooks, torch.no_grad():
        for hook in (block.register_forward_pre_hook(given, with_kwargs=True), block.register_forward_hook(returned)):
            hooks.callback(hook.remove)
        with suppress(_ReachedError):
            model(**batch)
    return seen


def _numbers(values: Any) -> list[Tensor]:
    leaves = tree_flatten(values)[0]
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
