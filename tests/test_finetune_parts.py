"""Losses, schedules, groups, rows and augmentation of fine-tuning, against independent computations."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from finetune import small
from finetune.crash import Numbers
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from hftl.backbones.blocks import find_depths
from hftl.backbones.protocol import Encoded
from hftl.data.augment import OPERATIONS, Augmentation, crop_box
from hftl.errors import BackboneError, DataError, RecipeError, UserError
from hftl.finetune.ema import Ema
from hftl.finetune.engine import spread_by_block
from hftl.finetune.evaluate import logits_of
from hftl.finetune.groups import freeze_below, frozen_blocks, parameter_groups, set_modes
from hftl.finetune.losses import Loss
from hftl.finetune.mixing import Mix, Mixing, mixed, stream
from hftl.finetune.rows import Encoder, TrainRows
from hftl.finetune.schedule import lr_factor
from hftl.methods import Partial
from hftl.parallel import Process
from hftl.tasks import Task

# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(13, 4, generator=GENERATOR)
CLASSES = torch.randint(0, 4, (13,), generator=GENERATOR)
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.1])
PARTS = [slice(0, 5), slice(5, 6), slice(6, 13)]


def in_parts(loss: Loss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over all rows from sums over uneven parts, each filled up with a row that does not count."""
    total = torch.zeros(())
    for part in PARTS:
        filled, more = torch.cat([logits[part], logits[:1]]), torch.cat([targets[part], targets[:1]])
        counted = torch.ones(len(filled))
        counted[-1] = 0
        total += loss(filled, more, counted)
    return total / loss.weight(targets)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_parts_is_the_cross_entropy_of_the_whole(weights: torch.Tensor | None, smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS, CLASSES, weight=weights, label_smoothing=smoothing)

    found = in_parts(Loss("single_label", 4, smoothing, weights), LOGITS, CLASSES)

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_soft_targets_that_are_certain_are_classes(weights: torch.Tensor | None) -> None:
    loss = Loss("single_label", 4, 0.1, weights)

    soft = in_parts(loss, LOGITS, F.one_hot(CLASSES, 4).float())

    torch.testing.assert_close(soft, in_parts(loss, LOGITS, CLASSES))


def test_several_labels_and_numbers_have_the_losses_of_transformers() -> None:
    targets = (torch.rand(13, 4, generator=GENERATOR) > 0.5).float()

    torch.testing.assert_close(
        in_parts(Loss("multi_label", 4), LOGITS, targets), nn.BCEWithLogitsLoss()(LOGITS, targets)
    )
    torch.testing.assert_close(in_parts(Loss("regression", 4), LOGITS, targets), nn.MSELoss()(LOGITS, targets))
    torch.testing.assert_close(
        in_parts(Loss("multi_label", 4, 0.0, torch.stack([torch.ones(4), WEIGHTS])), LOGITS, targets),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)(LOGITS, targets),
    )


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())

    weights = Task.SINGLE_LABEL.class_weights("balanced", labels, 3)

    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected 3 numbers, one for each label, got 2"):
        Task.SINGLE_LABEL.class_weights([1.0, 2.0], torch.tensor([0, 1, 2]), 3)
    with pytest.raises(RecipeError, match="no classes"):
        Task.REGRESSION.class_weights("balanced", torch.zeros(3, 1), 1)


# ── schedule and average ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_after_the_warm_up_the_schedule_is_that_of_transformers(schedule: str, theirs: object) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer, 5, 40)  # type: ignore[operator]
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    found = [lr_factor(step, 40, 5, schedule) for step in range(40)]  # type: ignore[arg-type]

    np.testing.assert_allclose(found[5:], expected[5:])
    assert 0 < found[0] < found[1] < found[4] < 1
    assert lr_factor(39, 40, 5, "constant") == 1


def test_the_average_is_that_of_its_formula() -> None:
    parameter = nn.Parameter(torch.tensor([0.0, 1.0]))
    ema = Ema({"p": parameter}, 0.5)
    expected = parameter.detach().clone()
    for step in range(12):
        with torch.no_grad():
            parameter += step
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
        ema.update(step)

    torch.testing.assert_close(ema.averages["p"], expected)
    last = parameter.detach().clone()
    with ema.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter.detach(), last)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────

