"""The start of fine-tuning is measured, may be what is kept, and is named where the result is worse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune import small
from runs import Cli, write_images
from torch import nn
from transformers import AutoModelForImageClassification

from hftl.backbones.protocol import Target
from hftl.backbones.vision import ImageBackbone
from hftl.criterion import Criterion
from hftl.data import Data
from hftl.export.trained import Trained
from hftl.finetune.train import build, finetune, start_at_mean
from hftl.methods import FineTune, Full, LoRA
from hftl.runs.judgement import judgements
from hftl.runs.record import Metrics
from hftl.tasks import Task

# A learning rate that no network survives.
DESTROYED: dict[str, Any] = {"epochs": 2, "lr": 5.0, "batch_size": 8, "clip": None}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ImageBackbone:
    return small.image_backbone(tmp_path_factory.mktemp("vit"))


def train(method: FineTune, backbone: ImageBackbone, data: Data, folder: Path, **options: Any) -> Trained:
    target = Target(backbone, backbone.config(data.task, data.label_names))
    return finetune(method, target, data, seed=0, folder=folder, **{"start": None} | options)


def logits_of_start(backbone: ImageBackbone, data: Data, start: dict[str, torch.Tensor]) -> torch.Tensor:
    model, _ = backbone.build(backbone.config(data.task, data.label_names))
    model.load_state_dict(start, strict=False)
    rows = backbone.encode([data.test.inputs[i] for i in range(len(data.test))], ["row"] * len(data.test))
    with torch.no_grad():
        return model(**backbone.collate(rows)).logits


def test_a_start_that_training_destroys_is_what_is_kept_where_something_chooses(
    backbone: ImageBackbone, tmp_path: Path
) -> None:
    data = small.picture_data(26, 9, 9)
    learned = train(Full(epochs=6, lr=3e-3, batch_size=8), backbone, data, tmp_path / "learned")
    learned.export(tmp_path / "model")
    good = ImageBackbone(replace(backbone.source, folder=tmp_path / "model"))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    start = {name: value for name, value in model.state_dict().items() if name.startswith("classifier")}

    trained = train(Full(**DESTROYED), good, data, tmp_path / "destroyed", start=start)

    assert trained.report["kept_epoch"] == 0
    assert [epoch["epoch"] for epoch in trained.report["epochs"]] == [0, 1, 2]
    assert trained.report["epochs"][0]["accuracy"] > trained.report["epochs"][-1]["accuracy"]
    torch.testing.assert_close(trained.logits, logits_of_start(good, data, start), rtol=1e-4, atol=1e-5)
    metrics = Metrics(eval={"accuracy": 1.0}, features={}, finetune=trained.report)
    before, *after = [epoch["accuracy"] for epoch in trained.report["epochs"]]
    assert judgements(metrics, Criterion.of_task(data.task)) == [
        f"start     kept, because no epoch was better on the validation split: accuracy {before:.4f}, then "
        f"{max(after):.4f} at best; lower --lr, or use --method head"
    ]


def test_a_result_worse_than_its_start_is_said_where_nothing_may_choose(
    cli: Cli, backbone: ImageBackbone, tmp_path: Path
) -> None:
    write_images(tmp_path / "pictures" / "train", 8)
    write_images(tmp_path / "pictures" / "test", 4, seed=1)

    said = cli.ok("run", _recipe(tmp_path, backbone), "--out", tmp_path / "run")

    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["finetune"]
    assert report["start"] == report["epochs"][0] | {"better_in": ["accuracy", "log_loss"]}
    assert report["kept_epoch"] == 2
    (line,) = [line for line in said.splitlines() if line.startswith("start     better than the result")]
    assert f"accuracy from {report['epochs'][0]['accuracy']:.4f} to {report['epochs'][2]['accuracy']:.4f}" in line
    assert line.endswith("; lower --lr, or use --method head")
    before, after = (report["epochs"][k]["accuracy"] for k in (0, 2))
    assert said.splitlines()[-1] == (
        f"epochs    start → epoch 2 of 2: accuracy {before:.4f} → {after:.4f} on the test split: worse"
    )
    # What costs nothing on the features that the head was solved on.
    assert set(report["baselines"]) == {"majority", "prototype", "knn"}
    (line,) = [line for line in said.splitlines() if line.startswith("below     accuracy")]
    assert line.endswith(f" gives at no cost: {max(report['baselines'].values()):.4f}")


def _recipe(folder: Path, backbone: ImageBackbone) -> Path:
    file = folder / "destroyed.py"
    file.write_text(
        "from hftl import Full, Recipe, recipe\n\n\n@recipe\ndef destroyed() -> Recipe:\n"
        f"    return Recipe(backbone={str(backbone.source.folder)!r}, data={str(folder / 'pictures')!r},\n"
        f"                  method=Full(**{DESTROYED!r}))\n"
    )
    return file


def test_a_head_below_its_neighbours_says_so() -> None:
    head = {"baselines": {"majority": 0.1, "prototype": 0.8, "knn": 0.838}}
    below = Metrics(eval={"accuracy": 0.821}, features={}, head=head)
    above = Metrics(eval={"accuracy": 0.838}, features={}, head=head)

    assert judgements(below, Criterion.of_task(Task.SINGLE_LABEL)) == [
        "below     accuracy 0.8210 is less than the nearest neighbours among the same features gives at no cost: 0.8380"
    ]
    assert judgements(above, Criterion.of_task(Task.SINGLE_LABEL)) == []


def test_a_regression_below_the_mean_says_so() -> None:
    assert judgements(Metrics(eval={"r2": -17956.0}, features={}, head={}), Criterion.of_task(Task.REGRESSION)) == [
        "below     r2 -17956.0000 is less than the mean of the targets gives at no cost: 0"
    ]
    assert judgements(Metrics(eval={"r2": 0.14}, features={}, head={}), Criterion.of_task(Task.REGRESSION)) == []


def targets(rows: int, seed: int) -> np.ndarray:
    """Two targets far from zero."""
    noise = np.random.default_rng(seed).normal(size=(rows, 2))
    return (np.array([300.0, -40.0]) + noise).astype(np.float32)


@pytest.fixture
def regression() -> Data:
    data = small.picture_data(26, 9)
    return replace(
        data,
        task=Task.REGRESSION,
        label_names=["height", "depth"],
        train=replace(data.train, labels=targets(26, 0)),
        test=replace(data.test, labels=targets(9, 1)),
    )


@pytest.mark.parametrize("method", [Full(), LoRA(r=2)], ids=["full", "lora"])
def test_a_regression_that_is_not_solved_starts_at_the_mean(
    backbone: ImageBackbone, regression: Data, tmp_path: Path, method: FineTune
) -> None:
    trained = train(method.model_copy(update={"epochs": 1, "lr": 1e-4}), backbone, regression, tmp_path)

    start = trained.report["start"]
    variance = float(((regression.test.labels - regression.train.labels.mean(0)) ** 2).mean())
    # The drawn weights add a little to the mean; from zero the error would be some 45,000.
    assert start["mse"] < 10 * variance + 10


def test_a_solved_head_keeps_its_bias(backbone: ImageBackbone, regression: Data) -> None:
    target = Target(backbone, backbone.config(regression.task, regression.label_names))
    solved = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.tensor([1.0, 2.0])}

    built = build(Full(), target, solved, 0, torch.tensor([5.0, 6.0]))

    assert built.model.classifier.bias.tolist() == [1.0, 2.0]


class Scaled(nn.Module):
    """A model that does more with its last linear layer than to return it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 2)
        self.scale = scale
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.classifier(x) * self.scale})


@pytest.mark.parametrize(("scale", "bias"), [(1.0, [7.0, 8.0]), (2.0, [0.0, 0.0])])
def test_only_a_bias_that_shifts_the_logits_is_set_to_the_mean(scale: float, bias: list[float]) -> None:
    model = Scaled(scale)
    head = {"classifier.weight", "classifier.bias"}

    start_at_mean(model, head, torch.tensor([7.0, 8.0]), {"x": torch.ones(4, 3)})

    assert model.classifier.bias.tolist() == bias


def test_a_trained_bias_stays() -> None:
    model = Scaled(1.0)
    nn.init.constant_(model.classifier.bias, 3.0)

    start_at_mean(model, {"classifier.bias"}, torch.tensor([7.0, 8.0]), {"x": torch.ones(4, 3)})

    assert model.classifier.bias.tolist() == [3.0, 3.0]
