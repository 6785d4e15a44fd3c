"""Whatever is wrong with the input is said in one line, with exit status 2, and costs nothing that was finished."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from PIL import Image
from runs import RECIPES, metrics, predictions
from test_run import write_recipe

DIGITS = RECIPES / "digits.py"


@pytest.fixture
def image_recipe(tmp_path: Path) -> Path:
    backbone = tiny.save("vit", tmp_path / "backbone")
    return write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))


@pytest.fixture
def text_recipe(tmp_path: Path) -> Path:
    backbone = tiny.save("bert", tmp_path / "backbone")
    return write_recipe(tmp_path, backbone, runs.write_texts(tmp_path / "data.csv", 60))


def test_unknown_backbones_are_answered_with_close_matches(cli):
    assert "hftl/glyph-vit-tiny" in cli.refused("run", DIGITS, "--backbone", "glyph-vit-tny")
    assert "did you mean" in cli.refused("run", DIGITS, "--backbone", "facebook/dinov2-smal", "--offline")
    assert "no folder './nowhere'" in cli.refused("run", DIGITS, "--backbone", "./nowhere")


def test_a_backbone_that_is_not_here_offline_names_the_ways(cli):
    line = cli.refused("run", DIGITS, "--backbone", "google/vit-base-patch16-224-in21k", "--offline")
    assert "hf download google/vit-base-patch16-224-in21k" in line
    assert "local folder" in line


def test_folders_that_are_no_backbone(cli, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in cli.refused("run", DIGITS, "--backbone", tmp_path / "empty")
    backbone = tiny.save("vit", tmp_path / "backbone")
    (backbone / "model.safetensors").rename(backbone / "pytorch_model.bin")
    assert "reads safetensors" in cli.refused("run", DIGITS, "--backbone", backbone)
    (backbone / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"rubbish")
    assert "damaged" in cli.refused("run", DIGITS, "--backbone", backbone)
    (backbone / "config.json").write_text("{")
    cli.refused("run", DIGITS, "--backbone", backbone)
    (backbone / "config.json").write_text('{"model_type": "t5"}')
    cli.refused("run", DIGITS, "--backbone", backbone)


def test_data_that_cannot_be_found(cli, text_recipe: Path, tmp_path: Path):
    assert "data.csv" in cli.refused("run", text_recipe, "--data", tmp_path / "date.csv")
    assert "sample" in cli.refused("run", DIGITS, "--data", "sample:digit")
    assert "'sentense'" in cli.refused("run", text_recipe, "--input-columns", "sentense")
    assert "'label'" in cli.refused("run", text_recipe, "--label-columns", "intent")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a cat,x\nthe dog,x\na bird,x\n", "class"),
        ("", "row"),
        ("a cat,\nthe dog,x\na bird,y\n", "label"),
    ],
    ids=["one class", "no rows", "no label"],
)
def test_labels_that_cannot_be_learned(cli, text_recipe: Path, tmp_path: Path, rows: str, said: str):
    (tmp_path / "bad.csv").write_text("text,label\n" + rows)
    assert said in cli.refused("run", text_recipe, "--data", tmp_path / "bad.csv")
    assert not Path("runs").exists(), "nothing is left behind"


def test_labels_that_training_never_saw(cli, text_recipe: Path, tmp_path: Path):
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na cat,x\nthe dog,y\n" * 1)
    (folder / "test.csv").write_text("text,label\na cat,x\nthe dog,z\n")
    assert "z" in cli.refused("run", text_recipe, "--data", folder)


def test_rows_without_label_are_dropped_and_said(cli, text_recipe: Path, tmp_path: Path):
    lines = [f"the cat sat over {n} rug,{n % 2}" for n in range(40)] + ["a dog,-1", "a bird,-1"]
    (tmp_path / "ints.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    out = cli.ok("run", text_recipe, "--data", tmp_path / "ints.csv", "--out", "run")
    assert "2 rows" in out
    assert metrics(Path("run"))["features"]["rows"] == 40


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("return 'no recipe'", "returned a str"),
        ("return Recipe(backbone='x')", "data"),
        ("return Recipe(backbone='x', data='y', bakcbone='z')", "backbone"),
        ("return Recipe(backbone='x', data='y', seed=-1)", "seed"),
    ],
)
def test_recipes_that_do_not_work(cli, tmp_path: Path, body: str, said: str):
    path = tmp_path / "broken.py"
    path.write_text(f"from hftl import Recipe, recipe\n@recipe\ndef broken() -> Recipe:\n    {body}\n")
    assert said in cli.refused("run", path)


def test_recipe_files_that_do_not_load(cli, tmp_path: Path):
    (tmp_path / "syntax.py").write_text("def broken(:\n")
    assert "line 1" in cli.refused("run", tmp_path / "syntax.py")
    (tmp_path / "none.py").write_text("x = 1\n")
    assert "@recipe" in cli.refused("run", tmp_path / "none.py")
    assert "digits.py" in cli.refused("run", str(RECIPES / "digit.py"))
    assert "hftl recipes" in cli.refused("run", "nothing-of-the-kind")
    (tmp_path / "default.py").write_text("from hftl import Recipe, recipe\n@recipe\ndef f(x: int) -> Recipe: ...\n")
    assert "needs a default" in cli.refused("run", tmp_path / "default.py")


def test_flags_that_are_wrong_name_the_right_ones(cli, tmp_path: Path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from hftl import Recipe, recipe\n@recipe\ndef sized(size: int = 3, big: bool = False) -> Recipe:\n"
        "    return Recipe(backbone='hftl/glyph-vit-tiny', data='sample:digits', seed=size + 100 * big)\n"
    )
    assert "seed=103" in cli.ok("run", path, "--big", "--show")
    assert "seed=7" in cli.ok("run", path, "--size", "7", "--show")
    assert "seed=5" in cli.ok("run", path, "--size", "7", "--seed", "5", "--show")
    assert "--size" in cli.refused("run", path, "--sise", "7")
    assert "--size" in cli.refused("run", path, "--size", "many")
    assert "method.pooling" in cli.refused("run", path, "--set", "method.poolin=mean")
    assert "native" in cli.refused("run", path, "--pooling", "max")
    assert "head" in cli.refused("run", path, "--method", "heads")
    assert "FIELD=VALUE" in cli.refused("run", path, "--set", "seed")


def test_a_finished_run_is_not_overwritten(cli, image_recipe: Path, tmp_path: Path):
    cli.ok("run", image_recipe, "--out", "run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    assert "finished run" in cli.refused("run", image_recipe, "--out", "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert "no run of hftl" in cli.refused("run", image_recipe, "--out", "other")
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}


def test_an_image_that_cannot_be_decoded(cli, image_recipe: Path, tmp_path: Path):
    bad = tmp_path / "data" / "class1" / "bad.png"
    bad.write_bytes((tmp_path / "data" / "class1" / "0.png").read_bytes()[:60])
    (tmp_path / "data" / "class2" / "void.png").write_bytes(b"")
    line = cli.refused("run", image_recipe, "--out", "run")
    assert "class1/bad.png" in line or "class2/void.png" in line
    out = cli.ok("run", image_recipe, "--out", "skipped", "--on-bad-row", "skip")
    assert "2 rows could not be decoded" in out
    listed = json.loads(Path("skipped/skipped.json").read_text())
    assert sorted(row["row"] for row in listed) == ["class1/bad.png", "class2/void.png"]
    assert metrics(Path("skipped"))["features"]["rows"] == 18
    # What was computed before the bad row was met is kept.
    assert metrics(Path("skipped"))["features"]["computed"] <= 18
    # Fine-tuning that computes no features finds the same rows.
    tuning = ("--method", "full", "--init", "random", "--epochs", "1", "--out", "tuned")
    assert "2 rows could not be decoded" in cli.ok("run", image_recipe, *tuning, "--on-bad-row", "skip")
    tuned = json.loads(Path("tuned/skipped.json").read_text())
    assert sorted(row["row"] for row in tuned) == ["class1/bad.png", "class2/void.png"]
    assert sum(metrics(Path("tuned"))["rows"].values()) == 18


def test_a_decompression_bomb_is_refused(cli, image_recipe: Path, tmp_path: Path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "data" / "class0" / "bomb.png")
    assert "bomb" in cli.refused("run", image_recipe, "--out", "run")


def test_images_of_every_mode_become_features(cli, image_recipe: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "class0"
    pixels = rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(folder / "rgba.png")
    Image.fromarray(pixels, "RGBA").convert("P").save(folder / "palette.gif")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels, "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    frames = [Image.fromarray(pixels[..., i]) for i in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    cli.ok("run", image_recipe, "--out", "run")
    assert metrics(Path("run"))["features"]["computed"] == 24


def test_empty_and_endless_texts(cli, text_recipe: Path, tmp_path: Path):
    long = "the cat " * 100
    lines = [f"the {a} cat sat {b},{label}" for a in "abc" for b in "def" for label in ("x", "y")]
    (tmp_path / "odd.csv").write_text("text,label\n" + "\n".join([*lines, '"",x', f"{long},y", f"{long},y"]) + "\n")
    out = cli.ok("run", text_recipe, "--data", tmp_path / "odd.csv", "--out", "run")
    assert "2 texts were longer" in out
    assert metrics(Path("run"))["features"]["truncated"] == 2
    assert np.isfinite(np.array(predictions(Path("run"))["scores"])).all()
    # A warm run says so too, though it tokenises nothing.
    assert "2 texts were longer" in cli.ok("run", text_recipe, "--data", tmp_path / "odd.csv", "--out", "again")


def test_a_missing_image_of_a_table_is_named(cli, image_recipe: Path, tmp_path: Path):
    rows = [f"data/class{i % 3}/{i // 3}.png,class{i % 3}" for i in range(18)] + ["data/class0/gone.png,class0"]
    (tmp_path / "table.csv").write_text("file,label\n" + "\n".join(rows) + "\n")
    assert "gone.png" in cli.refused("run", image_recipe, "--data", tmp_path / "table.csv")
    cli.ok("run", image_recipe, "--data", tmp_path / "table.csv", "--out", "run", "--on-bad-row", "skip")
    assert [row["row"].split(" ")[-1] for row in json.loads(Path("run/skipped.json").read_text())] == [
        "(data/class0/gone.png)"
    ]


def test_an_interrupted_extraction_goes_on_where_it_was(
    cli, image_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs.write_images(tmp_path / "data", per_class=20)
    from hftl.backbones import vision

    encode = vision.ImageBackbone.encode
    calls = itertools.count(1)

    def interrupted(self, rows, names):
        # One step, so that no other thread comes between counting and asking.
        if next(calls) > 40:
            raise KeyboardInterrupt
        return encode(self, rows, names)

    with monkeypatch.context() as patched:
        patched.setattr(vision.ImageBackbone, "encode", interrupted)
        assert cli("run", image_recipe, "--out", "run") == 130
    assert "run the same command again" in cli.err
    cli.ok("run", image_recipe, "--out", "run")
    assert 0 < metrics(Path("run"))["features"]["computed"] < 60
    shutil.rmtree("run")
