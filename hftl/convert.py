"""`to_onnx`: a run's model as an ONNX folder, compared with it before it is called done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hftl.backbones.files import ONNX, is_onnx_folder
from hftl.backbones.protocol import Backbone
from hftl.backbones.quantized import is_quantized
from hftl.criterion import Criterion
from hftl.data import Data, Split, Texts
from hftl.errors import BackboneError, BadRowError, DataError, HftlError, UserError
from hftl.export.card import write_card
from hftl.export.loaded import LoadedModel
from hftl.export.onnx import ONNX_FOLDERS, OnnxNetwork, check_libraries, quantize, write_facts, write_onnx
from hftl.frozen.recipe import data_of
from hftl.hub.client import staying_offline
from hftl.intervals import Difference, difference, resamples
from hftl.metrics import evaluate_predictions
from hftl.progress import Progress
from hftl.runs.again import named_recipe
from hftl.runs.console import quiet_libraries
from hftl.runs.folder import RunFolder
from hftl.scored import answered_scores

# How far logits may be apart, as a share of the largest: float32 in another order of summation.
TOLERANCE = 1e-4
BATCH_ROWS = 16
CALIBRATION_ROWS = 128


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX folder, and how it compares with the model that it was made of.

    Attributes:
        folder: with ``model.onnx``, ``config.json``, the preprocessing files and a card.
        int8: whether weights are stored in 8 bits.
        rows: test rows that were compared.
        largest_difference: of a logit.
        metric: the name of the task's metric.
        before: the model's metric on these rows.
        after: the ONNX file's.
        change: ``after - before`` with its 95 % interval over these rows.
        bytes: size of ``model.onnx`` and what stands beside it.
        bytes_before: size of the model's own weights.
    """

    folder: Path
    int8: bool
    rows: int
    largest_difference: float
    metric: str
    before: float
    after: float
    change: Difference
    bytes: int
    bytes_before: int

    def as_json(self) -> dict[str, Any]:
        """Plain values by field."""
        return {**asdict(self), "folder": str(self.folder)}


