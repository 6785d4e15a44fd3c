"""Cutting a model at its frozen frontier, so that only what can change is computed again.

The model's own forward is always what runs. Given the parameters of the head, the *frozen frontier* is the set of outermost
frozen modules that run before anything trainable. What they return is kept; training replays the same forward with those modules
answering from what was kept, so that pooling, gathers and masks around the head are right by construction and no architecture
needs code of its own. What is kept is pruned to what the logits depend on, which one gradient tells.

Three kinds of cut, the smallest that is exact wins:

- ``linear``: the head is one Linear whose input, mixed over tokens by fixed weights, gives the logits. One vector is kept.
- ``replay``: the outputs of the frontier are kept, reduced to the token positions used, or whole.
- ``pooled``: the caller asked for a pooled vector in place of the model's own head (`pooled_split`).

A cut is proved on probe batches before it is used: replayed logits must equal the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

# The serialised form of a module's output structure has no public name in torch yet; transformers registers its own
# ModelOutput classes here, and loading a spec can only name registered classes.
from torch.utils import _pytree as pytree

from hftl.errors import SplitError

TOLERANCE = 1e-5
MAX_POSITIONS = 8


@dataclass(frozen=True)
class Leaf:
    """One tensor that a frozen module returns.

    Attributes:
        column: the name it is kept under; None if the logits do not depend on it.
        shape: its shape for one row; the token dimension, where there is one, is -1.
        dtype: such as ``"float32"``.
        tokens: whether its first dimension runs over tokens.
    """

    column: str | None
    shape: list[int]
    dtype: str
    tokens: bool


@dataclass(frozen=True)
class Call:
    """One call of a frontier module: its name and the structure of what it returned (a serialised TreeSpec)."""

    module: str
    structure: str
    leaves: list[Leaf | None]


@dataclass(frozen=True)
class Split:
    """Where a model is cut and what is kept of each row; plain JSON in and out.

    Attributes:
        kind: ``"linear"``, ``"replay"`` or ``"pooled"``.
        head: the names of the parameters that train.
        linear: the name of the Linear that is the head, for kind ``linear``.
        bias: whether that Linear has a bias.
        pooling: ``"mean"`` or ``"cls"`` for kind ``pooled``.
        calls: the frontier's calls in the order in which they run (for ``pooled`` only the last, which is pooled).
        tokens: names of integer inputs kept beside the features because the forward outside the frontier may read them.
        blanks: per-row shape and dtype of every other input; the replay gives zeros for them.
        positions: token positions kept of each row; None for all.
        width: elements of one row's feature vector for kinds ``linear`` and ``pooled``.
    """

    kind: Literal["linear", "replay", "pooled"]
    head: list[str]
    linear: str | None = None
    bias: bool = True
    pooling: str | None = None
    calls: list[Call] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    blanks: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    positions: int | None = None
    width: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Split:
        """From what `to_json` gave."""
        calls = [
            Call(c["module"], c["structure"], [Leaf(**leaf) if leaf else None for leaf in c["leaves"]])
            for c in data["calls"]
        ]
        blanks = {name: (list(shape), dtype) for name, (shape, dtype) in data["blanks"].items()}
        return cls(**{**data, "calls": calls, "blanks": blanks})

    def kept(self) -> dict[str, tuple[str, list[int]]]:
        """Each column's dtype and per-row shape; a leading -1 marks a ragged column (one entry for each token)."""
        if self.kind != "replay":
            return {"features": ("float32", [self.width])}
        length = -1 if self.positions is None else self.positions
        columns = {
            leaf.column: (leaf.dtype, [length, *leaf.shape[1:]] if leaf.tokens else leaf.shape)
            for call in self.calls
            for leaf in call.leaves
            if leaf is not None and leaf.column is not None
        }
        return columns | {name: ("int64", [length]) for name in self.tokens}


