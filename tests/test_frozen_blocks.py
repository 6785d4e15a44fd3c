"""Frozen blocks that run once: what is kept of them, and training from it, which is the training that runs them."""

from __future__ import annotations

import errno
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from finetune import small
from finetune.crash import start, wait
from peft import PeftModel
from runs import Cli, write_images
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hftl.backbones.cut.blocks import Padding, blocks_cut, continued, rows_of_columns
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.search import prepare_head
from hftl.backbones.protocol import Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.data import Data, RowNames, Split, Texts
from hftl.errors import CutError, HftlError, RecipeError, StoreError
from hftl.finetune.groups import run_below, set_modes
from hftl.finetune.stored import RowCost, StoredEncoder, worthwhile
from hftl.finetune.train import build, finetune
from hftl.frozen.blocks import block_rows
from hftl.frozen.view import View
from hftl.methods import FineTune, LoRA, Partial
from hftl.store.files import FileCalls
from hftl.store.store import FeatureStore, cache_root
from hftl.tasks import Task

ORIGIN = {"name": "test"}
QUICK: dict[str, Any] = {"epochs": 2, "lr": 3e-3, "batch_size": 8, "micro_batch": 3, "init": "random"}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ImageBackbone:
    return small.image_backbone(tmp_path_factory.mktemp("vit"), num_hidden_layers=3, **DROPOUT)


def target_of(backbone: Any, data: Data) -> Target:
    return Target(backbone, backbone.config(data.task, data.label_names))


class Ran:
    """A run: its losses, what it said, its final weights and logits."""

    def __init__(self, method: FineTune, backbone: Any, data: Data, folder: Path, **options: Any) -> None:
        self.losses: list[float] = []
        self.said: list[str] = []
        trained = finetune(
            method,
            target_of(backbone, data),
            data,
            start=None,
            seed=0,
            folder=folder,
            origin=ORIGIN,
            log=self._log,
            say=self.said.append,
            **options,
        )
        trained.export(folder / "model")
        self.logits, self.report = trained.logits, trained.report
        newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
        self.weights = load_file(newest / "model.safetensors")
        self.exported = load_file(folder / "model" / "model.safetensors")

    def _log(self, event: str, **values: Any) -> None:
        if event == "step":
            self.losses.append(values["loss"])

    @property
    def blocks(self) -> str:
        """What was said of the blocks."""
        return next((line for line in self.said if line.startswith("blocks ")), "")


def both(method: FineTune, backbone: Any, data: Data, folder: Path) -> tuple[Ran, Ran]:
    """The same run from the store, and running its blocks in every epoch."""
    runs = []
    for cache in ("always", "never"):
        chosen = method.model_copy(update={"cache_blocks": cache})
        runs.append(Ran(chosen, backbone, data, folder / cache))
    assert "once" in runs[0].blocks, runs[0].said
    assert not runs[1].blocks
    return runs[0], runs[1]


def assert_the_same(one: Ran, other: Ran) -> None:
    assert one.losses == other.losses
    assert torch.equal(one.logits, other.logits)
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert all(torch.equal(value, other.exported[name]) for name, value in one.exported.items())
    assert one.report["epochs"] == other.report["epochs"]


# ── the cut ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CUT = ["bert", "deberta-v2", "gpt2", "llama", "modernbert", "dinov2", "resnet"]
UNCUT = {
    "bart": "something that trains runs before model.encoder.layers.0",
    "mpnet": "something that trains runs before mpnet.encoder.layer.0",
    "swin": "cannot be put in its place",
    "xlnet": "not laid out by rows",
}


def cut_of(name: str, folder: Path) -> tuple[Any, list[dict[str, torch.Tensor]], dict[str, torch.Tensor], Any]:
    kind = TextBackbone if name in tiny.TEXT else ImageBackbone
    backbone = kind(local_source(tiny.save(name, folder)))
    model, head = Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b", "c"])).build()
    prepare_head(model, head, backbone.probes())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    return model, backbone.probes(), before, blocks_cut(model, head, 1, backbone.probes())


@pytest.mark.parametrize("name", CUT)
def test_a_model_goes_on_from_what_its_blocks_returned_to_the_bit(name: str, tmp_path: Path) -> None:
    model, probes, before, cut = cut_of(name, tmp_path)

    kept = rows_of_columns(Capture(model, [cut])(probes[0])[0])
    batch = Padding.of(probes[0]).collate(kept)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        expected = model(**probes[0]).logits
        with continued(model, model, cut):
            assert torch.equal(model(**batch).logits, expected)
            assert torch.equal(model(**probes[0]).logits, expected)
        assert torch.equal(model(**probes[0]).logits, expected)


