"""Run folders of made-up predictions, written by hftl's own writers; and texts that would like to be obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftl.metrics import evaluate_predictions
from hftl.recipes import Recipe
from hftl.runs.folder import RunFolder
from hftl.runs.record import BackboneRecord, DataRecord, Metrics, RunRecord
from hftl.tasks import Task

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1",
    "javascript:document.title='owned'",
    "<a href=\"javascript:document.title='owned'\">x</a>",
    "<iframe src='https://example.com'></iframe>",
    "<style>body{display:none}</style>",
    "</style><style>body{display:none}</style>",
    "</title><script>document.title='owned'</script>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "<base href='https://example.com/'>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "<form action=https://example.com><button>x",
    "<!-- unclosed",
    "]]><svg/onload=document.title=1>",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}",
    "&lt;script&gt;",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;https://example.com\x1b\\link\x1b]8;;\x1b\\",
    "[bold red]markup[/]",
    "\u202eevil.txt",
    "zero\u200bwidth\u2066x\u2069",
    "tab\tnew\nline\rback",
    "=cmd|' /C calc'!A1",
    "../../etc/passwd",
    "x" * 600,
    "nul\x00byte",
    "emoji 👩‍👩‍👧 שלום",
]


def write_run(
    path: Path,
    *,
    labels: np.ndarray,
    scores: np.ndarray,
    task: Task = Task.SINGLE_LABEL,
    names: Sequence[str] = ("cat", "dog"),
    rows: Sequence[str] | None = None,
    seconds: float = 2.0,
    recipe: Recipe | None = None,
    **changes: Any,
) -> Path:
    """A finished run that predicted ``scores`` for its test rows.

    Args:
        path: its folder.
        labels: as `hftl.data.Split` has them.
        scores: (n, C) probabilities, or targets.
        task: what the labels are.
        names: of the C outputs.
        rows: names of the rows; numbered if not given.
        seconds: that it took.
        recipe: what it did.
        changes: other fields of its `RunRecord`.
    """
    folder = RunFolder.create(path)
    asked = recipe or Recipe(backbone="hftl/glyph-vit-tiny", data="photos")
    fields = {name: getattr(asked, name) for name in Recipe.model_fields if name != "method"}
    record = RunRecord(
        name="made",
        recipe={**fields, "method": asked.method.model_dump()},
        backbone=BackboneRecord(
            name=asked.backbone, commit=None, pipeline_tag="x", license={}, identity={"model": None}
        ),
        data=DataRecord(identity={}, task=task, label_names=list(names), rows={"test": len(labels)}, notes=[]),
        versions={"hftl": "0.1.0", "torch": "2.9"},
    )
    folder.write_record(record.model_copy(update=changes))
    scores = np.asarray(scores, dtype=np.float32)
    logs = np.log(scores.clip(1e-30))
    logits = task.case(single_label=logs, multi_label=_logit(scores), regression=scores, token_labels=logs)
    named = [f"row {i}" for i in range(len(labels))] if rows is None else rows
    folder.write_predictions(task, list(map(str, named)), labels, scores, list(names))
    values = evaluate_predictions(task, logits, labels, list(names))
    folder.write_metrics(
        Metrics(
            eval=values,
            features={"rows": 90, "computed": 40, "reused": 50},
            head={"parameters": 1234},
            seconds={"extract": seconds / 2, "train": seconds / 4, "total": seconds},
        )
    )
    folder.release()
    return path


def _logit(scores: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores).double().logit(eps=1e-6).numpy()


def classifier(rows: int, classes: int, right: float, seed: int, *, of: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), the same for one ``of``, and probabilities (n, C) that are right in about so many rows."""
    labels = np.random.default_rng(of).integers(0, classes, rows)
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(rows) < right, labels, rng.integers(0, classes, rows))
    logits = rng.normal(size=(rows, classes)) + 4 * np.eye(classes)[said]
    scores = np.exp(logits)
    return labels, (scores / scores.sum(1, keepdims=True)).astype(np.float32)
