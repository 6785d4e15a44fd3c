"""Features and frozen blocks in 16 bits on the disk: half the bytes, an error that is said, and honest proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from finetune import small
from runs import Cli, metrics, predictions, stored_shards, write_images, write_texts
from safetensors.torch import load_file, save_file
from test_features import load
from test_frozen_blocks import ORIGIN, QUICK, Ran, target_of

from hftl.backbones.cut.blocks import Padding, continued
from hftl.data import load_data
from hftl.errors import HftlError
from hftl.export.loaded import LoadedModel
from hftl.export.proof import Evidence, prove_exports
from hftl.export.trained import Exported
from hftl.finetune.stored import StoredEncoder
from hftl.frozen.asked import stored_logits
from hftl.frozen.blocks import block_rows
from hftl.frozen.rounding import half_ulp, logit_slack, rounded
from hftl.frozen.view import View, open_space
from hftl.methods import LoRA, Partial
from hftl.store.space import Space
from hftl.store.store import FeatureStore, cache_root

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DATA = ["--backbone", "./bert", "--data", "texts.csv", "--pooling", "mean"]
BERT = ["run", *DATA, "--no-report"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    tiny.save("bert", tmp_path / "bert")
    return write_texts(tmp_path / "texts.csv", 60)


def stored(storage: str) -> dict[str, torch.Tensor]:
    """The stored vectors of mean-pooled texts, by the hex digits of the rows' names."""
    vectors = {}
    for identity, read in stored_shards():
        if (identity["storage"], identity["pooling"]) == (storage, "mean"):
            names = [bytes(row.tolist()).hex() for row in read["digests"]]
            vectors |= dict(zip(names, read["features"], strict=True))
    return vectors


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("storage", HALVES)
def test_features_take_half_the_bytes_and_are_the_nearest_numbers(storage: str, texts: Path, cli: Cli) -> None:
    whole = cli.ok(*BERT, "--out", "whole")
    said = cli.ok(*BERT, "--storage", storage, "--out", "half")

    exact, short = stored("float32"), stored(storage)
    assert exact.keys() == short.keys()
    assert len(short) > 30
    for name, vector in short.items():
        assert vector.dtype == HALVES[storage]
        assert 2 * vector.nbytes == exact[name].nbytes
        assert torch.equal(vector, exact[name].to(HALVES[storage]))
    off = max(float(((short[name].float() - v) / v).abs().max()) for name, v in exact.items())
    assert off <= half_ulp(storage)  # type: ignore[arg-type]
    assert f"in {storage} on the disk, half the bytes of float32: a number is rounded by {off:.2%} of it\n" in said
    assert metrics(Path("half"))["features"]["rounding"] == pytest.approx(off)
    assert "on the disk" not in whole
    assert f"of what was rounded to {storage} on the disk" in said


def test_each_storage_is_another_space(texts: Path, tmp_path: Path) -> None:
    backbone, store = load(tmp_path / "bert"), FeatureStore(tmp_path / "store")
    views = [View("mean", storage=storage, blocks=blocks) for storage in ("float32", *HALVES) for blocks in (None, 1)]

    ids = {open_space(store, backbone, ORIGIN, view).id for view in views}

    assert len(ids) == len(views)


def test_a_second_run_computes_what_is_new_alone_and_knows_the_bound(texts: Path, cli: Cli) -> None:
    cli.ok(*BERT, "--storage", "bf16", "--out", "one")
    again = cli.ok(*BERT, "--storage", "bf16", "--out", "two")
    with texts.open("a") as file:
        file.write("two bird flew under the rug,birds\n")
    third = cli.ok(*BERT, "--storage", "bf16", "--out", "three")

    assert "features  0 computed" in again
    assert "rounded by 0.39% of it at most" in again
    assert "features  1 computed" in third
    assert predictions(Path("one"))["scores"] == predictions(Path("two"))["scores"]


