"""Models of several depths that share one forward of the whole model.

The whole model runs once on a batch, and what its blocks return is noted, as is what ran before the first of them. A
model of fewer blocks then runs its own forward on the same batch, in which those modules answer with what was noted:
only what stands behind its last block is computed. So whatever its class does around the blocks is right by
construction, and it is proved all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.blocks import block_lists
from hftl.backbones.depth import Stack
from hftl.errors import CutError
from hftl.wording import one_line

CLOSE = 1e-5
# Batches whose outputs are remembered while cuts are found, which ask each model the same few times over.
MOST_PROBES = 64


class Echo:
    """The whole model, and the outputs of its modules on the last batches.

    Args:
        whole: the model of all blocks, in eval mode.
        stack: its blocks.
        probe: a batch, on which is seen what runs before the blocks.
    """

    def __init__(self, whole: nn.Module, stack: Stack, probe: Mapping[str, Tensor]) -> None:
        self.whole = whole
        self.stack = stack
        self.before = _run_before(whole, f"{stack.name}.0", probe)
        self.most = MOST_PROBES
        self._noted: dict[str, None] = {}
        self._batch: Mapping[str, Tensor] = {}
        self._runs: list[tuple[Any, Mapping[str, Tensor], dict[str, Any]]] = []

    def answers_for(self, short: nn.Module, depth: int, *, stage: bool) -> None:
        """Let a model of fewer blocks answer with what this one's blocks return.

        Args:
            short: the model; changed in place.
            depth: how many blocks it has.
            stage: whether its last block returns something else than the whole model's, because it lacks what leads to
                the next stage: that one runs, and the blocks in it answer.
        """
        blocks = [f"{self.stack.name}.{number}" for number in range(depth)]
        if stage:
            last = blocks.pop()
            inside = block_lists(short.get_submodule(last), ())
            blocks += [f"{last}.{name}.{number}" for name, count in inside.items() for number in range(count)]
        for name in (*self.before, *blocks):
            self._noted[name] = None
            short.get_submodule(name).__dict__["forward"] = self._answer(name)
        short.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._runs.clear()

    def _begin(self, _module: nn.Module, _args: Any, batch: dict[str, Any]) -> None:
        self._batch = batch

    def _answer(self, name: str) -> Callable[..., Any]:
        def forward(*_: Any, **__: Any) -> Any:
            return self._outputs()[name]

        return forward

    def _outputs(self) -> dict[str, Any]:
        """What the whole model's modules return on the batch that a short model is asked about."""
        # Parts of one tensor are tensors anew each time they are taken, and lie in the same place.
        where = [(name, value.data_ptr(), value.shape, value.stride()) for name, value in self._batch.items()]
        device = next(iter(self._batch.values())).device.type
        key = where, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        for known, _, outputs in self._runs:
            if known == key:
                return outputs
        # Before the next ones take memory.
        del self._runs[: len(self._runs) - self.most + 1]
        noted: dict[str, Any] = {}
        with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
            for name in self._noted:
                hook = self.whole.get_submodule(name).register_forward_hook(_noting(noted, name))
                hooks.callback(hook.remove)
            self.whole(**self._batch)
        # The batch is kept with it, so that nothing else can come to lie where it lies.
        self._runs.append((key, self._batch, noted))
        return noted


def prove_echo(short: nn.Module, depth: int, batch: Mapping[str, Tensor]) -> None:
    """Compare a model that answers with what was noted with itself, computing every block.

    Args:
        short: a model that `Echo.answers_for` changed, with all of its weights.
        depth: how many blocks it has, for the error.
        batch: keyword arguments of the forward.

    Raises:
        CutError: their logits differ by more than 1e-5 of the largest (or 1e-5, if that is more).
    """
    try:
        with torch.no_grad():
            answered = short(**batch).logits
            answering = [module for module in short.modules() if "forward" in module.__dict__]
            kept = {module: module.__dict__.pop("forward") for module in answering}
            try:
                computed = short(**batch).logits
            finally:
                for module, forward in kept.items():
                    module.__dict__["forward"] = forward
        worst = float((answered - computed).abs().max())
    except Exception as error:  # whatever a forward raises on what another model's modules returned
        raise CutError(f"depth {depth} cannot be read from the whole model's pass: {one_line(error, 160)}") from error
    if not worst <= CLOSE * max(1.0, float(computed.abs().max())):
        raise CutError(f"depth {depth}, read from the whole model's pass, differs from its own by {worst:.1e}")


def _noting(noted: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        noted[name] = output

    return hook


def _run_before(model: nn.Module, first: str, batch: Mapping[str, Tensor]) -> Sequence[str]:
    """The outermost modules with parameters that run before the first block, and only then."""
    done: list[str] = []
    started: list[int] = []

    def returned(name: str) -> Callable[..., None]:
        return lambda *_: done.append(name)

    with ExitStack() as hooks, torch.no_grad():
        block = model.get_submodule(first)
        hooks.callback(block.register_forward_pre_hook(lambda *_: started.append(len(done))).remove)
        for name, module in model.named_modules():
            if next(module.parameters(), None) is not None:
                hooks.callback(module.register_forward_hook(returned(name)).remove)
        model(**batch)
    if not started:
        return []
    before = [name for name in done[: started[0]] if done.count(name) == 1]
    return [name for name in before if not any(name.startswith(f"{outer}.") for outer in before)]
