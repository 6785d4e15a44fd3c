"""Augmented views of pictures: what they are, that they are kept and shared, and a head that is solved on them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv_files
import pytest
import tiny
import torch
import transformers
from accelerate import Accelerator
from finetune import small
from PIL import Image
from runs import Cli, metrics, predictions, stored_shards, write_images, write_texts
from sklearn.linear_model import LogisticRegression
from test_frozen_blocks import QUICK, Ran, assert_the_same, both, target_of

import hftl
from hftl.data.augment import Augmentation
from hftl.finetune.train import train_rows
from hftl.heads import fit_linear
from hftl.heads.folds import task_folds
from hftl.methods import FineTune, LoRA, Partial
from hftl.tasks import Task

RUN = ["run", "--backbone", "./vit", "--data", "pictures"]
CHANGED = ["--flip", "--crop", "0.5"]
CHANGES = Augmentation(flip=True, crop=0.5)
SEEN: dict[str, Any] = {**QUICK, "flip": True, "crop": 0.5, "views": 3}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    tiny.save("vit", tmp_path / "vit")
    return write_images(tmp_path / "pictures", per_class=9)


def by_hand(content: bytes, number: int) -> bytes:
    """A view as anybody may make it who knows what decides about it."""
    digest = hashlib.blake2b(content, digest_size=16, person=b"hftl-file").digest()
    draw = np.random.default_rng([int.from_bytes(digest, "little"), number])
    return content if number == 0 else CHANGES(content, "picture", draw)


def view_by_hand(file: Path, number: int) -> Image.Image:
    return Image.open(io.BytesIO(by_hand(file.read_bytes(), number)))


def logits_by_hand(model: Path, images: list[Image.Image]) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    network = transformers.AutoModelForImageClassification.from_pretrained(model).eval()
    with torch.no_grad():
        return network(**processor(images=images, return_tensors="pt")).logits


def stored_rows() -> dict[str, int]:
    """How many rows each kind of space has: of pictures as they are, and of views."""
    counts: dict[str, int] = {"plain": 0, "views": 0}
    for identity, read in stored_shards():
        if identity["pooling"] == "native":
            counts["plain" if identity["view"] == "none" else "views"] += len(read["digests"])
    return counts


# ── what is computed ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_views_are_shared_and_more_of_them_compute_those_alone(pictures: Path, cli: Cli) -> None:
    alone = cli.ok(*RUN, "--out", "alone")
    three = cli.ok(*RUN, "--views", "3", *CHANGED, "--out", "three")
    again = cli.ok(*RUN, "--views", "3", *CHANGED, "--folds", "2", "--out", "again")
    five = cli.ok(*RUN, "--views", "5", *CHANGED, "--out", "five")
    other = cli.ok(*RUN, "--views", "2", "--flip", "--out", "other")
    train = metrics(Path("alone"))["rows"]["train"]

    assert "views     " not in alone
    assert f"3 of each training picture, the first as it is, the others by flip, crop 0.5; {2 * train} views" in three
    assert "features  0 computed" in three
    assert "; 0 views computed" in again
    assert f"; {2 * train} views computed" in five
    assert f"; {train} views computed" in other
    assert metrics(Path("five"))["features"]["views_computed"] == 2 * train
    assert stored_rows() == {"plain": 27, "views": 5 * train}
    assert "native, views" in cli.ok("cache", "ls")


def test_the_first_view_is_the_picture_so_that_one_is_what_there_was(pictures: Path, cli: Cli) -> None:
    cli.ok(*RUN, "--out", "before")
    cli.ok(*RUN, "--views", "2", *CHANGED, "--out", "two")
    cli.ok(*RUN, "--views", "1", "--out", "after")

    assert predictions(Path("before")) == predictions(Path("after"))
    before, two = (metrics(Path(name))["head"] for name in ("before", "two"))
    assert before["baselines"] == two["baselines"]
    assert two["views"] == 2
    assert "views" not in before


def test_a_view_is_what_its_number_and_the_picture_make_of_it(pictures: Path, cli: Cli) -> None:
    cli.ok(*RUN, "--views", "2", *CHANGED, "--seed", "5", "--out", "run")
    network = transformers.AutoModel.from_pretrained("vit").eval()
    processor = transformers.AutoImageProcessor.from_pretrained("vit")
    files = sorted(pictures.rglob("*.png"))
    images = [view_by_hand(file, 1) for file in files]
    with torch.no_grad():
        vectors = network(**processor(images=images, return_tensors="pt")).last_hidden_state[:, 0]

    found = []
    for identity, read in stored_shards():
        if identity["pooling"] == "native" and identity["view"] != "none":
            assert identity["view"] == {"augmentation": 1, "flip": True, "crop": 0.5, "trivial": False}
            found.append(read["features"])
    stored = torch.cat(found)

    assert len(stored) == metrics(Path("run"))["rows"]["train"]
    nearest = torch.cdist(stored, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(nearest.max()) < 1e-4


# ── the head ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_of(classes: int = 3, count: int = 90, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    return torch.randn(count, dim, generator=draw) + 0.8 * torch.nn.functional.one_hot(labels, dim), labels


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_copies_of_each_row_as_views_change_nothing(task: str) -> None:
    """So each weighs its share, none is judged by a head that has seen its copy, and the first judges alone."""
    features, labels = rows_of()
    options: dict[str, Any] = {"task": task, "num_labels": 3}
    if task == "multi_label":
        labels = (features[:, :3] > 0.5).float()
    once = fit_linear(features, labels, **options)

    often = fit_linear(torch.cat([features] * 4), labels, views=4, **options)

    assert often.report["chosen"] == pytest.approx(once.report["chosen"], rel=1e-6)
    torch.testing.assert_close(often.weight, once.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(often.bias, once.bias, rtol=1e-3, atol=1e-3)
    assert once.held_out is not None
    assert often.held_out is not None
    assert torch.equal(often.held_out.rows, once.held_out.rows)
    torch.testing.assert_close(often.held_out.logits, once.held_out.logits, rtol=0.02, atol=0.02)
    assert often.report["calibration"]["rows"] == once.report["calibration"]["rows"]


def test_the_head_is_the_solution_where_each_view_weighs_its_share() -> None:
    features, labels = rows_of()
    views = torch.cat(
        [features, features + 0.3 * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))]
    )

    fit = fit_linear(
        views, labels, task="single_label", num_labels=3, strengths=[2.0], standardize=False, calibrate=False, views=2
    )

    known = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000)
    known.fit(views.numpy(), torch.cat([labels, labels]).numpy(), sample_weight=np.full(len(views), 0.5))
    mine = fit.logits(features).softmax(1).numpy()
    np.testing.assert_allclose(mine, known.predict_proba(features.numpy()), atol=2e-4)


def test_views_are_held_out_with_their_row() -> None:
    """By brute force: each row judged by scikit-learn on everything but its fold, all views of it included."""
    features, labels = rows_of(count=30)
    other = features + 0.5 * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    folds = task_folds(labels, Task.SINGLE_LABEL, 3, 0).numpy()

    fit = fit_linear(
        torch.cat([features, other]),
        labels,
        task="single_label",
        num_labels=3,
        strengths=[1.0],
        folds=3,
        standardize=False,
        views=2,
    )

    assert fit.held_out is not None
    probabilities = (fit.held_out.logits * fit.report["calibration"]["temperature"]).softmax(1).numpy()
    for fold in range(3):
        seen, judged = folds != fold, np.flatnonzero(folds == fold)
        known = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
        rows = np.concatenate([features[seen].numpy(), other[seen].numpy()])
        known.fit(rows, np.tile(labels[seen].numpy(), 2), sample_weight=np.full(len(rows), 0.5))
        np.testing.assert_allclose(
            probabilities[np.isin(fit.held_out.rows.numpy(), judged)],
            known.predict_proba(features[judged].numpy()),
            atol=0.05,
        )


def test_a_class_of_no_weight_takes_its_views_along() -> None:
    features, labels = rows_of(count=60)
    views = torch.cat([features, features])

    fit = fit_linear(views, labels, task="single_label", num_labels=3, class_weight=[1.0, 0.0, 1.0], views=2)
    once = fit_linear(features, labels, task="single_label", num_labels=3, class_weight=[1.0, 0.0, 1.0])

    assert fit.report["rows_of_zero_weight"] == once.report["rows_of_zero_weight"] == 20
    assert fit.held_out is not None
    assert once.held_out is not None
    assert torch.equal(fit.held_out.rows, once.held_out.rows)
    torch.testing.assert_close(fit.weight, once.weight, rtol=1e-4, atol=1e-5)


def test_cross_validation_and_given_splits_judge_pictures_as_they_are(pictures: Path, cli: Cli) -> None:
    crossed = cli.ok(*RUN, "--views", "3", *CHANGED, "--cv", "3", "--out", "crossed")
    held = cli.ok(*RUN, "--views", "3", *CHANGED, "--validation-size", "0.3", "--out", "held")

    assert "54 views computed" in crossed
    assert metrics(Path("crossed"))["cross_validation"]["rows"] == 27
    assert metrics(Path("crossed")).get("test_views") is None
    assert "of each test picture" not in crossed
    assert "validation" in held
    assert metrics(Path("held"))["head"]["calibration"]["rows"] == metrics(Path("held"))["rows"]["validation"]


# ── test-time views ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_predict_gives_the_mean_probabilities_that_the_run_measured(pictures: Path, cli: Cli) -> None:
    options = ["--views", "2", "--test-views", "3", *CHANGED, "--report"]
    said = cli.ok(*RUN, *options, "--out", "run", "--report")
    told = metrics(Path("run"))["test_views"]
    named = predictions(Path("run"))
    files = [Path("pictures", name.split(" ")[0]) for name in named["row"]]
    files = [file if file.exists() else Path(file.name) for file in files]

    cli.ok("predict", "run", *files, "--views", "3", "--out", "views.csv")

    by_hand = torch.stack(
        [logits_by_hand(Path("run/model"), [view_by_hand(file, number) for file in files]) for number in range(3)]
    )
    mean = by_hand.softmax(-1).mean(0)
    read = csv_files.read_csv("views.csv").to_pydict()
    np.testing.assert_allclose(read["score"], mean.max(1).values, atol=1e-4)
    right = [label == truth for label, truth in zip(read["label"], named["label"], strict=True)]
    assert told["eval"]["accuracy"] == pytest.approx(np.mean(right))
    assert told["views"] == 3
    assert f"mean probabilities of 3 views of each test picture: accuracy {np.mean(right):.4f}; as it is" in said
    card = Path("run/model/README.md").read_text()
    assert "from 2 views of each training picture: the first as it is, the others by flip, crop 0.5" in card
    assert "as `hftl predict --views 3` gives them" in card
    assert "2 views of each training picture" in Path("run/report.html").read_text()


def test_views_of_a_row_that_cannot_be_read_are_bad_and_cost_no_other_row(pictures: Path, cli: Cli) -> None:
    cli.ok(*RUN, "--views", "2", *CHANGED, "--out", "run")
    Path("bad.png").write_bytes(b"no picture")
    good = sorted(pictures.rglob("*.png"))[:20]

    cli.ok("predict", "run", *good[:7], "bad.png", *good[7:], "--views", "4", "--json")

    lines = [json.loads(line) for line in cli.out.splitlines()]
    assert [line["input"] for line in lines if "error" in line] == ["bad.png"]
    assert len(lines) == 21
    model = hftl.load("run")
    one: Any = model.predict(str(good[0]), views=4)
    assert one["scores"] == pytest.approx(lines[0]["scores"], abs=1e-5)


# ── views in fine-tuning ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "method", [Partial(**SEEN, freeze=1), LoRA(**SEEN, from_block=1, r=2)], ids=["partial", "lora"]
)
def test_training_takes_turns_with_stored_views_as_it_does_with_fresh_ones(method: FineTune, tmp_path: Path) -> None:
    vit, data = small.image_backbone(tmp_path / "vit", num_hidden_layers=2), small.picture_data(26, 9)

    stored, fresh = both(method, vit, data, tmp_path)
    again = Ran(method.model_copy(update={"cache_blocks": "always"}), vit, data, tmp_path / "again")

    assert_the_same(stored, fresh)
    assert f"{26 + 9 + 2 * 26} rows computed" in stored.blocks
    assert "0 rows computed" in again.blocks


def test_each_epoch_sees_another_view_and_each_is_seen(tmp_path: Path) -> None:
    vit, data = small.image_backbone(tmp_path / "vit", num_hidden_layers=2), small.picture_data(26, 9)
    target = target_of(vit, data)
    rows = train_rows(Partial(**SEEN, freeze=1), target, data, 0, Accelerator(cpu=True))
    files = [data.train.inputs[row] for row in range(26)]
    known = [
        [vit.encode([by_hand(file, number)], ["picture"])[0].inputs["pixel_values"] for number in range(3)]
        for file in files
    ]

    seen = []
    for epoch in range(6):
        batch = rows.batch(epoch, list(range(26))).inputs["pixel_values"]
        seen.append([next(n for n in range(3) if torch.equal(batch[row], known[row][n])) for row in range(26)])

    numbers = np.array(seen)
    assert set(numbers.flatten().tolist()) == {0, 1, 2}
    assert (np.sort(np.bincount(numbers.flatten())) > 26).all()
    assert all(len(set(column)) > 1 for column in numbers.T[:5].tolist())


# ── what has no views ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_no_views_is_refused_in_a_line(pictures: Path, tmp_path: Path, cli: Cli) -> None:
    tiny.save("bert", tmp_path / "bert")
    write_texts(tmp_path / "texts.csv", 30)
    texts = ["run", "--backbone", "./bert", "--data", "texts.csv"]

    assert "views are of pictures, and there are none of texts" in cli.refused(*texts, "--views", "4", "--flip")
    assert "add flip, crop or trivial_augment" in cli.refused(*RUN, "--views", "4")
    assert "add views=8" in cli.refused(*RUN, "--flip")
    partial = ["--method", "partial", "--freeze", "1", "--views", "4"]
    assert "there are none of texts" in cli.refused(*texts, *partial, "--flip")
    assert "add flip, crop or trivial_augment" in cli.refused(*RUN, *partial)
    assert "'full' has no field 'views'" in cli.refused(*RUN, "--method", "full", "--views", "4")
    assert "leave out --test-views" in cli.refused(*RUN, "--test-views", "4", "--flip", "--cv", "3")
    cli.ok(*RUN, "--out", "plain")
    assert "nothing did: train with --flip" in cli.refused("predict", "plain", "pictures", "--views", "2")
    Path("plain/model").rename("moved")
    assert "only a run's folder tells" in cli.refused("predict", "moved", "pictures", "--views", "2")