def to_onnx(
    run: str | Path,
    *,
    int8: bool = False,
    out: str | Path | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> OnnxModel:
    """Write a run's model as ONNX and compare it with the model on the run's test rows.

    Args:
        run: a finished run's folder.
        int8: store weights in 8 bits. Ranges of activations are found as texts run, and on 128 training rows for
            pictures and sounds.
        out: another folder to write to than ``onnx`` (or ``onnx-int8``) in the run's.
        offline: use only what is on this machine.
        quiet: print nothing but errors.

    Returns:
        Where it is and how it compares.

    Raises:
        UserError: there is no such run, its data are not there any more, or a library of ``hftl[onnx]`` is missing.
        BackboneError: the model cannot be written as ONNX.
        HftlError: the file does not compute what the model does.
    """
    check_libraries()
    with quiet_libraries(), staying_offline(offline):
        source = RunFolder.open(Path(run).expanduser())
        folder = Path(out).expanduser() if out else source.path / ONNX_FOLDERS[int8]
        _check_target(folder)
        model = LoadedModel.load(source.path, offline=offline).on_cpu()
        if is_quantized(model.network):
            raise BackboneError(
                f"{source.path} has weights that bitsandbytes reads, which ONNX has no place for: run it again without "
                "quantize"
            )
        # Weights in 16 bits are written, and compared, in float32.
        model.network.float()
        data = data_of_run(source, model.backbone)
        # Written beside, so that a folder of that name is always a whole and compared one.
        draft = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            # As its files have it: the model that is asked multiplies by operations that only torch knows.
            plain, _ = model.backbone.load_trained()
            write_onnx(plain.float(), model.backbone.probes(), draft / ONNX)
            if int8:
                _store_in_8_bits(draft, _calibration(model.backbone, data))
            model.network.config.save_pretrained(draft)
            model.backbone.save_processor(draft)
            made, values = _side_by_side(model, draft, data.test, source, int8=int8, quiet=quiet)
            made = replace(made, folder=folder)
            write_facts(draft, made.as_json())
            # The card tells of this file, not of what it was made of.
            write_card(draft, source.record(), source.metrics().model_copy(update={"eval": values}), "onnx")
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return made


# The steps of an export, in the order in which they are taken.


def _check_target(folder: Path) -> None:
    """Only what an earlier export wrote is replaced."""
    if folder.exists() and not is_onnx_folder(folder):
        raise UserError(f"{folder} exists and is no ONNX folder; give another with --out")


def data_of_run(run: RunFolder, backbone: Backbone) -> Data:
    """The rows that the run was made of.

    Raises:
        DataError: they are not there any more, or are others.
    """
    crossed = run.metrics().cross_validation
    if crossed and crossed["in_place_of_a_test_split"]:
        raise UserError(
            f"{run.path} was trained on all rows (--cv), so that none is left to compare an ONNX file on: run the "
            "recipe without --cv"
        )
    recipe, record = named_recipe(str(run.path))(), run.record()
    if not isinstance(recipe.data, str) or recipe.data.startswith("<"):
        raise DataError(f"{run.path} was made of data in memory, so that nothing can be compared; run it on a file")
    data = data_of(recipe, backbone)
    if data.identity["labels_digest"] != record.data.identity.get("labels_digest"):
        raise DataError(f"{recipe.data} holds other rows than when {run.path} was made; run it again")
    return data


def _calibration(backbone: Backbone, data: Data) -> list[dict[str, Tensor]]:
    """Batches of training rows, spread evenly, whose activations are to be representative; none for texts."""
    if backbone.wants == "text":
        return []
    inputs = data.train.inputs
    chosen = np.linspace(0, len(inputs) - 1, min(CALIBRATION_ROWS, len(inputs))).astype(int).tolist()
    batches = []
    for start in range(0, len(chosen), BATCH_ROWS):
        rows = chosen[start : start + BATCH_ROWS]
        batches.append(backbone.collate(backbone.encode([inputs[i] for i in rows], [inputs.name(i) for i in rows])))
    return batches


def _store_in_8_bits(folder: Path, calibration: Sequence[dict[str, Tensor]]) -> None:
    whole = folder / f"float32-{ONNX}"
    (folder / ONNX).rename(whole)
    quantize(whole, folder / ONNX, calibration)
    whole.unlink()


def _side_by_side(
    model: LoadedModel, folder: Path, test: Split, run: RunFolder, *, int8: bool, quiet: bool
) -> tuple[OnnxModel, dict[str, Any]]:
    """The model and the file side by side on the test rows, and what the file's predictions are worth.

    Raises:
        HftlError: in float32 they do not agree.
    """
    network = OnnxNetwork(folder)
    rows, logits, found = _both(model, replace(model, network=network), test, quiet)
    apart = float((logits - found).abs().max())
    allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
    if not int8 and not apart <= allowed:
        raise HftlError(
            f"the ONNX file does not give the model's logits: they are up to {apart:.2g} apart, of {allowed:.2g} that "
            "rounding may do; it was removed: please report this with the backbone's name"
        )
    task, labels = model.task, test.labels[rows]
    once = np.ones((1, len(rows)))
    criterion = run.record().criterion
    # A function of the recipe is not at hand.
    criterion = criterion if criterion.is_own else Criterion.of_task(task)
    measured = partial(criterion.at, labels=labels, thresholds=model.thresholds, label_names=model.label_names)
    before, after = (float(measured(each.numpy(), counts=once)[0]) for each in (logits, found))
    draws = np.concatenate(
        [
            measured(found.numpy(), counts=times) - measured(logits.numpy(), counts=times)
            for times in resamples(len(rows))
        ]
    )
    # A sample may leave the metric undefined; it says nothing.
    change = difference(after - before, np.where(np.isfinite(draws), draws, after - before), len(rows))
    files = (*folder.glob(f"{ONNX}*"),)
    weights = (*run.model.rglob("*.safetensors"),)
    values = evaluate_predictions(task, found.numpy(), labels, model.label_names, model.thresholds)
    if model.abstain_below is not None:
        answered = answered_scores(task.scores(found).numpy(), labels, model.abstain_below)
        values |= {name: each and each.value for name, each in answered.items()}
    made = OnnxModel(
        folder=folder,
        int8=int8,
        rows=len(rows),
        largest_difference=apart,
        metric=criterion.name,
        before=before,
        after=after,
        change=change,
        bytes=sum(file.stat().st_size for file in files),
        bytes_before=sum(file.stat().st_size for file in weights),
    )
    return made, values


def _both(model: LoadedModel, other: LoadedModel, split: Split, quiet: bool) -> tuple[list[int], Tensor, Tensor]:
    """Logits (m, C), or (words, C), of two models of the m rows of a split that can be decoded, and which these are."""
    inputs = split.inputs
    order = np.argsort(inputs.lengths(), kind="stable") if isinstance(inputs, Texts) else np.arange(len(split))
    rows: list[int] = []
    pairs = []
    with Progress("compare", len(split), quiet=quiet) as progress:
        for start in range(0, len(split), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS].tolist()
            encoded = []
            for i in batch:
                # Rows that the run left out, if it was told to skip them, are left out here.
                with suppress(BadRowError):
                    encoded += model.backbone.encode([inputs[i]], [inputs.name(i)])
                    rows.append(i)
            if encoded:
                pairs.append((model.logits(encoded), other.logits(encoded)))
            progress.advance(len(batch))
    if not rows:
        raise DataError("no test row can be read, so that nothing can be compared")
    return rows, torch.cat([one for one, _ in pairs]), torch.cat([two for _, two in pairs])
