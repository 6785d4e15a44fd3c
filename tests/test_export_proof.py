"""An export is compared with its run before it is called one; what disagrees is reconciled, refused or said."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_rows_alone import HEAD, backbone_of, texts

import hftl
from hftl.backbones.protocol import Target
from hftl.data import load_data
from hftl.errors import BackboneError, BadRowError, HftlError
from hftl.export import proof
from hftl.export.loaded import LoadedModel
from hftl.export.proof import Evidence, prove_exports
from hftl.export.trained import Exported
from hftl.tasks import Task


def run(backbone: Path, data: Path, out: Path, **options) -> hftl.Run | None:
    return hftl.run(hftl.Recipe(backbone=str(backbone), data=str(data), method=HEAD), out=out, quiet=True, **options)


def pictures(folder: Path, mode: str = "RGB") -> Path:
    draw = np.random.default_rng(0)
    for i in range(18):
        file = folder / "xyz"[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if mode == "RGB":
            pixels = draw.integers(0, 80, (32, 32, 3))
            pixels[..., i % 3] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(file)
        else:
            Image.fromarray((draw.integers(0, 9000, (32, 32)) + 20_000 * (i % 3)).astype(np.uint16)).save(file)
    return folder


def evidence(run: Path, data: Path, backbone) -> Evidence:
    """What a run's export is compared with, made of the run's own files by plain transformers."""
    read = load_data(str(data), wants=backbone.wants, suffixes=backbone.suffixes)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    batch = tokenizer([row[0] for row in read.test.inputs], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    return Evidence(read.test, read.task, logits, "no", False, torch.device("cpu"))


def test_an_export_that_answers_otherwise_is_no_model(tmp_path: Path) -> None:
    source, data = tiny.save("bert", tmp_path / "bert"), texts(tmp_path)
    run(source, data, tmp_path / "run")
    backbone, model = backbone_of(source), tmp_path / "run" / "model"
    target = Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b", "c"]))
    given = evidence(tmp_path / "run", data, backbone)
    exported = [Exported(model, "transformers")]
    assert prove_exports(exported, target, given, print) == exported
    tensors = load_file(model / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"] + torch.tensor([0.0, 0.5, 0.0])
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(HftlError, match=r"the logits of texts.csv row \d+ alone are 0.5 apart") as caught:
        prove_exports(exported, target, given, print)
    assert "\n" not in str(caught.value)
    assert not model.exists()
    assert (tmp_path / "run" / "model.rejected" / "config.json").exists()


def test_an_export_whose_rows_depend_on_their_batch_is_no_model(tmp_path: Path) -> None:
    source, data = tiny.save("llama", tmp_path / "llama"), texts(tmp_path)
    run(source, data, tmp_path / "run")
    backbone, model = backbone_of(source), tmp_path / "run" / "model"
    target = Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b", "c"]))
    given = evidence(tmp_path / "run", data, backbone)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    with pytest.raises(HftlError, match=r"\d rows in one batch are"):
        prove_exports([Exported(model, "transformers")], target, given, print)


def test_a_run_without_a_faithful_export_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = tiny.save("vit", tmp_path / "vit"), pictures(tmp_path / "data")
    monkeypatch.setattr(proof, "TOLERANCES", {"no": -1.0})
    monkeypatch.setattr(proof, "NOISE", 0.0)
    with pytest.raises(HftlError, match="it is kept as"):
        run(source, data, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_merge_that_is_not_exact_leaves_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BiT standardises its convolutions' weights: an update beside them is no update of them."""
    config = transformers.BitConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4, num_labels=3, width_factor=1
    )
    torch.manual_seed(0)
    transformers.BitForImageClassification(config).save_pretrained(tmp_path / "bit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "bit")
    data = pictures(tmp_path / "data")
    method = hftl.LoRA(r=4, alpha=64, epochs=6, lr=3e-3, init="random")
    hftl.run(hftl.Recipe(backbone=str(tmp_path / "bit"), data=str(data), method=method), out=tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "only the adapter is kept: merged into the weights it is another model" in said
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(BackboneError, match="holds only an adapter"):
        LoadedModel.load(tmp_path / "run")


def test_deep_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = tiny.save("vit", tmp_path / "vit"), pictures(tmp_path / "data", "I;16")
    hftl.run(hftl.Recipe(backbone=str(source), data=str(data), method=HEAD), out=tmp_path / "run")
    assert "has more than 8 bits a pixel: hftl scales such pictures" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stated", [None, 2, -1, 7])
def test_padding_is_one_token_in_config_and_tokenizer(tmp_path: Path, stated: int | None) -> None:
    """A decoder finds its last token by the configuration's padding token, wherever else it stands."""
    source = tiny.save("llama", tmp_path / "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"pad_token_id": stated}))
    backbone = backbone_of(source)
    assert bool(backbone.notes) == (stated is not None)
    assert ("pad_token_id" in backbone.identity()) == (stated is not None)
    run(source, texts(tmp_path), tmp_path / "run")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    rows = ["red cat sat", "blue", "the dog ran over the hill under the tree"]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(row, return_tensors="pt")).logits for row in rows])
        together = model(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


def test_positions_counted_from_padding_keep_their_token(tmp_path: Path) -> None:
    """RoBERTa's weights were trained with positions that begin after the configuration's padding token."""
    source = tiny.save("roberta", tmp_path / "roberta")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = "[UNK]"
    tokenizer.save_pretrained(source)
    backbone = backbone_of(source)
    assert backbone.config("single_label", ["a", "b"]).pad_token_id == 0
    assert backbone.tokenizer.pad_token == "[PAD]"
    assert "from which it counts positions" in backbone.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id2label": {str(i): f"l{i}" for i in range(1, 8)}}, "names no label for output 0 .*number them from 0 to 6"),
        (
            {"num_channels": 1},
            r"projection.weight has the shape \[32, 3, 8, 8\], its config.json describes \[32, 1, 8, 8\]",
        ),
        (
            {"image_size": 40},
            r"position_embeddings has the shape \[1, 17, 32\], its config.json describes \[1, 26, 32\]",
        ),
        ({"num_hidden_layers": 10**7}, "its weights hold"),
        ({"hidden_size": 10**6, "num_attention_heads": 2}, "describes"),
        ({"num_labels": 10**9, "id2label": None}, "names 1,000,000,000 labels"),
    ],
    ids=["names from 1", "one channel", "size", "layers", "width", "labels"],
)
def test_a_model_that_contradicts_itself_is_refused_in_one_line(tmp_path: Path, change: dict, said: str) -> None:
    source = tiny.save("vit", tmp_path / "vit", head=True)
    config = json.loads((source / "config.json").read_text())
    del config["id2label"], config["label2id"]
    config["id2label"] = {str(i): f"l{i}" for i in range(7)}
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BackboneError, match=said) as caught:
        LoadedModel.load(source)
    assert "\n" not in str(caught.value)