# ── the frontier ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Recorded:
    """What one frontier call returned: flattened leaves, tensors of floats being leaves of the autograd graph."""

    module: str
    leaves: list[Any]
    structure: Any

    def floats(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class Frontier:
    """Patches the frozen modules of a model while it is entered.

    Recording, they run without gradients and what they return is noted; answering, they do not run at all and return
    the answers in order. A frozen module that is called inside another one, or after something trainable, runs as it is.
    """

    def __init__(self, model: nn.Module, head: set[str], frozen: Sequence[str] | None = None) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.owners = [name for name in self.modules if any(_owner(p) == name for p in head)]
        self.frozen = list(frozen) if frozen is not None else _frozen_modules(self.modules, head)
        self.recorded: list[Recorded] = []
        self.answers: Callable[[int], Any] | None = None
        self.expected = 0
        self._count = self._depth = 0
        self._trainable_ran = False
        self._hooks: list[Any] = []

    def __enter__(self) -> Frontier:
        self._hooks = [self.model.register_forward_pre_hook(self._reset)]
        for name in self.owners:
            if name:
                self._hooks.append(self.modules[name].register_forward_pre_hook(self._mark_trainable))
        for name in self.frozen:
            module = self.modules[name]
            # An attribute of the instance shadows the class's forward and leaves hooks and functional_call working.
            module.__dict__["forward"] = self._patched(name, module.forward)
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for name in self.frozen:
            self.modules[name].__dict__.pop("forward", None)

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
            leaves, structure = pytree.tree_flatten(output)
            leaves = [_graph_leaf(leaf) for leaf in leaves]
            self.recorded.append(Recorded(name, leaves, structure))
            return pytree.tree_unflatten(leaves, structure)

        return forward


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _graph_leaf(value: Any) -> Any:
    if not isinstance(value, Tensor) or not torch.is_grad_enabled():
        return value
    # A copy, for autograd cannot save what inference mode made.
    value = value.clone()
    return value.requires_grad_() if value.is_floating_point() else value


def _frozen_modules(modules: Mapping[str, nn.Module], head: set[str]) -> list[str]:
    """Every module that has parameters and none of the head's; modules without parameters are cheap and run live."""
    found = []
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        own = [prefix + parameter for parameter, _ in module.named_parameters(remove_duplicate=False)]
        if own and not head.intersection(own):
            found.append(name)
    return found


# ── finding a cut ────────────────────────────────────────────────────────────────────────────────────────────────────


def find_split(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Split:
    """The smallest cut of a model that replays it exactly.

    The head's parameters are set to random values first and stay so: an initial zero would hide what the logits depend on.

    Args:
        model: a classification model in eval mode whose forward returns ``logits`` of shape (n, C).
        head: names of the parameters that train.
        probes: batches of keyword arguments for the forward, with ragged lengths and each padding side.

    Raises:
        SplitError: no cut gives the model's logits within 1e-5.
    """
    randomize(model, head)
    failures = []
    for candidate in (_linear_candidate, _reduced_candidate, _whole_candidate):
        try:
            split = candidate(model, head, probes)
            prove(model, split, probes)
        # Whatever a forward raises on reduced inputs says the same thing: this cut does not replay the model.
        except Exception as error:
            failures.append(f"{candidate.__name__.split('_')[1]}: {' '.join(str(error).split())[:120]}")
        else:
            return split
    raise SplitError(
        f"the frozen part of {type(model).__name__} cannot be cached exactly ({'; '.join(failures)}); "
        "fine-tune it instead"
    )


def pooled_split(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]], pooling: str) -> Split:
    """A cut that keeps one pooled vector of the frozen body's last output instead of what the model's own head reads.

    Raises:
        SplitError: the body returns nothing that can be pooled.
    """
    recorded = _record(model, head, probes[0])
    width = _pool(recorded[-1], probes[0], pooling).shape[1] if recorded else 0
    if not width:
        raise SplitError(
            f"{type(model).__name__} returns nothing that pooling={pooling!r} can pool; use pooling='native'"
        )
    return Split("pooled", sorted(head), pooling=pooling, calls=[Call(recorded[-1].module, "", [])], width=width)


