"""The search for where a model can be cut: the smallest cut that is proved to replay it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hftl.backbones.batching import of_each_row
from hftl.backbones.cut.capture import Capture, gradients_of, pool, positions_of
from hftl.backbones.cut.cut import Call, Cut, Leaf
from hftl.backbones.cut.frontier import Frontier, Recorded, owner
from hftl.backbones.cut.replay import replaying
from hftl.backbones.pooling import Pooled
from hftl.errors import BackboneError, CutError
from hftl.foreign import treespec_dumps
from hftl.wording import one_line

TOLERANCE = 1e-5
MAX_POSITIONS = 8


def find_cut(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Cut:
    """The smallest cut of a model that replays it exactly.

    The head's parameters are set to random values first and stay so: an initial zero would hide what the logits
    depend on.

    Args:
        model: a classification model in eval mode whose forward returns ``logits`` of shape (n, C), or (n, tokens, C).
        head: names of the parameters that train.
        probes: batches of keyword arguments for the forward, with ragged lengths and each padding side.

    Raises:
        BackboneError: the model's logits are NaN or infinite.
        CutError: no cut gives the model's logits within 1e-5.
    """
    prepare_head(model, head, probes)
    failures = []
    of_words = logits_of_tokens(model, probes[0])
    for candidate in (_linear_candidate, _whole_candidate) if of_words else SEARCHED:
        try:
            cut = replace(candidate(model, head, probes), words=of_words)
            prove(model, cut, probes)
        # Whatever a forward raises on reduced inputs says the same thing: this cut does not replay the model.
        except Exception as error:
            failures.append(f"{candidate.__name__.split('_')[1]}: {one_line(error, 120)}")
        else:
            return cut
    raise CutError(
        f"the frozen part of {type(model).__name__} cannot be cached exactly ({'; '.join(failures)}); "
        "fine-tune it instead"
    )


def pooled_cut(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]], pooling: str) -> Cut:
    """A cut that keeps one pooled vector of the frozen body's last output instead of what the model's own head reads.

    Raises:
        CutError: the body returns nothing that can be pooled, or the model is no ``PreTrainedModel``, which pools
            in a way of its own that an exported pooling would contradict.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise CutError(f"{name} pools in its own way; use pooling='native'")
    recorded = _record(model, head, probes[0])
    try:
        width = pool(recorded[-1], probes[0], Pooled.by(model, pooling)).shape[1]
    # Whatever is raised where a class returns something else than most do.
    except Exception as error:
        raise CutError(f"{name} returns nothing that pooling={pooling!r} can pool; use pooling='native'") from error
    return Cut("pooled", sorted(head), pooling=pooling, calls=[Call(recorded[-1].module, "", [])], width=width)