def test_a_model_that_its_processor_does_not_suit_is_refused_in_one_line(tmp_path: Path) -> None:
    source = tiny.save("vit", tmp_path / "vit", head=True)
    tiny.model("vit", 7, num_channels=1).save_pretrained(source)
    for use in (LoadedModel.load, lambda where: run(where, pictures(tmp_path / "data"), tmp_path / "run")):
        with pytest.raises(BackboneError, match="the model cannot read what its own preprocessing gives") as caught:
            use(source)
        assert "\n" not in str(caught.value)
    settings = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5], "image_std": [0.5]}))
    with pytest.raises(BackboneError, match="its image processor cannot prepare a picture of three channels"):
        run(source, tmp_path / "data", tmp_path / "run2")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, file: str) -> None:
    source = tiny.save("vit", tmp_path / "vit")
    (source / file).unlink()
    os.mkfifo(source / file)
    with pytest.raises(BackboneError, match=f"{file} is no regular file"):
        backbone_of(source)


def test_tokens_and_types_without_an_embedding_are_named(tmp_path: Path) -> None:
    source = tiny.save("bert", tmp_path / "bert")
    config = json.loads((source / "config.json").read_text()) | {"type_vocab_size": 1}
    model = transformers.AutoModel.from_config(transformers.BertConfig(**config))
    model.save_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source, model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    tokenizer.add_tokens([f"new{i}" for i in range(100)])
    tokenizer.save_pretrained(source)
    backbone = backbone_of(source)
    backbone.build(backbone.config("single_label", ["a", "b"]))
    with pytest.raises(BadRowError, match=r"row 3: its token 'new99' has the id 128, but .* embeddings for 120 tokens"):
        backbone.encode([("red cat",), ("a new99 dog",)], ["row 2", "row 3"])
    with pytest.raises(BadRowError, match="row 9: its second text is marked with token type 1"):
        backbone.encode([("red cat", "dog")], ["row 9"])


def test_an_export_reads_weights_with_one_file_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening maps the whole file; under a limit of address space that counts."""
    from hftl.backbones import weights

    opened: list[Path] = []
    original = weights.safe_open

    def counted(file, **options):
        opened.append(file)
        return original(file, **options)

    source = tiny.save("bert", tmp_path / "bert")
    backbone = backbone_of(source)
    monkeypatch.setattr(weights, "safe_open", counted)
    rule = weights.NameRule("", [])
    weights.write_weights(tmp_path / "copy.safetensors", rule, backbone.weight_files(), {}, torch.float32)
    assert len(opened) == 2
    copied, given = load_file(tmp_path / "copy.safetensors"), load_file(source / "model.safetensors")
    assert copied.keys() == given.keys()
    assert all(torch.equal(copied[name], given[name]) for name in given)


def test_a_proof_takes_few_rows(tmp_path: Path) -> None:
    source, data = tiny.save("bert", tmp_path / "bert"), texts(tmp_path, rows=200)
    read = load_data(str(data), wants="text", suffixes=frozenset())
    given = Evidence(read.test, read.task, torch.zeros(len(read.test), 3), "no", False, torch.device("cpu"))
    sizes = [len(text[0]) for text in read.test.inputs]
    assert len(given.rows) <= 8
    assert sizes.index(max(sizes)) in given.rows
    assert sizes.index(min(sizes)) in given.rows
    few = replace(given, test=read.test.select(np.array([4])))
    assert few.rows == [0]
    assert source.exists()