@pytest.mark.parametrize("name", UNCUT)
def test_a_model_whose_blocks_stand_not_alone_is_not_cut(name: str, tmp_path: Path) -> None:
    with pytest.raises(CutError, match=UNCUT[name]):
        cut_of(name, tmp_path)


def test_a_dropout_of_the_embeddings_that_are_frozen_drops_nothing(tmp_path: Path) -> None:
    backbone = TextBackbone(local_source(tiny.save("gpt2", tmp_path)))
    built = build(Partial(freeze=1), Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b"])), {}, 0)

    set_modes(built.model, built.below)

    modes = {name: module.training for name, module in built.model.named_modules()}
    assert not modes["transformer.drop"]
    assert not modes["transformer.h.0.attn.attn_dropout"]
    assert modes["transformer.h.1.attn.attn_dropout"]
    assert built.frozen is not None
    assert not built.frozen.random
    built.model.requires_grad_(True)
    assert run_below(built.model, backbone.probes()[0]) == []


# ── training from the store ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "method",
    [
        Partial(**QUICK, freeze=2, ema=0.9, layer_decay=0.8, label_smoothing=0.1),
        Partial(**QUICK, freeze=1, unfreeze=True, gradient_checkpointing=True, patience=2),
        LoRA(**QUICK, from_block=2, r=2, dropout=0.1),
    ],
    ids=["partial", "unfrozen", "lora"],
)
def test_training_from_the_store_is_the_training_that_runs_the_blocks(
    vit: ImageBackbone, tmp_path: Path, method: FineTune
) -> None:
    stored, fresh = both(method, vit, small.picture_data(26, 9, validation=7), tmp_path)

    assert_the_same(stored, fresh)


def test_bfloat16_gets_what_autocast_gives(vit: ImageBackbone, tmp_path: Path) -> None:
    method = Partial(**QUICK, freeze=1, mixed_precision="bf16")

    stored, fresh = both(method, vit, small.picture_data(), tmp_path)

    np.testing.assert_allclose(stored.losses, fresh.losses, rtol=2e-3)


def text_data(rows: int, *, even: bool) -> Data:
    """Texts of one length, or of two to nine words."""
    splits = []
    for name, count in (("train", rows), ("test", 9)):
        labels = np.arange(count) % 3
        words = [
            " ".join([tiny.WORDS[4 + label * 2], *tiny.WORDS[i % 7 : i % 7 + (3 if even else 1 + i % 8)]])
            for i, label in enumerate(labels)
        ]
        texts = Texts([(text,) for text in words], RowNames([(f"{name}.csv", count)]))
        splits.append(Split(name, texts, labels.astype(np.int64)))
    return Data("texts", Task.SINGLE_LABEL, ["a", "b", "c"], splits[0], None, splits[1], [], {})


@pytest.mark.parametrize("even", [True, False])
def test_texts_train_from_the_store_as_they_do_without(tmp_path: Path, even: bool) -> None:
    backbone = TextBackbone(local_source(tiny.save("bert", tmp_path / "bert")))
    # Mixup mixes the labels of texts and nothing that the blocks see.
    method = Partial(**QUICK, freeze=1, mixup=0.2)

    stored, fresh = both(method, backbone, text_data(24, even=even), tmp_path)

    if even:
        assert_the_same(stored, fresh)
    else:
        # Padding changes in which order attention adds up, so that the last bits differ.
        np.testing.assert_allclose(stored.losses, fresh.losses, rtol=1e-4)
        np.testing.assert_allclose(stored.logits, fresh.logits, rtol=1e-3, atol=1e-4)


