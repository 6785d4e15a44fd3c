"""A resume with other rows, labels, weights or preprocessing is refused in a person's words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from finetune import small

from hftl.backbones.protocol import Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.data import Data, RowNames, Split, Texts
from hftl.errors import UserError
from hftl.finetune.resume import differences, settings
from hftl.finetune.train import finetune
from hftl.methods import Full
from hftl.tasks import Task

METHOD = Full(epochs=1, lr=3e-3, batch_size=8)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Data]:
    """A backbone's folder, a run's folder with a checkpoint, and its data."""
    root = tmp_path_factory.mktemp("started")
    backbone = small.image_backbone(root / "vit")
    data = small.picture_data(16, 6, 5)
    train(backbone, data, root / "run")
    return root / "vit", root / "run", data


def train(backbone: ImageBackbone, data: Data, folder: Path, **options: Any) -> None:
    target = Target(backbone, backbone.config(data.task, data.label_names))
    finetune(METHOD, target, data, start=None, seed=0, folder=folder, **options)


def flipped(split: Split) -> Split:
    return replace(split, labels=(split.labels + 1) % 3)


def replaced(split: Split) -> Split:
    return replace(split, inputs=small.pictures(len(split), 77)[0])


def shuffled(split: Split) -> Split:
    return split.select(np.random.default_rng(0).permutation(len(split)))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped, "the labels of the {} split are not the same"),
        (replaced, "the files of the {} split are not the same"),
        (shuffled, "the rows of the {} split are in another order"),
        (lambda split: split.select(np.arange(len(split) - 1)), "the {} split had {} rows and has {}"),
    ],
    ids=["labels", "rows", "order", "number"],
)
def test_other_rows_or_labels_of_any_split_are_refused(
    started: tuple[Path, Path, Data], part: str, change: Callable[[Split], Split], words: str
) -> None:
    model, run, data = started
    before = getattr(data, part)
    other = replace(data, **{part: change(before)})
    counts = (part, len(before), len(before) - 1)

    with pytest.raises(UserError) as refused:
        train(ImageBackbone(local_source(model)), other, run, resume=True)

    expected = words.format(*counts)
    assert (
        str(refused.value) == f"cannot resume, because the run began otherwise: {expected}; use the same, or start anew"
    )


def test_other_local_weights_and_another_processor_are_refused(
    started: tuple[Path, Path, Data], tmp_path: Path
) -> None:
    model, run, data = started
    other = shutil.copytree(model, tmp_path / "vit")
    small.image_backbone(tmp_path / "drawn-anew", initializer_range=0.5)
    shutil.copy(tmp_path / "drawn-anew" / "model.safetensors", other / "model.safetensors")
    with pytest.raises(UserError, match="otherwise: the backbone's weights changed; use"):
        train(ImageBackbone(local_source(other)), data, run, resume=True)

    shutil.copy(model / "model.safetensors", other / "model.safetensors")
    processor = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(
        UserError, match=r"the preprocessing's image_mean was \[0.5, 0.5, 0.5\] and is \[0.1, 0.2, 0.3\]"
    ):
        train(ImageBackbone(local_source(other)), data, run, resume=True)


def test_the_same_data_from_elsewhere_go_on(started: tuple[Path, Path, Data], tmp_path: Path) -> None:
    model, run, _ = started
    said: list[str] = []

    # Rows are known by their content, the model by its name and its files'.
    same = ImageBackbone(local_source(shutil.copytree(model, tmp_path / "vit")))
    train(same, small.picture_data(16, 6, 5), shutil.copytree(run, tmp_path / "run"), resume=True, say=said.append)

    assert "resume    from step 2 of 2" in said


def text_settings(folder: Path, texts: list[str], max_length: int | None = None) -> dict[str, Any]:
    backbone = TextBackbone(local_source(folder), max_length)
    rows = Split("train", Texts([(text,) for text in texts], RowNames([("a.csv", 9)])), np.arange(len(texts)) % 2)
    data = Data("texts", Task.SINGLE_LABEL, ["no", "yes"], rows, None, replace(rows, name="test"), [], {})
    return settings(METHOD, backbone, data, 0)


def test_other_texts_and_another_length_are_named_once(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "bert")
    before = text_settings(folder, ["the cat", "a dog", "one"])

    assert differences(before, text_settings(folder, ["the cat", "a dog", "one"])) == ""
    assert differences(before, text_settings(folder, ["the cat", "a dog", "two"])) == (
        "the texts of the train split are not the same, the texts of the test split are not the same"
    )
    assert differences(before, text_settings(folder, ["the cat", "a dog", "one"], 16)) == (
        "the backbone's max_length was 32 and is 16"
    )


def test_a_field_that_came_later_was_what_its_default_is(tmp_path: Path) -> None:
    now = text_settings(tiny.save("bert", tmp_path / "bert"), ["the cat", "a dog"])
    fields = dict(now["method"])
    assert fields.pop("ema") is None
    before = now | {"method": fields}

    assert differences(before, now) == ""
    assert differences(before, now | {"method": fields | {"ema": 0.9}}) == "method.ema was None and is 0.9"


def test_many_differences_are_cut_to_a_line(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "bert")
    before = text_settings(folder, ["the cat", "a dog"])
    now = before | {"seed": 1, "task": "regression", "labels": ["x"], "method": before["method"] | {"lr": 1, "clip": 2}}

    line = differences(before, now)

    assert line.count(" was ") == 4
    assert line.endswith(" and 1 more")


def test_a_checkpoint_that_does_not_record_its_data_is_not_gone_on_with(
    started: tuple[Path, Path, Data], tmp_path: Path
) -> None:
    from hftl.finetune.checkpoint import read_newest, write_checkpoint

    model, run, data = started
    checkpoint, _ = read_newest(run / "checkpoints")
    assert checkpoint is not None
    before = {name: value for name, value in checkpoint.state["made_with"].items() if name != "splits"}
    write_checkpoint(tmp_path / "checkpoints", "step-00000002", checkpoint.state | {"made_with": before}, {})

    with pytest.raises(UserError, match="did not record its data"):
        train(ImageBackbone(local_source(model)), data, tmp_path, resume=True)