def randomize(model: nn.Module, head: set[str], seed: int = 0) -> None:
    """Give the head's parameters random values with a scale that keeps the logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name in head:
                scale = max(parameter.shape[-1], 1) ** -0.5 if parameter.dim() > 1 else 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def prove(model: nn.Module, split: Split, probes: Sequence[Mapping[str, Tensor]]) -> None:
    """Compare replayed logits with the model's on every probe batch.

    Raises:
        SplitError: they differ by more than 1e-5 of the largest logit (or 1e-5, if that is more).
    """
    if split.kind == "pooled":
        return
    for batch in probes:
        with torch.no_grad():
            expected = model(**batch).logits
        kept = Capture(model, [split])(batch)[0]
        for name, (_, shape) in split.kept().items():
            value = kept[name]
            if isinstance(value, Tensor) and list(value.shape[1:]) != list(shape):
                raise SplitError(f"{name} has another size in each batch, and no mask says which of it is a row's own")
        if split.kind == "linear":
            module = model.get_submodule(split.linear or "")
            with torch.no_grad():
                logits = module(kept["features"])
        else:
            with replaying(model, split) as replay, torch.no_grad():
                logits = replay(kept)
        worst = float((logits - expected).abs().max())
        if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise SplitError(f"replayed logits differ from the model's by {worst:.1e}")


def _record(model: nn.Module, head: set[str], batch: Mapping[str, Tensor]) -> list[Recorded]:
    with Frontier(model, head) as frontier, torch.no_grad():
        model(**batch)
        return frontier.recorded


def _linear_candidate(model: nn.Module, head: set[str], _: Sequence[Mapping[str, Tensor]]) -> Split:
    owners = {_owner(name) for name in head}
    name = owners.pop() if len(owners) == 1 else ""
    module = model.get_submodule(name)
    if not name or not isinstance(module, nn.Linear):
        raise SplitError("the head is not one linear layer")
    split = Split("linear", sorted(head), linear=name, bias=module.bias is not None, width=module.in_features)
    return split


def _reduced_candidate(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Split:
    counts = set()
    for batch in probes:
        used = _positions(_dependence(model, head, batch)[1])
        if used is None:
            raise SplitError("no token dimension to reduce")
        counts.update(used.sum(1).tolist())
    if len(counts) != 1 or not 0 < max(counts) <= MAX_POSITIONS:
        raise SplitError("rows depend on different numbers of tokens")
    return _replay_split(model, head, probes[0], int(counts.pop()))


def _whole_candidate(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Split:
    return _replay_split(model, head, probes[0], None)


def _replay_split(model: nn.Module, head: set[str], batch: Mapping[str, Tensor], positions: int | None) -> Split:
    recorded, gradients = _dependence(model, head, batch)
    if not any(g is not None for call in gradients for g in call):
        raise SplitError("the logits depend on no frozen module")
    tokens = _token_inputs(batch)
    lengths = {batch[name].shape[1] for name in tokens}
    if positions is not None:
        used = _positions(gradients)
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
                raise SplitError(f"an output of {call.module} is not laid out by rows")
            on_tokens = value.dim() >= 2 and value.shape[0] == rows and value.shape[1] in lengths
            shape = [-1 if on_tokens else value.shape[1], *value.shape[2:]] if value.dim() >= 2 else []
            column = f"{call.module}.{index}" if keep else None
            leaves.append(Leaf(column, list(shape), str(value.dtype).removeprefix("torch."), on_tokens))
        calls.append(Call(call.module, pytree.treespec_dumps(call.structure), leaves))
    blanks = {
        name: (list(value.shape[1:]), str(value.dtype).removeprefix("torch."))
        for name, value in batch.items()
        if name not in tokens
    }
    return Split("replay", sorted(head), calls=calls, tokens=tokens, blanks=blanks, positions=positions)


def _token_inputs(batch: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in batch.items() if value.dim() == 2 and not value.is_floating_point()]


def _dependence(
    model: nn.Module, head: set[str], batch: Mapping[str, Tensor]
) -> tuple[list[Recorded], list[list[Tensor | None]]]:
    """Run the model with its frontier recorded, and ask what of it the logits depend on."""
    with Frontier(model, head) as frontier, torch.enable_grad():
        logits = model(**batch).logits
        recorded = frontier.recorded
    return recorded, _gradients(logits, recorded)


def _gradients(logits: Tensor, recorded: list[Recorded]) -> list[list[Tensor | None]]:
    """The logits' gradient with respect to every recorded tensor; None where it is zero or there can be none."""
    floats = [leaf for call in recorded for leaf in call.floats()]
    # A random cotangent, for a plain sum may cancel.
    cotangent = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(0)).to(logits)
    total = (logits * cotangent).sum()
    found = iter(torch.autograd.grad(total, floats, allow_unused=True, retain_graph=True) if floats else ())
    gradients = [
        [next(found) if isinstance(v, Tensor) and v.is_floating_point() else None for v in call.leaves]
        for call in recorded
    ]
    return [[g if g is not None and bool(g.any()) else None for g in call] for call in gradients]


