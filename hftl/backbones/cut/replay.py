"""A model's forward on what was kept: its frozen modules answer, and need no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.cut.cut import Call, Cut
from hftl.backbones.cut.frontier import Frontier, head_buffers, owner
from hftl.foreign import initializer, tree_unflatten, treespec_loads


class Replay:
    """A model whose frozen modules answer from kept columns; made by `replaying`."""

    def __init__(self, model: nn.Module, cut: Cut, frontier: Frontier) -> None:
        self.model = model
        self.cut = cut
        self.frontier = frontier
        # Looking for tensors that stand under two names in each batch costs more than a small head's own work.
        tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self.is_tied = len({id(tensor) for _, tensor in tensors}) < len(tensors)
        # A structure that was written with treespec_dumps names only registered classes; loading one imports nothing.
        self.structures = [treespec_loads(call.structure) for call in cut.calls]

    def __call__(self, kept: Mapping[str, Any], parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (n, C) of a batch of kept columns; ``parameters`` stand in for the head's own, by name.

        Where the cut is of words, rows are words: each is a row of one token.
        """
        if self.cut.words:
            kept = {name: value[:, None] for name, value in kept.items()}
        kept, rows, length = self._padded(kept)
        inputs = model_inputs(self.cut, kept, rows)
        self.frontier.answers = lambda index: self._answer(index, kept, rows, length)
        if parameters is None:
            logits: Tensor = self.model(**inputs).logits
        else:
            tied = self.is_tied
            logits = torch.func.functional_call(self.model, dict(parameters), (), inputs, tie_weights=tied).logits
        return logits[:, 0] if self.cut.words else logits

    def _padded(self, kept: Mapping[str, Any]) -> tuple[dict[str, Tensor], int, int]:
        """Ragged columns padded on the right with zeros; the number of rows and of tokens."""
        columns = {
            name: nn.utils.rnn.pad_sequence(list(value), batch_first=True) if isinstance(value, list) else value
            for name, value in kept.items()
        }
        rows = len(next(iter(columns.values())))
        if self.cut.tokens:
            return columns, rows, columns[self.cut.tokens[0]].shape[1]
        return columns, rows, 1 if self.cut.words else self.cut.positions or 0

    def _answer(self, index: int, kept: Mapping[str, Tensor], rows: int, length: int) -> Any:
        return tree_unflatten(kept_leaves(self.cut.calls[index], kept, rows, length), self.structures[index])


def kept_leaves(call: Call, kept: Mapping[str, Tensor], rows: int, length: int) -> list[Any]:
    """What a call returned, as leaves: kept tensors, and zeros (n, …) where the logits depend on nothing."""
    leaves: list[Any] = []
    for leaf in call.leaves:
        if leaf is None:
            leaves.append(None)
        elif leaf.column is not None:
            leaves.append(kept[leaf.column])
        else:
            device = next(iter(kept.values())).device
            zero = torch.zeros((), dtype=getattr(torch, leaf.dtype), device=device)
            leaves.append(zero.expand(rows, *(length if size == -1 else size for size in leaf.shape)))
    return leaves


def model_inputs(cut: Cut, kept: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Keyword arguments of a replayed forward: the inputs that were kept, and zeros (n, …) for all others."""
    device = next(iter(kept.values())).device
    inputs = {name: kept[name] for name in cut.tokens}
    for name, (shape, dtype) in cut.blanks.items():
        # Where the cut is of words, a row is one token.
        shape = [1, *shape[1:]] if cut.words and shape else shape
        inputs[name] = torch.zeros((), dtype=getattr(torch, dtype), device=device).expand(rows, *shape)
    return inputs


@contextmanager
def replaying(model: nn.Module, cut: Cut) -> Iterator[Replay]:
    """Enter a model's replay; its frozen modules need no weights (they may be on the meta device)."""
    frozen = list(dict.fromkeys(call.module for call in cut.calls))
    with Frontier(model, set(cut.head), frozen) as frontier:
        yield Replay(model, cut, frontier)


# Modules of a head that hold statistics of the rows they have seen.
STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def measured_buffers(
    replay: Replay, parameters: Mapping[str, Tensor], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The head's buffers with the running statistics of all training rows, as a head with these parameters sees them.

    Training holds them fixed: the head that is trained is then the one that is exported, whatever the batches were.
    As ``torch.optim.swa_utils.update_bn`` does, the average of the batches' statistics is taken.

    Args:
        replay: of the model, whose head is real.
        parameters: the head's, on the device of the batches.
        batches: kept columns of the training rows, in an order that has nothing to do with their labels.

    Returns:
        By the model's names, on that device; empty where the head has no buffers.
    """
    model = replay.model
    names = head_buffers(model, set(replay.cut.head))
    seen = [
        module for name, module in model.named_modules() if _is_around(name, names) and isinstance(module, STATISTICS)
    ]
    momenta = [module.momentum for module in seen]
    for module in seen:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    device = next(iter(batches[0].values())).device
    state = model.state_dict()
    buffers = {name: state[name].detach().clone().to(device) for name in names}
    if seen:
        with torch.no_grad():
            for batch in batches:
                replay(batch, {**parameters, **buffers})
    for module, momentum in zip(seen, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return buffers


def _is_around(module: str, tensors: Sequence[str]) -> bool:
    return any(owner(name) == module for name in tensors)


def initial_head(model: nn.Module, head: set[str], seed: int) -> dict[str, Tensor]:
    """Initial values of the head's parameters, drawn as the model's class draws them, for a model on the meta device.

    Args:
        model: the skeleton; the modules that own the head's parameters get real tensors.
        head: names of the parameters that train.
        seed: of the draw.

    Returns:
        float32 tensors on the CPU, by name.
    """
    draw = initializer(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # Modules that hold statistics and no parameters need real tensors too.
        for name in sorted({owner(tensor) for tensor in (*head, *head_buffers(model, head))}):
            module = model.get_submodule(name)
            module.to_empty(device="cpu", recurse=False)
            if isinstance(module, (nn.Linear, nn.LayerNorm, *STATISTICS)):
                module.reset_parameters()
            if draw is not None:
                draw(module)
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in sorted(head)}


def needs_weights(model: nn.Module, cut: Cut) -> bool:
    """Whether something frozen runs live in the replay, so that a skeleton will not do.

    Args:
        model: the skeleton, its head already real.
        cut: the cut.
    """
    answered = tuple(f"{call.module}." for call in cut.calls)
    for name in {owner(tensor) for tensor in (*cut.head, *head_buffers(model, set(cut.head)))}:
        module = model.get_submodule(name)
        if not isinstance(module, STATISTICS) and next(module.buffers(recurse=False), None) is not None:
            # A constant of the head, whose value only its class knows.
            return True
    live = [*model.named_parameters(), *model.named_buffers()]
    return any(value.is_meta and not name.startswith(answered) for name, value in live)