HEADS = ("classifier", "score", "fc", "classification_head", "cls_classifier", "distillation_classifier", "head")


def head_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.split(".")[0] in HEADS}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("bert", 2), ("distilbert", 2), ("gpt2", 2), ("bart", 4), ("llama", 2), ("vit", 2), ("swin", 2), ("resnet", 2)],
)
def test_blocks_are_found_in_any_architecture(name: str, blocks: int) -> None:
    model = tiny.model(name)

    depths = find_depths(model, head_of(model))

    assert depths.blocks == blocks
    assert set(depths.of) == {parameter for parameter, _ in model.named_parameters()}
    assert {depths.of[parameter] for parameter in head_of(model)} == {blocks + 1}
    assert set(depths.of.values()) == set(range(blocks + 2))


def test_learning_rates_fall_with_depth_and_norms_do_not_decay() -> None:
    model = tiny.model("vit")
    head = head_of(model)
    depths = find_depths(model, head)

    groups = parameter_groups(
        model.named_parameters(), depths, head, lr=1.0, head_lr=3.0, layer_decay=0.5, weight_decay=0.1
    )

    of = {name: group for group in groups for name in group["names"]}
    assert sorted(of) == sorted(name for name, _ in model.named_parameters())
    assert of["classifier.weight"]["lr"] == 3.0
    assert of["vit.layernorm.weight"]["lr"] == 1.0
    block = [name for name in of if depths.of[name] == 2 and name.endswith("weight")]
    assert {of[name]["lr"] for name in block} == {0.5}
    assert of["vit.embeddings.position_embeddings"]["lr"] == 0.125
    for name, parameter in model.named_parameters():
        bare = name.endswith("bias") or "layernorm" in name
        assert of[name]["weight_decay"] == (0.0 if bare else 0.1), name
        assert any(parameter is p for p in of[name]["params"])


@pytest.mark.parametrize(
    ("name", "block"), [("bert", "BertLayer"), ("vit", "ViTLayer"), ("llama", "LlamaDecoderLayer")]
)
def test_fsdp2_spreads_blocks_and_what_holds_the_embedding_only_once(name: str, block: str) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    spread_by_block(plugin, tiny.model(name))
    assert plugin.transformer_cls_names_to_wrap == [block]


def test_what_the_user_had_spread_is_left_and_a_model_without_an_embedding_is_refused() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=["BertLayer"])
    spread_by_block(plugin, tiny.model("bert"))
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
    with pytest.raises(UserError, match="names no input embedding, without which FSDP2"):
        spread_by_block(plugin, tiny.model("resnet"))


def test_the_first_blocks_freeze_and_their_statistics_with_them() -> None:
    model = tiny.model("resnet")
    depths = find_depths(model, head_of(model))
    freeze_below(model, depths, 1)
    set_modes(model)
    before = {name: value.clone() for name, value in model.named_buffers()}

    model(pixel_values=torch.randn(4, 3, 32, 32)).logits.sum().backward()

    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved
    assert all("stages.1." in name for name in moved), moved
    assert all(p.grad is None for name, p in model.named_parameters() if "embedder" in name or "stages.0." in name)


@pytest.mark.parametrize("freeze", [3, -3])
def test_more_blocks_than_there_are_cannot_freeze(freeze: int) -> None:
    model = tiny.model("vit")
    with pytest.raises(RecipeError, match="has 2 blocks"):
        frozen_blocks(Partial(freeze=freeze), find_depths(model, head_of(model)), "vit")
    with pytest.raises(BackboneError, match="no repeated blocks"):
        frozen_blocks(Partial(freeze=1), find_depths(nn.Linear(2, 2), set()), "linear")


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pixels:
    """A backbone whose rows are the pictures' mean colours."""

    wants = "file"

    def encode(self, rows: list[bytes], names: list[str]) -> list[Encoded]:
        arrays = [np.asarray(Image.open(io.BytesIO(row)).resize((8, 8)), dtype=np.float32) for row in rows]
        return [Encoded({"pixels": torch.from_numpy(array).permute(2, 0, 1)}) for array in arrays]

    def collate(self, rows: list[Encoded]) -> dict[str, torch.Tensor]:
        return {"pixels": torch.stack([row.inputs["pixels"] for row in rows])}


