"""Frozen blocks that run once: what is kept of them, and training from it, which is the training that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from hftl.backbones.bare import BareImageBackbone  # noqa: F401
from hftl.backbones.cut.blocks import Padding, blocks_cut, continued, rows_of_columns
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.search import prepare_head
from hftl.backbones.protocol import Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.errors import CutError
from hftl.tasks import Task


def backbone_of(name: str, folder: Path) -> Any:
    kind = TextBackbone if name in tiny.TEXT else ImageBackbone
    return kind(local_source(tiny.save(name, folder)))


def built(name: str, folder: Path) -> tuple[nn.Module, set[str], list[dict[str, torch.Tensor]]]:
    backbone = backbone_of(name, folder)
    model, head = Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b", "c"])).build()
    prepare_head(model, head, backbone.probes())
    return model, head, backbone.probes()


@pytest.mark.parametrize("name", sorted({*tiny.TEXT, *tiny.IMAGE}))
def test_x(name: str, tmp_path: Path) -> None:
    model, head, probes = built(name, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        cut = blocks_cut(model, head, 1, probes)
    except CutError as error:
        print(name, error)
        return
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    rows = rows_of_columns(Capture(model, [cut])(probes[0])[0])
    batch = Padding.of(probes[0]).collate(rows)
    with torch.no_grad(), continued(model, model, cut):
        print(name, list(batch), torch.equal(model(**batch).logits, model(**probes[0]).logits))
