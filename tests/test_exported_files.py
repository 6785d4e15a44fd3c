"""What a run exported is what is asked and pushed: files are compared with the record, and scores are numbers."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import tiny
import torch
from runs import Cli
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

import hftl
from hftl.errors import HftlError
from hftl.export.push import uploads_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on small pictures."""
    folder = tmp_path_factory.mktemp("finished")
    backbone, data = tiny.save("vit", folder / "backbone"), runs.write_images(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HFTL_CACHE", str(folder / "cache"))
        hftl.run(hftl.Recipe(backbone=str(backbone), data=str(data)), out=folder / "run", quiet=True)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one bit of the weights": ("model.safetensors", flip_a_bit),
    "weights cut short": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:1000])),
    "weights gone": ("model.safetensors", Path.unlink),
    "an empty configuration": ("config.json", lambda path: path.write_bytes(b"")),
    "another configuration": ("config.json", lambda path: path.write_bytes(b"{}")),
    "another processor": ("preprocessor_config.json", lambda path: path.write_bytes(b"{}")),
}


def test_the_record_holds_size_and_checksum_of_every_file_but_the_card(finished: Path) -> None:
    model = finished / "run" / "model"
    expected = {
        f"model/{path.name}": f"{path.stat().st_size} bytes, xxh3_128 {xxh3_128(path.read_bytes()).hexdigest()}"
        for path in model.iterdir()
        if path.name != "README.md"
    }
    assert runs.metrics(finished / "run")["files"] == expected
    assert {"model/config.json", "model/model.safetensors"} <= set(expected)


def test_exported_files_have_the_permissions_that_new_files_have(finished: Path) -> None:
    (finished / "new").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (finished / "run").rglob("*") if path.is_file()}
    assert modes == {stat.S_IMODE((finished / "new").stat().st_mode)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_neither_asked_nor_pushed(cli: Cli, run: Path, damage: str) -> None:
    name, do = DAMAGES[damage]
    do(run / "model" / name)
    picture = str(next((run.parent / "data").rglob("*.png")))
    for model in (run, run / "model"):
        for line in (
            ["predict", model, picture],
            ["evaluate", model, "--data", run.parent / "data"],
            ["push", model, "me/x", "--dry-run"],
        ):
            assert cli(*line) == 1, (line, cli.out, cli.err)
            (said,) = cli.err.splitlines()
            assert f"{run / 'model' / name} is not what the run wrote" in said


def test_a_change_on_purpose_is_used_from_a_copy_as_the_message_says(cli: Cli, run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    config["id2label"] = {number: f"{label}, renamed" for number, label in config["id2label"].items()}
    config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    (run / "model" / "config.json").write_text(json.dumps(config))
    picture = next((run.parent / "data").rglob("*.png"))
    assert cli("predict", run, picture) == 1
    assert "copy" in cli.err
    shutil.copytree(run / "model", tmp_path / "mine")
    assert ", renamed" in cli.ok("predict", tmp_path / "mine", picture)


def test_the_card_may_be_edited(cli: Cli, run: Path) -> None:
    with (run / "model" / "README.md").open("a") as card:
        card.write("\nMine.\n")
    cli.ok("predict", run, next((run.parent / "data").rglob("*.png")))


@pytest.mark.parametrize("name", ["metrics.json", "recipe.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"eval": 3}', b"[" * 100_000])
def test_a_garbled_record_is_one_line(cli: Cli, run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    line = ["push", run, "me/x", "--dry-run"] if name == "metrics.json" else ["run", run, "--show"]
    assert cli(*line) in (1, 2)
    (said,) = cli.err.splitlines()
    assert f"{run / name} is damaged" in said


def test_a_run_of_a_release_without_checksums_still_works(cli: Cli, run: Path) -> None:
    metrics = runs.metrics(run)
    del metrics["files"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    cli.ok("predict", run, next((run.parent / "data").rglob("*.png")))


def test_a_model_outside_a_run_is_not_pushed_when_nobody_could_load_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    for name, content in [
        ("model.safetensors", (run / "model" / "model.safetensors").read_bytes()[:1000]),
        ("config.json", b"{}"),
        ("config.json", b""),
        ("preprocessor_config.json", b"{"),
    ]:
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        shutil.copytree(run / "model", tmp_path / "mine")
        (tmp_path / "mine" / name).write_bytes(content)
        assert cli("push", tmp_path / "mine", "me/x", "--dry-run") == 1
        assert f"{name} is damaged" in cli.err


def test_scores_that_are_no_numbers_are_an_error(cli: Cli, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["classifier.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    picture = next((run.parent / "data").rglob("*.png"))
    for line in (
        ["predict", tmp_path / "broken", picture, "--json"],
        ["evaluate", tmp_path / "broken", "--data", run.parent / "data"],
    ):
        assert cli(*line) == 1
        assert (cli.out, "broken gives scores that are no numbers" in cli.err) == ("", True)


def test_what_else_the_export_wrote_is_pushed_if_it_is_text_and_named_if_not(run: Path) -> None:
    extra = {"mel_filters.json": b"[1]", "notes.txt": b"x", "filters.npy": b"x", "deep/er.json": b"{}", ".env": b"x"}
    for name, content in extra.items():
        (run / "model" / name).parent.mkdir(exist_ok=True)
        (run / "model" / name).write_bytes(content)
    metrics = runs.metrics(run)
    # As if a plugin's save_processor had written all but one of them.
    for name in set(extra) - {"notes.txt"}:
        content = extra[name]
        metrics["files"][f"model/{name}"] = f"{len(content)} bytes, xxh3_128 {xxh3_128(content).hexdigest()}"
    (run / "metrics.json").write_text(json.dumps(metrics))
    uploads, left = uploads_of(run, "me/x")
    assert {upload.path for upload in uploads} & set(extra) == {"mel_filters.json"}
    assert left == [".env", "deep/er.json", "filters.npy"]


def test_every_module_of_a_pooled_head_with_a_hidden_layer_is_pushed(tmp_path: Path) -> None:
    backbone, data = tiny.save("bert", tmp_path / "bert"), runs.write_texts(tmp_path / "t.csv", 60)
    method = hftl.Head(pooling="mean", hidden=4)
    hftl.run(hftl.Recipe(backbone=str(backbone), data=str(data), method=method), out=tmp_path / "run", quiet=True)
    uploads, left = uploads_of(tmp_path / "run", "me/x")
    modules = json.loads((tmp_path / "run" / "model" / "modules.json").read_text())
    pushed = {upload.path for upload in uploads}
    assert {f"{module['path']}/config.json" for module in modules if module["path"]} <= pushed
    assert left == []


def test_predicting_from_python_raises_the_same(run: Path) -> None:
    flip_a_bit(run / "model" / "model.safetensors")
    with pytest.raises(HftlError, match="is not what the run wrote"):
        hftl.load(run)