def train_rows(**options: object) -> TrainRows:
    data = small.picture_data(26)
    process = Process(torch.device("cpu"), options.pop("rank", 0), options.pop("world", 1))  # type: ignore[arg-type]
    arguments = {"seed": 1, "batch_size": 8, "micro_batch": 3} | options
    return TrainRows(Encoder(Pixels(), data.train), Loss("single_label", 3), process, **arguments)  # type: ignore[arg-type]


def seen(rows: TrainRows, epoch: int, start: int = 0) -> dict[int, bytes]:
    """What each row of an epoch looks like, with its target, where it counts."""
    found = {}
    order = rows.order(epoch)
    for number, step in enumerate(rows.epoch(epoch, start), start):
        assert step.rows == order[number * 8 : number * 8 + 8].tolist()
        shares = rows.shares(step.rows)
        assert len(shares) == len(step.micro_batches)
        for (mine, counted), batch in zip(shares, step.micro_batches, strict=True):
            assert batch.counted.tolist() == [1.0] * counted + [0.0] * (len(mine) - counted)
            for i, row in enumerate(mine[:counted]):
                found[row] = batch.inputs["pixels"][i].numpy().tobytes() + batch.targets[i].numpy().tobytes()
    return found


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    rows = train_rows()

    assert sorted(seen(rows, 0)) == list(range(26))
    assert rows.order(0).tolist() != rows.order(1).tolist()
    assert rows.order(1).tolist() == train_rows().order(1).tolist()
    assert rows.steps == 4


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_each_step_and_see_the_same_pictures(world: int) -> None:
    options = {"augmentation": Augmentation(True, 0.3, True), "mixing": Mixing(0.4, 1.0)}
    alone = seen(train_rows(**options), 3)

    shared = [train_rows(**options, rank=rank, world=world, micro_batch=2) for rank in range(world)]

    counts = [[len(rows.shares(range(n))) for rows in shared] for n in range(1, 9)]
    assert all(len(set(count)) == 1 for count in counts)
    together: dict[int, bytes] = {}
    for rows in shared:
        mine = seen(rows, 3)
        assert not together.keys() & mine.keys()
        together |= mine
    assert together == alone


def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole() -> None:
    options = {"augmentation": Augmentation(True, 0.3, True), "mixing": Mixing(0.4, 1.0)}
    whole, rest = seen(train_rows(**options), 2), seen(train_rows(**options), 2, start=2)

    assert len(rest) == 10
    assert rest.items() <= whole.items()
    assert whole != seen(train_rows(**options), 1)


def test_micro_batches_are_even() -> None:
    assert [len(rows) for rows, _ in train_rows(micro_batch=32).shares(range(33))] == [17, 16]
    assert [len(rows) for rows, _ in train_rows(micro_batch=8).shares(range(32))] == [8, 8, 8, 8]


# ── augmentation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_crops_keep_the_share_and_the_ratio_they_promise() -> None:
    boxes = [crop_box(200, 150, 0.25, stream(0, 0, row, 1)) for row in range(500)]

    areas = np.array([(r - x) * (b - y) / 30_000 for x, y, r, b in boxes])
    ratios = np.array([(r - x) / (b - y) for x, y, r, b in boxes])
    assert areas.min() > 0.24
    assert areas.max() <= 1
    assert 0.73 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.36
    assert all(0 <= x < r <= 200 and 0 <= y < b <= 150 for x, y, r, b in boxes)
    assert crop_box(1, 400, 0.9, stream(0, 0, 0, 1)) == (0, 0, 1, 400)


