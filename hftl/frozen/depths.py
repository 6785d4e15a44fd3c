"""The models that an extraction runs: one as it is, or one for each depth, which share the whole model's pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.bare import PooledClassifier
from hftl.backbones.batching import on_device
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.echo import Echo, prove_echo
from hftl.backbones.cut.frontier import head_buffers
from hftl.backbones.cut.search import prepare_head
from hftl.backbones.depth import Stack, share_tensors
from hftl.backbones.precision import has_halves, keep_head_float32
from hftl.backbones.pretrained import PretrainedBackbone
from hftl.backbones.protocol import Backbone, Target
from hftl.backbones.weights import NameRule, find_rule
from hftl.errors import BackboneError
from hftl.frozen.view import Content, View, proved_content
from hftl.onednn import speed_up

# From a batch to what each view keeps of it: its columns, a tensor (n, …) each, or a list of n tensors.
Keeping = Callable[[Mapping[str, Tensor]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Ready:
    """A model to extract with.

    Attributes:
        model: with its weights, in eval mode.
        head: names of its head's parameters.
        rule: how an export's tensors are named; see `hftl.backbones.weights.find_rule`.
    """

    model: nn.Module
    head: set[str]
    rule: NameRule | None


class Models:
    """What answers the views of an extraction.

    Args:
        target: the pretrained network; its weights are read now.
        views: what is kept of its pass; where they are of several depths, one pass of the whole model answers all.
        new: whether a space is new, so that it has to be found out how an export's tensors are named.

    Raises:
        BackboneError: the weights cannot be read, or there is no such depth.
        CutError: a depth cannot be read from the whole model's pass.
    """

    def __init__(self, target: Target, views: Iterable[View], *, new: bool) -> None:
        self.probes = target.backbone.probes()
        model, head = target.build()
        speed_up(model)
        trained = head.union(head_buffers(model, head))
        self.whole = Ready(model, head, export_rule(model, trained, target.backbone.weight_files()) if new else None)
        self.built: dict[int | None, Ready] = {None: self.whole}
        depths = sorted({view.depth for view in views if view.depth is not None})
        if depths:
            self.echo = Echo(model, stack_of(target.backbone), self.probes[0])
        for depth in depths:
            self.built[depth] = self._at_depth(target.at_depth(depth), depth)
        # After the last of them was made, so that what one probe gives serves all.
        for depth in depths:
            prepare_head(self.built[depth].model, self.built[depth].head, self.probes)
            prove_echo(self.built[depth].model, depth, self.probes[0])

    def _at_depth(self, short: Target, depth: int) -> Ready:
        """A model whose blocks answer with what the whole one's return."""
        assert isinstance(short.backbone, PretrainedBackbone)
        made = short.backbone.shortened
        model = short.backbone.hollow(short.config, self.whole.model.state_dict())
        head = self.whole.head.intersection(name for name, _ in model.named_parameters())
        for name in head:
            # A head on vectors of another width has no numbers to share.
            if model.get_parameter(name).is_meta:
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, nn.Parameter(torch.zeros(model.get_parameter(name).shape)))
        if has_halves(model):
            keep_head_float32(model, head)
        speed_up(model)
        self.echo.answers_for(model, depth, stage=bool(made and made.lost))
        rule = self.whole.rule
        if rule is not None:
            files = short.backbone.weight_files()
            rule = None if made and made.norm else NameRule(rule.add, [name for name in rule.drop if name in files])
        return Ready(model, head, rule)

    def content(self, view: View, device: torch.device) -> Content:
        """What a new space of a view is to record; leaves the head with random values.

        Args:
            view: what is kept.
            device: where the model will run.

        Raises:
            CutError: no cut is exact, or a row's numbers depend on its batch mates.
        """
        built, probes = self.built[view.depth], self.probes
        if view.device is not None:
            built.model.to(device)
            probes = [on_device(probe, device) for probe in probes]
        return proved_content(built.model, built.head, view, built.rule, probes)

    def captured(self, contents: Mapping[View, Content], device: torch.device) -> Keeping:
        """What keeps of a batch what each view asks for, in their order, with all models on a device."""
        self.whole.model.to(device)
        captures: dict[int | None, Capture] = {}
        for depth in dict.fromkeys(view.depth for view in contents):
            built = self.built[depth]
            if depth is not None:
                # Where the whole one's tensors were copied to a device, they are still shared.
                share_tensors(built.model, self.whole.model.state_dict())
                self.echo.most = 1
            cuts = [content.cut for view, content in contents.items() if view.depth == depth]
            # Weights in 16 bits are computed with as they are.
            autocast = None if has_halves(built.model) else next(iter(contents)).autocast
            captures[depth] = Capture(built.model.to(device), cuts, autocast)

        def kept(batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
            columns = {depth: iter(capture(batch)) for depth, capture in captures.items()}
            return [next(columns[view.depth]) for view in contents]

        return kept


def export_rule(model: nn.Module, trained: set[str], files: Mapping[str, Path]) -> NameRule | None:
    """How an export's tensors are named; of a base model that hftl gave a head, only the base model's."""
    if isinstance(model, PooledClassifier):
        return find_rule(model.body, set(), files)
    return find_rule(model, trained, files)


def stack_of(backbone: Backbone) -> Stack:
    """The blocks of a backbone that is read at several depths.

    Raises:
        BackboneError: it has none, or several lists of them, or its class is not one of hftl's.
    """
    if not isinstance(backbone, PretrainedBackbone):
        kind = type(backbone).__name__
        raise BackboneError(f"{backbone.name} is a {kind}, whose depths cannot be read in one pass: choose another")
    return backbone.stack