def test_the_cache_names_the_storage_and_removes_it_as_any_space(texts: Path, cli: Cli) -> None:
    cli.ok(*BERT, "--storage", "bf16", "--out", "one")

    assert "mean in bf16" in cli.ok("cache", "ls")
    cli.ok("cache", "gc", "0B", "--yes")
    assert FeatureStore(cache_root()).spaces() == []
    assert "features  0 computed" not in cli.ok(*BERT, "--storage", "bf16", "--out", "two")


def test_a_number_that_fp16_cannot_hold_is_refused_and_bf16_holds_it(texts: Path, tmp_path: Path, cli: Cli) -> None:
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.1.output.LayerNorm.weight"))
    weights[name] *= 1e6
    save_file(weights, tmp_path / "bert" / "model.safetensors", {"format": "pt"})

    said = cli.refused(*BERT, "--storage", "fp16", "--out", "one")

    assert "texts.csv row" in said
    assert "and fp16 holds 65,504 at most: take --storage bf16, or float32" in said
    assert stored("fp16") == {}
    cli.ok("features", *DATA, "--storage", "bf16")
    assert all(bool(vector.isfinite().all()) for vector in stored("bf16").values())
    assert max(float(vector.abs().max()) for vector in stored("bf16").values()) > 65_504


def test_what_a_run_stored_in_half_answers_evaluate(texts: Path, cli: Cli) -> None:
    cli.ok(*BERT, "--storage", "bf16", "--out", "one")
    model = LoadedModel.load("one")
    data = load_data(str(texts), wants="text", suffixes=model.backbone.suffixes)

    rows, logits = stored_logits(model, data.test.inputs, FeatureStore(cache_root()))

    assert len(rows) == len(data.test)
    np.testing.assert_allclose(logits.softmax(-1), predictions(Path("one"))["scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", HALVES)
def test_the_slack_of_logits_holds_whatever_was_rounded(storage: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 300, generator=draw, dtype=torch.float64)
    # Of all sizes, below the smallest normal number of fp16 too.
    exact = torch.randn(200, 300, generator=draw) * 10 ** torch.empty(200, 300).uniform_(-7, 3, generator=draw)
    short, error = rounded(exact, HALVES[storage])

    slack = logit_slack(short.float(), weight.float(), storage)

    assert slack is not None
    moved = ((short.double() - exact.double()) @ weight.T).abs()
    assert bool((moved <= slack).all())
    assert bool((slack < 100 * moved.max()).any())
    assert error <= half_ulp(storage)
    assert logit_slack(exact, weight, "float32") is None


def test_an_export_that_is_off_by_more_than_the_rounding_is_no_model(texts: Path, tmp_path: Path, cli: Cli) -> None:
    cli.ok(*BERT, "--storage", "bf16", "--out", "one")
    model = LoadedModel.load("one")
    data = load_data(str(texts), wants="text", suffixes=model.backbone.suffixes)
    _, logits = stored_logits(model, data.test.inputs, FeatureStore(cache_root()))
    target = target_of(load(tmp_path / "bert"), data)
    most = float(logits.abs().max())
    slack = torch.full_like(logits, 0.1 * most)
    given = Evidence(data.test, data.task, logits + 0.05 * most, "no", False, torch.device("cpu"), "bf16", slack)
    exported = [Exported(Path("one/model"), "sentence-transformers")]

    assert prove_exports(exported, target, given, print) == exported
    off = Evidence(data.test, data.task, logits + 0.15 * most, "no", False, torch.device("cpu"), "bf16", slack)
    with pytest.raises(HftlError, match="the exported model does not give the run's predictions"):
        prove_exports(exported, target, off, print)


# ── frozen blocks ────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks_of(backbone: Any, storage: Any, precision: Any = "no") -> tuple[Any, Space]:
    device = None if precision == "no" else "cpu"
    data = small.picture_data(12, 4)
    view = View(blocks=1, storage=storage, precision=precision, device=device)
    rows = block_rows(FeatureStore(cache_root()), target_of(backbone, data), ORIGIN, view, data.splits(), quiet=True)
    return rows, rows.space


def bytes_of(space: Space) -> int:
    return sum(space.shard_sizes().values())


def test_blocks_take_half_the_bytes_and_are_rounded_once(tmp_path: Path) -> None:
    vit = small.image_backbone(tmp_path / "vit", num_hidden_layers=3)
    data = small.picture_data(12, 4)
    whole, space = blocks_of(vit, "float32")
    half, other = blocks_of(vit, "bf16")

    assert 2 * bytes_of(other) == pytest.approx(bytes_of(space), rel=0.05)
    assert whole.is_exact
    assert not half.is_exact
    assert 0 < half.rounding <= half_ulp("bf16")
    padding = Padding.of(vit.probes()[0])
    for exact, short in zip(
        *(StoredEncoder(vit, data.train, rows, padding)(range(12)) for rows in (whole, half)), strict=True
    ):
        for name, value in exact.inputs.items():
            assert short.inputs[name].dtype == value.dtype
            assert torch.equal(short.inputs[name], value.bfloat16().float())


def test_what_autocast_returns_in_bfloat16_reaches_the_block_that_trains_as_it_is(tmp_path: Path) -> None:
    resnet = small.image_backbone(tmp_path / "resnet", "resnet")
    data = small.picture_data(12, 4)
    rows, space = blocks_of(resnet, "bf16", "bf16")
    model, _ = target_of(resnet, data).build()
    encoder = StoredEncoder(resnet, data.train, rows, Padding.of(resnet.probes()[0]))
    pictures = [data.train.inputs[i] for i in range(12)]
    batch = resnet.collate(resnet.encode(pictures, ["picture"] * 12))
    got: list[torch.Tensor] = []
    first = model.get_submodule("resnet.encoder.stages.1")
    first.register_forward_pre_hook(lambda _module, args: got.append(args[0]))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
        with continued(model, model, rows.cut):
            model(**encoder.collate(encoder(range(12))))

    assert rows.is_exact
    assert rows.rounding == 0
    assert {spec.dtype for name, spec in space.columns.items() if name != "truncated"} == {"bfloat16"}
    fresh, from_store = got
    assert fresh.dtype == from_store.dtype == torch.bfloat16
    assert torch.equal(fresh, from_store)


def test_training_from_rounded_blocks_says_so_and_is_judged_by_it(tmp_path: Path, cli: Cli) -> None:
    write_images(tmp_path / "pictures", per_class=8)
    tiny.save("vit", tmp_path / "vit")
    options = ["run", "--backbone", "./vit", "--data", "pictures", "--method", "partial", "--freeze", "1"]
    options += ["--no-report", "--epochs", "1", "--cache-blocks", "always", "--storage", "bf16"]

    said = cli.ok(*options, "--out", "one")

    assert "in bf16 on the disk: a number that they return in 32 bits is rounded by 0.39% of it, so that this" in said
    assert "of what was rounded to bf16 on the disk (10.0% would be allowed)" in said
    assert "1 blocks in bf16" in cli.ok("cache", "ls")


def test_a_run_from_rounded_blocks_goes_on_to_the_bit(tmp_path: Path) -> None:
    vit = small.image_backbone(tmp_path / "vit", num_hidden_layers=3)
    method = Partial(**QUICK, freeze=1, cache_blocks="always", storage="fp16")
    whole = Ran(method, vit, small.picture_data(), tmp_path / "whole")
    Ran(method, vit, small.picture_data(), tmp_path / "part")
    newest = sorted((tmp_path / "part" / "checkpoints").glob("step-*"))
    for file in sorted(newest[-1].iterdir()):
        file.unlink()
    newest[-1].rmdir()

    again = Ran(method, vit, small.picture_data(), tmp_path / "part", resume=True)

    assert 0 < len(again.losses) < len(whole.losses)
    assert again.losses == whole.losses[-len(again.losses) :]
    assert torch.equal(again.logits, whole.logits)


def test_a_storage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="none are frozen: add from_block"):
        LoRA(storage="bf16")
    with pytest.raises(ValueError, match="keeps nothing: leave one out"):
        Partial(storage="bf16", cache_blocks="never")