def prepare_head(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> None:
    """Give the head random values, and see that the model then gives logits.

    Raises:
        BackboneError: the model's logits are NaN or infinite, or it returns none.
    """
    randomize(model, head)
    with torch.no_grad():
        output = model(**probes[0])
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise BackboneError(
            f"{type(model).__name__} returns {type(output).__name__}, which has no `logits`: its forward has to return "
            "an object with logits (n, C), such as transformers' SequenceClassifierOutput"
        )
    if not bool(torch.isfinite(logits).all()):
        raise BackboneError(f"{type(model).__name__} gives NaN or infinite logits: its weights are damaged")


def randomize(model: nn.Module, head: set[str], seed: int = 0) -> None:
    """Give the head's parameters random values with a scale that keeps the logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name in head:
                scale = max(parameter.shape[-1], 1) ** -0.5 if parameter.dim() > 1 else 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def prove(model: nn.Module, cut: Cut, probes: Sequence[Mapping[str, Tensor]]) -> None:
    """Compare replayed logits with the model's on every probe batch, and on the rows of all of them in one batch.

    Training mixes rows that were computed in different batches, so that is what the last comparison does too.

    Raises:
        CutError: they differ by more than 1e-5 of the largest logit (or 1e-5, if that is more).
    """
    if cut.kind == "pooled":
        return
    if cut.words:
        _prove_words(model, cut, probes)
        return
    given: list[dict[str, Any]] = []
    expected: list[Tensor] = []
    for batch in probes:
        with torch.no_grad():
            expected.append(model(**batch).logits)
        kept = Capture(model, [cut])(batch)[0]
        for name, (_, shape) in cut.kept().items():
            value = kept[name]
            if isinstance(value, Tensor) and list(value.shape[1:]) != list(shape):
                raise CutError(f"{name} has another size in each batch, and no mask says which of it is a row's own")
        compare_logits(_replayed(model, cut, kept), expected[-1])
        given.append(kept)
    if len(given) > 1:
        mixed = {name: _mixed_rows([kept[name] for kept in given]) for name in given[0]}
        compare_logits(_replayed(model, cut, mixed), torch.cat(expected))


def _prove_words(model: nn.Module, cut: Cut, probes: Sequence[Mapping[str, Tensor]]) -> None:
    """As `prove`, word by word."""
    for batch in probes:
        with torch.no_grad():
            expected = torch.cat(of_each_row(batch, model(**batch).logits))
        kept = Capture(model, [cut])(batch)[0]
        compare_logits(_replayed(model, cut, {name: torch.cat(rows) for name, rows in kept.items()}), expected)


def logits_of_tokens(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether a model gives logits for each token, not for each row."""
    with torch.no_grad():
        return bool(model(**batch).logits.dim() == 3)


def _replayed(model: nn.Module, cut: Cut, kept: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        if cut.kind == "linear":
            logits: Tensor = model.get_submodule(cut.linear or "")(kept["features"])
            return logits
        with replaying(model, cut) as replay:
            return replay(kept)


def compare_logits(logits: Tensor, expected: Tensor) -> None:
    """See that replayed logits are the model's.

    Raises:
        CutError: they differ by more than 1e-5 of the largest logit (or 1e-5, if that is more).
    """
    worst = float((logits - expected).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise CutError(f"replayed logits differ from the model's by {worst:.1e}")


def _mixed_rows(parts: Sequence[Any]) -> Any:
    """One column of several batches as that of one; ragged ones are lists of rows."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [row for part in parts for row in part]


def _record(model: nn.Module, head: set[str], batch: Mapping[str, Tensor]) -> list[Recorded]:
    with Frontier(model, head) as frontier, torch.no_grad():
        model(**batch)
        return frontier.recorded


def _linear_candidate(model: nn.Module, head: set[str], _: Sequence[Mapping[str, Tensor]]) -> Cut:
    owners = {owner(name) for name in head}
    name = owners.pop() if len(owners) == 1 else ""
    module = model.get_submodule(name)
    if not name or not isinstance(module, nn.Linear):
        raise CutError("the head is not one linear layer")
    return Cut("linear", sorted(head), linear=name, bias=module.bias is not None, width=module.in_features)


def _reduced_candidate(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Cut:
    counts = set()
    for batch in probes:
        used = positions_of(_dependence(model, head, batch)[1])
        if used is None:
            raise CutError("no token dimension to reduce")
        counts.update(used.sum(1).tolist())
    if len(counts) != 1 or not 0 < max(counts) <= MAX_POSITIONS:
        raise CutError("rows depend on different numbers of tokens")
    return _replay_cut(model, head, probes[0], int(counts.pop()))


def _whole_candidate(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Cut:
    return whole_cut(model, head, probes[0])


def whole_cut(model: nn.Module, head: set[str], batch: Mapping[str, Tensor]) -> Cut:
    """What the frozen frontier returns on a batch, of all token positions; not proved.

    Raises:
        CutError: it is not laid out by rows, or the logits depend on no frozen module.
    """
    return _replay_cut(model, head, batch, None)


# From the smallest.
SEARCHED = (_linear_candidate, _reduced_candidate, _whole_candidate)


def _replay_cut(model: nn.Module, head: set[str], batch: Mapping[str, Tensor], positions: int | None) -> Cut:
    recorded, gradients = _dependence(model, head, batch)
    if not any(g is not None for call in gradients for g in call):
        raise CutError("the logits depend on no frozen module")
    tokens = _token_inputs(batch)
    lengths = {batch[name].shape[1] for name in tokens}
    if positions is not None:
        used = positions_of(gradients)
        lengths = {used.shape[1]} if used is not None else lengths
    rows = len(next(iter(batch.values())))
    calls = []
    for call, grads in zip(recorded, gradients, strict=True):
        leaves: list[Leaf | None] = []
        for index, (value, grad) in enumerate(zip(call.leaves, grads, strict=True)):
            if not isinstance(value, Tensor):
                leaves.append(None)
                continue
            # A tensor of integers has no gradient to ask; the few there are (masks, grids) are kept.
            keep = grad is not None or not value.is_floating_point()
            if keep and (value.dim() == 0 or value.shape[0] != rows):
                raise CutError(f"an output of {call.module} is not laid out by rows")
            on_tokens = value.dim() >= 2 and value.shape[0] == rows and value.shape[1] in lengths
            shape = [-1 if on_tokens else value.shape[1], *value.shape[2:]] if value.dim() >= 2 else []
            column = f"{call.module}.{index}" if keep else None
            leaves.append(Leaf(column, list(shape), str(value.dtype).removeprefix("torch."), on_tokens))
        calls.append(Call(call.module, treespec_dumps(call.structure), leaves))
    blanks = {
        name: [list(value.shape[1:]), str(value.dtype).removeprefix("torch.")]
        for name, value in batch.items()
        if name not in tokens
    }
    return Cut("replay", sorted(head), calls=calls, tokens=tokens, blanks=blanks, positions=positions)


def _token_inputs(batch: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in batch.items() if value.dim() == 2 and not value.is_floating_point()]


def _dependence(
    model: nn.Module, head: set[str], batch: Mapping[str, Tensor]
) -> tuple[list[Recorded], list[list[Tensor | None]]]:
    """Run the model with its frontier recorded, and ask what of it the logits depend on."""
    with Frontier(model, head) as frontier, torch.enable_grad():
        logits = model(**batch).logits
        recorded = frontier.recorded
    return recorded, gradients_of(logits, recorded)
