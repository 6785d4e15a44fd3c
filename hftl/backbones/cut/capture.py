"""What is kept of a batch: one forward of the model, and of what its frozen frontier returned, what a cut names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.batching import of_each_row
from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.frontier import Frontier, ReachedError, Recorded
from hftl.backbones.pooling import Pooled
from hftl.errors import CutError
from hftl.foreign import tree_unflatten


class Capture:
    """Runs a model on batches and returns what its cuts keep, in one forward pass for all of them.

    Args:
        model: the model that the cuts were made for.
        cuts: the cuts, of one head.
        autocast: compute in this dtype where torch deems it safe; None for float32 throughout.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[Cut], autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.cuts = cuts
        self.autocast = autocast
        frozen = list(dict.fromkeys(call.module for cut in cuts for call in cut.calls))
        self.frontier = Frontier(model, set(cuts[0].head), frozen)
        self.linear = next((cut.linear for cut in cuts if cut.kind == "linear"), None)
        # Only a reduced replay asks, batch by batch, which tokens the logits depend on.
        self.asks = any(cut.kind == "replay" and cut.positions is not None for cut in cuts)
        if all(cut.kind == "blocks" for cut in cuts):
            # What trains behind them need not run.
            self.frontier.stop_after = len(cuts[0].calls)

    def __call__(self, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What each cut keeps of a batch.

        Args:
            batch: keyword arguments of the forward, first dimension n.

        Returns:
            For each cut, its columns: a tensor (n, …) each, or for a ragged column a list of n tensors (length, …).

        Raises:
            CutError: a row depends on other token positions than a cut allows.
        """
        device = next(iter(batch.values())).device.type
        with (
            torch.set_grad_enabled(self.asks),
            torch.autocast(device, self.autocast, enabled=self.autocast is not None),
            self.frontier,
            _linear_noted(self.model, self.linear) as noted,
        ):
            logits = torch.empty(0)
            with suppress(ReachedError):
                logits = self.model(**batch).logits
            recorded = self.frontier.recorded
        gradients = gradients_of(logits, recorded) if self.asks else []
        return [self._kept(cut, batch, logits, recorded, gradients, noted) for cut in self.cuts]

    def _kept(
        self,
        cut: Cut,
        batch: Mapping[str, Tensor],
        logits: Tensor,
        recorded: list[Recorded],
        gradients: list[list[Tensor | None]],
        noted: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Any]:
        if cut.kind == "linear":
            return {"features": _of_words(batch, noted) if cut.words else _mixed(logits, noted)}
        mine = {call.module for call in cut.calls}
        chosen = [i for i, call in enumerate(recorded) if call.module in mine]
        calls = [recorded[i] for i in chosen]
        if cut.kind == "pooled":
            return {"features": pool(calls[-1], batch, Pooled.by(self.model, cut.pooling or "")).float()}
        if cut.words:
            return _collect(cut, calls, batch, lambda value: of_each_row(batch, value))
        if cut.positions is None:
            rows = _real_tokens(cut, batch)
            return _collect(cut, calls, batch, lambda value: [v[r] for v, r in zip(value, rows, strict=True)])
        used = positions_of([gradients[i] for i in chosen])
        if used is None or bool((used.sum(1) != cut.positions).any()):
            raise CutError("a row's logits depend on other tokens than the probe's did; fine-tune this model instead")
        index = used.nonzero()[:, 1].view(len(used), cut.positions)
        pick = torch.arange(len(used), device=index.device)[:, None]
        return _collect(cut, calls, batch, lambda value: value[pick, index])


def _collect(
    cut: Cut, recorded: list[Recorded], batch: Mapping[str, Tensor], reduce: Callable[[Tensor], Any]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for call, record in zip(cut.calls, recorded, strict=True):
        for leaf, value in zip(call.leaves, record.leaves, strict=True):
            if leaf is not None and leaf.column is not None:
                value = value.detach().to(getattr(torch, leaf.dtype))
                kept[leaf.column] = reduce(value) if leaf.tokens else value
    return kept | {name: reduce(batch[name]) for name in cut.tokens}


def _real_tokens(cut: Cut, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """For each row the positions of its own tokens, padding left out."""
    if "attention_mask" in batch:
        return [mask.nonzero()[:, 0] for mask in batch["attention_mask"]]
    first = batch[cut.tokens[0]] if cut.tokens else None
    return [] if first is None else [torch.arange(first.shape[1], device=first.device)] * len(first)


@contextmanager
def _linear_noted(model: nn.Module, linear: str | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note the input of a Linear, and its output, which becomes a leaf of the graph where it runs over tokens."""
    noted: list[tuple[Tensor, Tensor]] = []

    def note(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach()
        if output.dim() == 3:
            torch.set_grad_enabled(True)
            leaf.requires_grad_()
        noted.append((args[0].detach(), leaf))
        return leaf

    handle = model.get_submodule(linear).register_forward_hook(note) if linear is not None else None
    try:
        yield noted
    finally:
        if handle is not None:
            handle.remove()


def _of_words(batch: Mapping[str, Tensor], noted: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The Linear's input at each word of each row: (words, d)."""
    if len(noted) != 1 or noted[0][0].dim() != 3:
        raise CutError("the head does not run once over tokens")
    return of_each_row(batch, noted[0][0].float())


def _mixed(logits: Tensor, noted: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The vectors (n, d) with ``logits = features @ weight.T + bias``: the Linear's input, mixed over tokens.

    The mixing weights are the gradient of the logits with respect to the Linear's output: one-hot where a model gathers
    its last token, 1/t where it averages.
    """
    if len(noted) != 1:
        raise CutError("the head runs more than once")
    features, output = noted[0]
    if output.dim() == 2:
        return features.float()
    mixing = torch.autograd.grad(logits.sum(), output, retain_graph=True)[0]
    if not torch.equal(mixing, mixing[..., :1].expand_as(mixing)):
        raise CutError("the logits mix the classes of the head's output")
    return torch.einsum("nt,ntd->nd", mixing[..., 0].float(), features.float())


def pool(record: Recorded, batch: Mapping[str, Tensor], pooled: Pooled) -> Tensor:
    """Pool what the frozen body returned to vectors (n, d).

    Raises:
        BackboneError: it returned nothing that can be pooled so.
    """
    return pooled.of(tree_unflatten(record.leaves, record.structure), batch).detach()


def gradients_of(logits: Tensor, recorded: list[Recorded]) -> list[list[Tensor | None]]:
    """The logits' gradient with respect to every recorded tensor; None where it is zero or there can be none."""
    floats = [leaf for call in recorded for leaf in call.floats()]
    # A random cotangent, because a plain sum may cancel.
    cotangent = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(0)).to(logits)
    total = (logits * cotangent).sum()
    of_floats = iter(torch.autograd.grad(total, floats, allow_unused=True, retain_graph=True) if floats else ())
    gradients = [
        [next(of_floats) if isinstance(v, Tensor) and v.is_floating_point() else None for v in call.leaves]
        for call in recorded
    ]
    return [[g if g is not None and bool(g.any()) else None for g in call] for call in gradients]


def positions_of(gradients: list[list[Tensor | None]]) -> Tensor | None:
    """Which token positions each row's logits depend on, (n, t) bool; None if the outputs share no such dimension."""
    used: Tensor | None = None
    for call_gradients in gradients:
        for gradient in call_gradients:
            if gradient is None:
                continue
            if gradient.dim() != 3 or (used is not None and used.shape != gradient.shape[:2]):
                return None
            mask = gradient.ne(0).any(-1)
            used = mask if used is None else used | mask
    return used