def test_a_second_run_computes_only_the_rows_that_are_new(vit: ImageBackbone, tmp_path: Path) -> None:
    few, more = small.picture_data(13, 9), small.picture_data(26, 9)
    method = Partial(**QUICK, freeze=1, cache_blocks="always")

    first = Ran(method, vit, few, tmp_path / "first")
    second = Ran(method.model_copy(update={"lr": 1e-3}), vit, few, tmp_path / "second")
    third = Ran(method, vit, more, tmp_path / "third")
    other = Ran(method.model_copy(update={"freeze": 2}), vit, few, tmp_path / "other")

    counts = [run.blocks.split("; ")[-1].split(" computed")[0] for run in (first, second, third, other)]
    assert counts == ["22 rows", "0 rows", "13 rows", "22 rows"]
    np.testing.assert_allclose(third.losses, Ran(method, vit, more, tmp_path / "again").losses, rtol=0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"flip": True}, "each epoch changes the pictures"),
        ({"mixup": 0.2}, "rows are mixed before them"),
        ({"cutmix": 1.0}, "rows are mixed before them"),
    ],
)
def test_what_cannot_be_read_from_the_store_runs_in_every_epoch_and_says_so(
    vit: ImageBackbone, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    run = Ran(
        Partial(**QUICK | {"epochs": 1}, freeze=1, cache_blocks="always", **options),
        vit,
        small.picture_data(),
        tmp_path,
    )

    assert run.blocks.startswith("blocks    the first 1 of 3 run in every epoch: ")
    assert why in run.blocks
    assert FeatureStore(cache_root()).spaces() == []


def test_a_model_that_cannot_be_cut_runs_its_blocks_and_says_why(tmp_path: Path) -> None:
    backbone = TextBackbone(local_source(tiny.save("mpnet", tmp_path / "mpnet")))

    run = Ran(
        Partial(**QUICK | {"epochs": 1}, freeze=1, cache_blocks="always"), backbone, text_data(9, even=True), tmp_path
    )

    assert "in every epoch: something that trains runs before mpnet.encoder.layer.0" in run.blocks


def test_auto_keeps_nothing_that_is_computed_in_no_time_and_a_resume_does_as_before(
    vit: ImageBackbone, tmp_path: Path
) -> None:
    method = Partial(**QUICK, freeze=1)
    run = Ran(method, vit, small.picture_data(), tmp_path)

    again = Ran(method, vit, small.picture_data(), tmp_path, resume=True)

    assert "in every epoch: about" in run.blocks
    assert "--cache-blocks always" in run.blocks
    assert again.blocks.endswith("in every epoch: as before the stop")
    assert FeatureStore(cache_root()).spaces() == []


def test_auto_weighs_time_and_disk() -> None:
    data = small.picture_data(26, 9, validation=7)
    cost = RowCost(encoding=0.1, running=1.0, size=1e6, encoded=1e3)
    many, once = Partial(epochs=10), Partial(epochs=1)

    # 10 × 26 + 11 × 7 + 9 rows run without, 42 with; all of them are read.
    pays, why = worthwhile(many, data, 42, cost, 10**9)
    assert pays
    assert why.startswith("about 50 s with the store (1.0 MB a row), 350 s without; 42.0 MB more of 1.0 GB free")
    assert not worthwhile(once, data, 42, cost, 10**9)[0]
    assert worthwhile(once, data, 0, cost, 10**9)[0], "what is stored already costs no forward"
    assert worthwhile(many, data, 42, cost, 80 * 10**6) == (False, "42.0 MB are too much for a disk with 80.0 MB free")
    assert not worthwhile(many, data, 42, replace(cost, running=0.01), 10**9)[0], "it would save less than a second"


# ── what may go wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def shards() -> list[Path]:
    return sorted((cache_root() / "features").rglob("shards/*.safetensors"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_shard_with_a_flipped_bit_is_computed_again(vit: ImageBackbone, tmp_path: Path) -> None:
    method = Partial(**QUICK, freeze=1, cache_blocks="always")
    first = Ran(method, vit, small.picture_data(), tmp_path / "first")
    flip_a_bit(shards()[0])

    second = Ran(method, vit, small.picture_data(), tmp_path / "second")

    assert "35 rows computed" in second.blocks
    assert_the_same(first, second)


def test_a_shard_that_is_damaged_while_a_run_reads_it_is_never_read(vit: ImageBackbone, tmp_path: Path) -> None:
    data = small.picture_data()
    rows = block_rows(
        FeatureStore(cache_root()), target_of(vit, data), ORIGIN, View(blocks=1), data.splits(), quiet=True
    )
    encoder = StoredEncoder(vit, data.train, rows, Padding.of(vit.probes()[0]))
    assert len(encoder([0, 1])) == 2
    flip_a_bit(shards()[0])

    with pytest.raises(HftlError, match="removed or damaged since the run began; go on with --resume"):
        encoder([0, 1])


def test_a_full_disk_ends_the_run_with_its_advice_and_costs_nothing_that_was_stored(
    vit: ImageBackbone, tmp_path: Path
) -> None:
    class Full(FileCalls):
        def write(self, fd: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    few, more = small.picture_data(13, 9), small.picture_data(26, 9)
    store = FeatureStore(tmp_path / "store")
    block_rows(store, target_of(vit, few), ORIGIN, View(blocks=1), few.splits(), quiet=True)

    with pytest.raises(StoreError, match=r"No space left.*\(hftl cache gc\).*--cache-blocks never"):
        block_rows(
            FeatureStore(tmp_path / "store", Full()),
            target_of(vit, more),
            ORIGIN,
            View(blocks=1),
            more.splits(),
            quiet=True,
        )

    rows = block_rows(store, target_of(vit, more), ORIGIN, View(blocks=1), more.splits(), quiet=True)
    assert rows.computed == 13


def test_two_runs_at_once_end_as_one_does(vit: ImageBackbone, tmp_path: Path) -> None:
    data, method = small.picture_data(), Partial(**QUICK, freeze=1, cache_blocks="always")

    def run(name: str) -> None:
        torch.set_num_threads(1)
        torch.save = None  # type: ignore[assignment] - nothing here is to be pickled
        (tmp_path / name).mkdir()
        (tmp_path / name / "losses").write_text(str(Ran(method, vit, data, tmp_path / name).losses))

    children = [start(1, lambda name=name: run(name))[0] for name in ("one", "two")]
    assert wait(children) == [0, 0]
    alone = Ran(method, vit, data, tmp_path / "alone")

    assert "0 rows computed" in alone.blocks
    assert {(tmp_path / name / "losses").read_text() for name in ("one", "two")} == {str(alone.losses)}


def test_gc_removes_what_blocks_returned_before_any_features(vit: ImageBackbone, tmp_path: Path, cli: Cli) -> None:
    data = small.picture_data()
    store = FeatureStore(cache_root())
    for view in (View(blocks=1), View(pooling="mean")):
        # The features were used last.
        block_rows(store, target_of(vit, data), ORIGIN, view, data.splits(), quiet=True)
    os.utime(next(space.path for space in store.spaces() if space.blocks is None) / "last_used", (0, 0))

    assert "1 blocks" in cli.ok("cache", "ls")
    bulky = next(space for space in store.spaces() if space.blocks)
    assert [space.blocks for space in store.surplus(store.stats().bytes - 1)] == [1]
    assert bulky.blocks == 1


# ── LoRA from a block on ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["q_proj", "fc1"]}, {"target_modules": r".*\.q_proj"}])
def test_lora_from_a_block_on_trains_adapters_from_there_and_is_a_standard_adapter(
    vit: ImageBackbone, tmp_path: Path, lora: dict[str, Any]
) -> None:
    data = small.picture_data()
    built = build(LoRA(r=2, from_block=-2, lora=lora), target_of(vit, data), {}, 0)
    trained = {name for name, p in built.model.named_parameters() if p.requires_grad and "lora_" in name}
    blocks = {int(name.split("layers.")[1].split(".")[0]) for name in trained if "layers." in name}
    run = Ran(LoRA(**QUICK, r=2, from_block=-2, lora=lora), vit, data, tmp_path)

    assert blocks == {1, 2}
    base = AutoModelForImageClassification.from_pretrained(vit.source.folder, num_labels=3)
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    rows = [data.test.inputs[i] for i in range(len(data.test))]
    with torch.no_grad():
        logits = loaded(**vit.collate(vit.encode(rows, ["row"] * len(rows)))).logits
    torch.testing.assert_close(logits, run.logits, rtol=1e-4, atol=1e-5)


def test_a_block_that_is_not_there_is_refused(vit: ImageBackbone) -> None:
    with pytest.raises(RecipeError, match=r"method\.from_block is 3, but .* has 3 blocks: give at most 2"):
        build(LoRA(from_block=3), target_of(vit, small.picture_data()), {}, 0)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_says_what_runs_once(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", per_class=8)
    tiny.save("vit", tmp_path / "vit")
    options = ["--backbone", "./vit", "--data", "pictures", "--method", "partial", "--freeze", "1", "--epochs", "1"]

    first = cli.ok("run", *options, "--cache-blocks", "always", "--out", "one")
    second = cli.ok("run", *options, "--cache-blocks", "always", "--lr", "1e-3", "--out", "two")

    assert "the first 1 of 2 run once: as asked; 24 rows computed" in first
    assert "the first 1 of 2 run once: as asked; 0 rows computed" in second
    refused = cli.refused("run", *options, "--cache-blocks", "perhaps", "--out", "three")
    assert "cache_blocks: Input should be 'auto', 'always' or 'never'" in refused
