"""Logits of rows that stream by: read and encoded ahead, batched by length, in the rows' order, in bounded memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from hftl.ahead import ahead
from hftl.backbones.protocol import Encoded
from hftl.data.augment import Augmentation
from hftl.decoding import Decoder, decoder_of
from hftl.errors import BackboneError, BadRowError, HftlError, UserError
from hftl.export.loaded import LoadedModel
from hftl.frozen.augmented import view_of_picture
from hftl.frozen.budget import Ramp, ramp_for, remember, within_budget
from hftl.frozen.extract import DECODED_AHEAD, device_name
from hftl.inputs.rows import InputRow
from hftl.store.digests import digest_bytes
from hftl.store.store import cache_root

# Texts are sorted by length in windows: the first small ones answer soon, the later large ones waste little on padding.
FIRST_WINDOW, LARGEST_WINDOW = 64, 4_096


@dataclass
class Scored:
    """Rows that went through the model.

    Attributes:
        rows: in the order in which they came.
        logits: float32 (n, C) on the CPU; zeros where a row is bad. Of sentences (words, C), none where one is bad.
        bad: the rows that could not be read, by position.
        lines: of the logits, for each row.
    """

    rows: list[InputRow]
    logits: Tensor
    bad: dict[int, BadRowError]
    lines: list[int]


@dataclass
class _Window:
    """Rows that are encoded and wait for the model, and what ended the rows after them."""

    rows: list[InputRow]
    encoded: list[Encoded | BadRowError]
    ended: HftlError | None = None


def score_rows(model: LoadedModel, rows: Iterable[InputRow]) -> Iterator[Scored]:
    """Logits of rows, some at a time.

    Args:
        model: who is asked.
        rows: taken from as their answers are asked for, a few windows ahead.

    Raises:
        HftlError: what ``rows`` raised, when all rows before it are answered; or the model gives no numbers.
    """
    forward = _Forward(model)
    of_texts = model.backbone.wants == "text"
    windows = _text_windows(model, rows) if of_texts else _file_windows(model, rows, forward.ramp)
    for window in windows:
        if window.rows:
            yield forward(window)
        if window.ended is not None:
            raise window.ended
    forward.remember()


def scored_by_views(
    model: LoadedModel, rows: Iterable[InputRow], count: int, augmentation: Augmentation
) -> Iterator[Scored]:
    """Logits whose scores are the mean of those of several views of each picture; as `score_rows`.

    Args:
        model: who is asked.
        rows: pictures.
        count: views of each, the first being the picture as it is.
        augmentation: what changes the others.
    """
    waiting: list[tuple[InputRow, Tensor, BadRowError | None]] = []
    views = (view for row in rows for view in _views_of(row, count, augmentation))
    for part in score_rows(model, views):
        errors = (part.bad.get(place) for place in range(len(part.rows)))
        waiting += zip(part.rows, part.logits, errors, strict=True)
        # Batches end anywhere among the views of a row.
        whole = len(waiting) // count
        of_rows = [waiting[row * count : (row + 1) * count] for row in range(whole)]
        waiting = waiting[whole * count :]
        if of_rows:
            yield _one_answer(model, of_rows)


def _one_answer(model: LoadedModel, of_rows: list[list[tuple[InputRow, Tensor, BadRowError | None]]]) -> Scored:
    """The views of each row as one answer; a row with a bad view is bad."""
    by_number = torch.stack([torch.stack([logits for _, logits, _ in views]) for views in of_rows]).transpose(0, 1)
    found = [next((error for _, _, error in views if error), None) for views in of_rows]
    bad = {row: error for row, error in enumerate(found) if error}
    return Scored([views[0][0] for views in of_rows], model.task.averaged(by_number), bad, [1] * len(of_rows))


def _views_of(row: InputRow, count: int, augmentation: Augmentation) -> Iterator[InputRow]:
    """Views of a row, which is read and named once for all of them, by whichever thread comes first."""
    lock = Lock()

    @cache
    def known() -> tuple[bytes, bytes]:
        content: bytes = row.read()
        return content, digest_bytes(content)

    def view(number: int) -> bytes:
        with lock:
            content, digest = known()
        return view_of_picture(content, row.name, digest, number, augmentation)

    return (replace(row, read=partial(view, number)) for number in range(count))


def augmentation_of(model: LoadedModel) -> Augmentation:
    """What changed pictures when a model was trained, which views of pictures to predict repeat.

    Raises:
        UserError: nothing did, or nobody knows.
    """
    reads = model.backbone.modality
    if reads != "image":
        raise UserError(f"views are of pictures, and {model.backbone.name} reads {reads}s: leave views out")
    if model.record is None:
        raise UserError("views repeat what changed pictures in training, which only a run's folder tells: give that")
    told = model.record.method
    changes = Augmentation(bool(told.get("flip")), told.get("crop"), bool(told.get("trivial_augment")))
    if not changes:
        raise UserError(
            "views repeat what changed pictures in training, and nothing did: train with --flip, --crop or "
            "--trivial-augment (a head with --views too), or leave views out"
        )
    return changes


class _Forward:
    """The model on windows of rows, in batches that suit its device."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.by_length = model.backbone.wants == "text"
        self.key = f"predict {model.backbone.name} {device_name(model.device)}"
        self.memory: Path = cache_root() / "batches.json"
        self.ramp = ramp_for(model.device, by_tokens=self.by_length, key=self.key, memory=self.memory)

    def __call__(self, window: _Window) -> Scored:
        nothing = torch.zeros(0 if self.model.task.of_words else 1, len(self.model.label_names))
        parts = [nothing] * len(window.rows)
        bad = {i: row for i, row in enumerate(window.encoded) if isinstance(row, BadRowError)}
        good = [(i, row) for i, row in enumerate(window.encoded) if isinstance(row, Encoded)]
        if self.by_length:
            # Longest first: a batch that does not fit shows at once, not at the end.
            good.sort(key=lambda each: -each[1].cost)
        for batch in within_budget(good, _cost, self.ramp):
            before = time.monotonic()
            self._batch(window, batch, parts, bad)
            self.ramp.saw(sum(map(_cost, batch)), time.monotonic() - before)
        logits = torch.cat(parts) if parts else nothing[:0]
        return Scored(window.rows, logits, bad, [len(part) for part in parts])

    def _batch(
        self, window: _Window, batch: list[tuple[int, Encoded]], parts: list[Tensor], bad: dict[int, BadRowError]
    ) -> None:
        """Run a batch; halve it while the model refuses it, until the row is alone that it refuses."""
        places = [place for place, _ in batch]
        try:
            found = self.model.logits([row for _, row in batch])
        except BackboneError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                self.ramp.too_large(sum(map(_cost, batch)))
                if len(batch) == 1:
                    raise
            elif len(batch) == 1:
                bad[places[0]] = BadRowError(window.rows[places[0]].name, str(error))
                return
        else:
            for place, lines in zip(places, torch.split(found, [row.lines for _, row in batch]), strict=True):
                parts[place] = lines
            return
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        self._batch(window, batch[:half], parts, bad)
        self._batch(window, batch[half:], parts, bad)

    def remember(self) -> None:
        remember(self.ramp, self.key, self.memory)