def test_a_flip_mirrors_half_of_the_pictures() -> None:
    encoded = small.pictures(1)[0][0]
    original = np.asarray(Image.open(io.BytesIO(encoded)))
    flips = 0
    for row in range(200):
        changed = np.asarray(Image.open(io.BytesIO(Augmentation(flip=True)(encoded, "row", stream(0, 0, row, 1)))))
        flipped = not np.array_equal(changed, original)
        assert np.array_equal(changed, original[:, ::-1] if flipped else original)
        flips += flipped
    assert 70 < flips < 130


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_pixels_as_its_name_says(name: str) -> None:
    pixels = np.random.default_rng(0).integers(20, 200, (28, 42, 3), dtype=np.uint8)
    weak, strong, opposite = (np.asarray(OPERATIONS[name](Image.fromarray(pixels), s)) for s in (0, 1, -1))
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    moved = pixels.astype(float)

    assert weak.shape == strong.shape == pixels.shape
    if name not in ("autocontrast", "equalize"):
        assert np.array_equal(weak, np.where(pixels == 255, 0, pixels)), "without strength nothing changes"
    expected = {
        "identity": moved,
        "shear_x": moved[0],
        "shear_y": moved[:, 0],
        "translate_x": moved[:, 6:],
        "translate_y": moved[4:],
        "brightness": np.clip(moved * 1.99, 0, 255),
        "color": np.clip(grey[..., None] + 1.99 * (moved - grey[..., None]), 0, 255),
        "contrast": np.clip(round(grey.mean()) + 1.99 * (moved - round(grey.mean())), 0, 255),
        "posterize": moved // 64 * 64,
        "solarize": 255 - moved,
        "autocontrast": (moved - moved.min((0, 1))) / np.ptp(moved, (0, 1)) * 255,
    }
    seen = {"shear_x": strong[0], "shear_y": strong[:, 0], "translate_x": strong[:, :-6], "translate_y": strong[:-4]}
    if name in expected:
        np.testing.assert_allclose(seen.get(name, strong), expected[name], atol=2)
    if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "contrast", "sharpness"):
        assert not np.array_equal(strong, opposite)
    if name == "equalize":
        assert strong.std() > pixels.std()


def test_trivial_augment_takes_every_operation_and_is_a_function_of_its_stream() -> None:
    encoded = small.pictures(1)[0][0]
    change = Augmentation(trivial=True)

    views = [change(encoded, "row", stream(0, epoch, 0, 1)) for epoch in range(200)]

    assert views == [change(encoded, "row", stream(0, epoch, 0, 1)) for epoch in range(200)]
    assert len(set(views)) > 100
    drawn = {int(stream(0, epoch, 0, 1).integers(len(OPERATIONS))) for epoch in range(200)}
    assert drawn == set(range(len(OPERATIONS)))


def test_mixtures_are_those_of_their_share() -> None:
    mine, other = (Encoded({"pixel_values": torch.full((3, 10, 10), value), "label": 1}) for value in (1.0, 0.0))

    blended = mixed(mine, other, Mix(0, 0.7)).inputs["pixel_values"]
    pasted = mixed(mine, other, Mix(0, 0.76, (0.2, 0.1, 0.8, 0.5))).inputs["pixel_values"]

    torch.testing.assert_close(blended, torch.full((3, 10, 10), 0.7))
    assert float(pasted.mean()) == pytest.approx(0.76)
    assert not pasted[:, 2:8, 1:5].any()


def test_mixed_targets_have_the_share_of_their_rows() -> None:
    rows = train_rows(mixing=Mixing(mixup=0.4, cutmix=1.0))

    targets = rows.targets(0, range(26))

    draws = [rows.mixing.draw(1, 0, row, 26) for row in range(26)]
    assert {draw.box is None for draw in draws} == {True, False}
    for row, draw in enumerate(draws):
        expected = torch.zeros(3)
        expected[int(rows.labels[row])] += draw.share
        expected[int(rows.labels[draw.partner])] += 1 - draw.share
        torch.testing.assert_close(targets[row], expected)
        if draw.box:
            top, left, bottom, right = draw.box
            assert draw.share == pytest.approx(1 - (bottom - top) * (right - left))


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Refusing(nn.Module):
    """Takes rows alone only."""

    def forward(self, values: torch.Tensor) -> Any:
        if len(values) > 1:
            raise ValueError("rows of two kinds")
        return SimpleNamespace(logits=values)


def test_rows_that_cannot_stand_beside_others_run_alone_unless_the_model_is_spread() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    rows: Any = Numbers(logits)

    found = logits_of(Accelerator(cpu=True), Refusing(), rows, 4)
    np.testing.assert_array_equal(found.numpy(), logits)
    with pytest.raises(DataError, match=r"rows of two kinds.*spread over processes.*launch with MULTI_GPU$"):
        logits_of(Accelerator(cpu=True), Refusing(), rows, 4, is_spread=True)