def _positions(gradients: list[list[Tensor | None]]) -> Tensor | None:
    """Which token positions each row's logits depend on: (n, t) bool; None if the kept outputs share no token dimension."""
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


# ── capture: what is kept of a batch ─────────────────────────────────────────────────────────────────────────────────


class Capture:
    """Runs a model on batches and returns what its splits keep, in one forward pass for all of them.

    Args:
        model: the model that the splits were made for.
        splits: the cuts, of one head.
        autocast: compute in this dtype where torch deems it safe; None for float32 throughout.
    """

    def __init__(self, model: nn.Module, splits: Sequence[Split], autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.splits = splits
        self.autocast = autocast
        frozen = list(dict.fromkeys(call.module for split in splits for call in split.calls))
        self.frontier = Frontier(model, set(splits[0].head), frozen)
        self.linear = next((split.linear for split in splits if split.kind == "linear"), None)
        # Only a reduced replay asks, batch by batch, which tokens the logits depend on.
        self.asks = any(split.kind == "replay" and split.positions is not None for split in splits)

    def __call__(self, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What each split keeps of a batch.

        Args:
            batch: keyword arguments of the forward, first dimension n.

        Returns:
            For each split, its columns: a tensor (n, …) each, or for a ragged column a list of n tensors (length, …).

        Raises:
            SplitError: a row depends on other token positions than a split allows.
        """
        device = next(iter(batch.values())).device.type
        with (
            torch.set_grad_enabled(self.asks),
            torch.autocast(device, self.autocast, enabled=self.autocast is not None),
            self.frontier,
            _linear_noted(self.model, self.linear) as noted,
        ):
            logits = self.model(**batch).logits
            recorded = self.frontier.recorded
        gradients = _gradients(logits, recorded) if self.asks else []
        return [self._kept(split, batch, logits, recorded, gradients, noted) for split in self.splits]

    def _kept(
        self,
        split: Split,
        batch: Mapping[str, Tensor],
        logits: Tensor,
        recorded: list[Recorded],
        gradients: list[list[Tensor | None]],
        noted: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Any]:
        if split.kind == "linear":
            return {"features": _mixed(logits, noted)}
        mine = {call.module for call in split.calls}
        chosen = [i for i, call in enumerate(recorded) if call.module in mine]
        calls = [recorded[i] for i in chosen]
        if split.kind == "pooled":
            return {"features": _pool(calls[-1], batch, split.pooling or "")}
        if split.positions is None:
            rows = _real_tokens(split, batch)
            return _collect(split, calls, batch, lambda value: [v[r] for v, r in zip(value, rows, strict=True)])
        used = _positions([gradients[i] for i in chosen])
        if used is None or bool((used.sum(1) != split.positions).any()):
            raise SplitError("a row's logits depend on other tokens than the probe's did; fine-tune this model instead")
        index = used.nonzero()[:, 1].view(len(used), split.positions)
        pick = torch.arange(len(used), device=index.device)[:, None]
        return _collect(split, calls, batch, lambda value: value[pick, index])


def _collect(
    split: Split, recorded: list[Recorded], batch: Mapping[str, Tensor], reduce: Callable[[Tensor], Any]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for call, record in zip(split.calls, recorded, strict=True):
        for leaf, value in zip(call.leaves, record.leaves, strict=True):
            if leaf is not None and leaf.column is not None:
                value = value.detach().to(getattr(torch, leaf.dtype))
                kept[leaf.column] = reduce(value) if leaf.tokens else value
    return kept | {name: reduce(batch[name]) for name in split.tokens}


def _real_tokens(split: Split, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """For each row the positions of its own tokens, padding left out."""
    if "attention_mask" in batch:
        return [mask.nonzero()[:, 0] for mask in batch["attention_mask"]]
    first = batch[split.tokens[0]] if split.tokens else None
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


def _mixed(logits: Tensor, noted: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The vectors (n, d) with ``logits = features @ weight.T + bias``: the Linear's input, mixed over tokens.

    The mixing weights are the gradient of the logits with respect to the Linear's output: one-hot where a model gathers
    its last token, 1/t where it averages.
    """
    if len(noted) != 1:
        raise SplitError("the head runs more than once")
    features, output = noted[0]
    if output.dim() == 2:
        return features.float()
    mixing = torch.autograd.grad(logits.sum(), output, retain_graph=True)[0]
    if not torch.equal(mixing, mixing[..., :1].expand_as(mixing)):
        raise SplitError("the logits mix the classes of the head's output")
    return torch.einsum("nt,ntd->nd", mixing[..., 0].float(), features.float())


def _pool(record: Recorded, batch: Mapping[str, Tensor], pooling: str) -> Tensor:
    """Pool the first output of the frozen body, (n, t, d) or (n, d, h, w), to (n, d)."""
    value = next((leaf.detach() for leaf in record.floats() if leaf.dim() in (3, 4)), None)
    if value is None or (value.dim() == 4 and pooling == "cls"):
        return torch.empty(0, 0)
    if value.dim() == 4:
        return value.mean((2, 3))
    if pooling == "cls":
        return value[:, 0]
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != value.shape[:2]:
        return value.mean(1)
    weights = mask.to(value)[..., None]
    return (value * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


# ── replay: the forward on what was kept ─────────────────────────────────────────────────────────────────────────────


class Replay:
    """A model whose frozen modules answer from kept columns; made by `replaying`."""

    def __init__(self, model: nn.Module, split: Split, frontier: Frontier) -> None:
        self.model = model
        self.split = split
        self.frontier = frontier
        self.structures = [pytree.treespec_loads(call.structure) for call in split.calls]

    def __call__(self, kept: Mapping[str, Any], parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (n, C) of a batch of kept columns; ``parameters`` stand in for the head's own, by name."""
        kept, rows, length = self._padded(kept)
        device = next(iter(kept.values())).device
        inputs = {name: kept[name] for name in self.split.tokens}
        for name, (shape, dtype) in self.split.blanks.items():
            inputs[name] = torch.zeros((), dtype=getattr(torch, dtype), device=device).expand(rows, *shape)
        self.frontier.answers = lambda index: self._answer(index, kept, rows, length)
        if parameters is None:
            return self.model(**inputs).logits
        return torch.func.functional_call(self.model, dict(parameters), (), inputs).logits

    def _padded(self, kept: Mapping[str, Any]) -> tuple[dict[str, Tensor], int, int]:
        """Ragged columns padded on the right with zeros; the number of rows and of tokens."""
        columns = {
            name: nn.utils.rnn.pad_sequence(list(value), batch_first=True) if isinstance(value, list) else value
            for name, value in kept.items()
        }
        rows = len(next(iter(columns.values())))
        if self.split.tokens:
            return columns, rows, columns[self.split.tokens[0]].shape[1]
        return columns, rows, self.split.positions or 0

    def _answer(self, index: int, kept: Mapping[str, Tensor], rows: int, length: int) -> Any:
        leaves: list[Any] = []
        for leaf in self.split.calls[index].leaves:
            if leaf is None:
                leaves.append(None)
            elif leaf.column is not None:
                leaves.append(kept[leaf.column])
            else:
                device = next(iter(kept.values())).device
                zero = torch.zeros((), dtype=getattr(torch, leaf.dtype), device=device)
                leaves.append(zero.expand(rows, *(length if size == -1 else size for size in leaf.shape)))
        return pytree.tree_unflatten(leaves, self.structures[index])


@contextmanager
def replaying(model: nn.Module, split: Split) -> Iterator[Replay]:
    """Enter a model's replay; its frozen modules need no weights (they may be on the meta device)."""
    frozen = list(dict.fromkeys(call.module for call in split.calls))
    with Frontier(model, set(split.head), frozen) as frontier:
        yield Replay(model, split, frontier)