def _cost(row: tuple[int, Encoded]) -> int:
    return row[1].cost


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text_windows(model: LoadedModel, rows: Iterable[InputRow]) -> Iterator[_Window]:
    """Windows of texts, each tokenised while the model runs on the one before."""

    def encoded(window: _Window) -> _Window:
        window.encoded = _encode_all(model, window.rows)
        return window

    return ahead(encoded, _windows(rows), workers=1, depth=1)


def _windows(rows: Iterable[InputRow]) -> Iterator[_Window]:
    left, size = iter(rows), FIRST_WINDOW
    while True:
        window = _Window([], [])
        try:
            window.rows.extend(itertools.islice(left, size))
        except HftlError as error:
            # A generator that raised is at its end; extend keeps what came before.
            window.ended = error
        if not window.rows and window.ended is None:
            return
        yield window
        if window.ended is not None:
            return
        size = min(4 * size, LARGEST_WINDOW)


def _encode_all(model: LoadedModel, rows: list[InputRow]) -> list[Encoded | BadRowError]:
    """Texts made ready, all in one call unless one of them is bad."""
    result: list[Encoded | BadRowError | None] = [None] * len(rows)
    read: dict[int, Any] = {}
    for i, row in enumerate(rows):
        try:
            read[i] = row.read()
        except BadRowError as error:
            result[i] = error
    try:
        encoded = model.backbone.encode(list(read.values()), [rows[i].name for i in read])
    except BadRowError:
        return [_encode_row(decoder_of(model.backbone), row) for row in rows]
    for i, each in zip(read, encoded, strict=True):
        result[i] = each
    return [each for each in result if each is not None]


def _file_windows(model: LoadedModel, rows: Iterable[InputRow], ramp: Ramp) -> Iterator[_Window]:
    """Batches of files, decoded and preprocessed by threads or processes a bounded number ahead."""

    def encode(row: InputRow | HftlError) -> tuple[InputRow, Encoded | BadRowError] | HftlError:
        return row if isinstance(row, HftlError) else (row, _encode_row(decoder, row))

    window, longest = _Window([], []), 0
    decoder = decoder_of(model.backbone)
    for done in decoder.ahead(encode, _and_what_ended(rows), decoder.threads, DECODED_AHEAD):
        if isinstance(done, HftlError):
            window.ended = done
            break
        row, encoded = done
        cost = encoded.cost if isinstance(encoded, Encoded) else 0
        longest = max(longest, cost)
        if window.rows and longest * (len(window.rows) + 1) > ramp.budget:
            yield window
            window, longest = _Window([], []), cost
        window.rows.append(row)
        window.encoded.append(encoded)
    yield window


def _and_what_ended(rows: Iterable[InputRow]) -> Iterator[InputRow | HftlError]:
    """The rows, and last the error that ended them: what is read ahead must not cost the rows before it."""
    try:
        yield from rows
    except HftlError as error:
        yield error


def _encode_row(decoder: Decoder, row: InputRow) -> Encoded | BadRowError:
    try:
        return decoder([row.read()], [row.name])[0]
    except BadRowError as error:
        return error
