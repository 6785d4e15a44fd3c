"""Logits of a trained head on rows whose features are stored, so that evaluating a run computes nothing anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hftl.backbones.bare import HEAD
from hftl.backbones.cut.replay import replaying
from hftl.backbones.loading import for_words, load_backbone
from hftl.backbones.sentence import SentenceHead
from hftl.data import Files, Texts
from hftl.errors import HftlError
from hftl.export.loaded import LoadedModel
from hftl.export.onnx import OnnxNetwork
from hftl.frozen.features import gathered, joined_id, known_rows, line_columns
from hftl.frozen.view import Content, View, open_space, side_by_side
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.store.space import MissingRowsError, Space
from hftl.store.store import FeatureStore
from hftl.store.values import by_row

REPLAYED_ROWS = 256


def stored_logits(model: LoadedModel, inputs: Files | Texts, store: FeatureStore) -> tuple[np.ndarray, Tensor]:
    """Logits of the rows whose features the store has.

    Args:
        model: a run's model whose head alone was trained; of any other nothing is stored.
        inputs: the rows.
        store: where features are kept.

    Returns:
        The rows' numbers, int64 (m,), and their logits (m, C), or (words, C), float32 on the CPU; none where the run's
        own features are not there any more.
    """
    nothing = np.zeros(0, dtype=np.int64), torch.zeros(0, len(model.label_names))
    spaces = _spaces_of(model, store)
    if not spaces:
        return nothing
    # Whoever asks the model for rows that cannot be read learns why.
    digests, known = known_rows(store, spaces, inputs)
    rows = np.flatnonzero(known)
    if not len(rows):
        return nothing
    try:
        content = side_by_side([Content.of(space) for space in spaces])
        return rows, _head_logits(model, content, gathered(spaces, digests[rows]))
    except MissingRowsError:
        # A shard proved damaged and was set aside: the model computes these rows.
        return nothing


def _spaces_of(model: LoadedModel, store: FeatureStore) -> list[Space]:
    """The spaces that the run's head was trained on; none where there are none, or the backbone is another by now."""
    if model.run is None or model.record is None or model.record.method["name"] != "head":
        return []
    if isinstance(model.network, OnnxNetwork):
        # What it answers is asked for, not what the head that it was made of does.
        return []
    record, method = model.record, model.record.method
    try:
        spec = find(record.backbone_reference)
        options = BackboneOptions(record.recipe.get("max_length"), offline=True)
        pooling, precision = method["pooling"], method["mixed_precision"]
        backbone = load_backbone(
            spec, options, record.recipe.get("depth"), pooling, precision=precision, quantize=method.get("quantize")
        )
        if model.task.of_words:
            backbone = for_words(backbone)
        view = View.of(backbone, pooling, precision, method.get("storage", "float32"))
        spaces = [open_space(store, backbone, spec.origin, part) for part in view.parts]
    except HftlError:
        return []
    same = joined_id(spaces) == model.run.metrics().features.get("space")
    return spaces if same and all(space.info is not None for space in spaces) else []


def _head_logits(model: LoadedModel, content: Content, columns: Mapping[str, Any]) -> Tensor:
    """The head on stored columns of m rows: (m, C) float32 on the CPU."""
    cut, network = content.cut, model.network
    columns = line_columns(columns, cut)
    with torch.inference_mode():
        if cut.kind != "replay":
            head = network.layers if isinstance(network, SentenceHead) else network.get_submodule(cut.linear or HEAD)
            logits: Tensor = head(columns["features"].to(model.device))
            return logits.float().cpu()
        kept = {name: by_row(columns[name]) for name in cut.kept()}
        rows = len(next(iter(kept.values())))
        with replaying(network, cut) as replay:
            blocks = [
                replay({name: _block(value, start, model.device) for name, value in kept.items()})
                for start in range(0, rows, REPLAYED_ROWS)
            ]
    return torch.cat(blocks).float().cpu()


def _block(value: Any, start: int, device: torch.device) -> Any:
    part = value[start : start + REPLAYED_ROWS]
    return [row.to(device) for row in part] if isinstance(part, list) else part.to(device)
