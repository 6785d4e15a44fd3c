"""What is stored of a row, and what is exported, is what the model gives for that row alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import hftl
from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.batching import Probe, equal_length_groups, needs_equal_lengths, rows_of
from hftl.backbones.protocol import Encoded
from hftl.errors import BadRowError, CutError
from hftl.export.loaded import LoadedModel
from hftl.frozen.view import EQUAL_LENGTHS
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore, cache_root


@pytest.fixture(scope="module")
def architectures() -> ModuleType:
    """The benchmark that builds every classification architecture of transformers."""
    path = Path(__file__).parents[1] / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules["architectures"] = module
    with pytest.MonkeyPatch.context() as patch:
        # As a command has its own folder.
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module


def backbone_of(folder: Path):
    spec = hftl_resolve_backbone(str(folder))
    assert spec is not None
    return spec.load(BackboneOptions())


def texts(folder: Path, *, rows: int = 45) -> Path:
    """Ragged texts of three classes; those of one class do not have one length."""
    words = [word for word in tiny.WORDS if word not in ("red", "blue", "cat")]
    draw = np.random.default_rng(0)
    lines = ["text,label"]
    for i in range(rows):
        first = ("red", "blue", "cat")[i % 3]
        rest = draw.choice(words, size=int(draw.choice([2, 4, 7, 11, 40])))
        lines.append(f"{first} {' '.join(rest)},{'abc'[i % 3]}")
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder / "texts.csv"


HEAD = hftl.Head(folds=2, strengths=[1.0], calibrate=False)

EXACT = [
    *[("text", name) for name in ("canine", "fnet", "t5gemma")],  # padding changes their numbers
    *[("image", name) for name in ("levit", "swiftformer")],  # a head with running statistics
    ("image", "pvt"),  # `num_labels` beside `id2label`
]


@pytest.mark.parametrize(("modality", "name"), EXACT, ids=[name for _, name in EXACT])
def test_run_and_export_agree_row_by_row(architectures: ModuleType, modality: str, name: str, tmp_path: Path) -> None:
    make = architectures.texts if modality == "text" else architectures.pictures
    outcome = architectures.through_hftl(modality, name, make(tmp_path, 30), HEAD)
    assert outcome.status == "exact", outcome.detail


@pytest.mark.parametrize("name", ["convbert", "nystromformer", "yoso", "bert", "mpnet", "bart"])
def test_whether_padding_counts_is_measured(architectures: ModuleType, name: str, tmp_path: Path) -> None:
    architectures.checkpoint("text", name, tmp_path)
    backbone = backbone_of(tmp_path)
    model, _ = backbone.build(backbone.config("single_label", ["a", "b"]))
    assert needs_equal_lengths(model, backbone.probes()) == (name not in ("bert", "mpnet", "bart"))


def test_a_tokenizer_without_a_mask_needs_equal_lengths(tmp_path: Path) -> None:
    """BERT attends to padding that no mask names; the probes know their rows all the same."""
    tiny.save("bert", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, model_input_names=["input_ids"])
    tokenizer.save_pretrained(tmp_path)
    backbone = backbone_of(tmp_path)
    model, _ = backbone.build(backbone.config("single_label", ["a", "b"]))
    assert "attention_mask" not in backbone.probes()[0]
    assert needs_equal_lengths(model, backbone.probes())


class Mates(nn.Module):
    """A model whose rows see one another: a batch's mean is part of each row's logits."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        rows = (input_ids * attention_mask).sum(1, keepdim=True).float()
        return SequenceClassifierOutput(logits=torch.cat([rows, rows - rows.mean()], 1))


def test_rows_that_see_one_another_are_refused() -> None:
    probe = {
        "input_ids": torch.tensor([[3, 4, 5, 6], [6, 7, 8, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }
    with pytest.raises(CutError, match="Mates gives a row other numbers in a batch than alone") as caught:
        needs_equal_lengths(Mates(), [probe])
    assert "\n" not in str(caught.value)


def test_rows_without_padding() -> None:
    ids = torch.tensor([[3, 4, 5], [0, 6, 7]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    first, second = rows_of({"input_ids": ids, "attention_mask": mask, "pixel_values": torch.ones(2, 3, 4, 4)})
    assert first["input_ids"].tolist() == [[3, 4, 5]]
    assert second["input_ids"].tolist() == [[6, 7]]
    assert second["attention_mask"].tolist() == [[1, 1]]
    assert second["pixel_values"].shape == (1, 3, 4, 4)
    known = Probe({"input_ids": ids}, [{"input_ids": ids[:1]}, {"input_ids": ids[1:, 1:]}])
    assert rows_of(known)[1]["input_ids"].tolist() == [[6, 7]]


def test_rows_are_grouped_by_length() -> None:
    rows = [Encoded({"input_ids": [1] * n}, cost=n) for n in (3, 5, 3, 4, 5, 3)]
    assert equal_length_groups(rows) == [[0, 2, 5], [1, 4], [3]]
    assert equal_length_groups(rows, most=2) == [[0, 2], [5], [1, 4], [3]]


def test_features_of_the_first_release_are_used_where_they_are_right(tmp_path: Path) -> None:
    """It did not ask whether padding counts; where it does not, its spaces are found and nothing is computed."""
    backbone, data = tiny.save("bert", tmp_path / "model"), texts(tmp_path)
    recipe = hftl.Recipe(backbone=str(backbone), data=str(data), method=HEAD)
    hftl.run(recipe, out=tmp_path / "cold", quiet=True)
    space = forget_what_was_proved()
    assert "equal_lengths" not in json.loads((space / "space.json").read_text())["info"]
    hftl.run(recipe, out=tmp_path / "warm", quiet=True)
    metrics = json.loads((tmp_path / "warm" / "metrics.json").read_text())["features"]
    assert (metrics["computed"], metrics["reused"]) == (0, 45)
    assert json.loads((cache_root() / "settled.json").read_text()) == {metrics["space"]: False}


def test_features_of_the_first_release_are_left_where_padding_changed_them(
    architectures: ModuleType, tmp_path: Path
) -> None:
    architectures.checkpoint("text", "fnet", tmp_path / "model")
    data = architectures.texts(tmp_path, 30)
    recipe = hftl.Recipe(backbone=str(tmp_path / "model"), data=str(data), method=HEAD)
    hftl.run(recipe, out=tmp_path / "new", quiet=True)
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())["features"]
    assert metrics["equal_lengths"]
    space = forget_what_was_proved()
    description = json.loads((space / "space.json").read_text())
    # Its name says how its rows ran, so that nobody takes it for a space of padded batches.
    assert EQUAL_LENGTHS.items() <= description["identity"].items()


def forget_what_was_proved() -> Path:
    """Rewrite the only space's description as the first release wrote it; its folder."""
    from hftl.store.description import Description

    store = FeatureStore(cache_root())
    (path,) = [Path(summary.path) for summary in store.spaces()]
    described = Description.read(path / "space.json")
    assert described is not None
    info = {key: value for key, value in described.info.items() if key != "equal_lengths"}
    (path / "space.json").write_bytes(replace(described, info=info).encode())
    return path


def test_an_exported_model_runs_rows_as_if_alone(architectures: ModuleType, tmp_path: Path) -> None:
    architectures.checkpoint("text", "fnet", tmp_path / "model")
    data = architectures.texts(tmp_path, 30)
    hftl.run(
        hftl.Recipe(backbone=str(tmp_path / "model"), data=str(data), method=HEAD), out=tmp_path / "run", quiet=True
    )
    model = LoadedModel.load(tmp_path / "run")
    rows = [(" ".join(architectures.WORDS[:n]),) for n in (9, 2, 30, 2, 9)]
    encoded = model.backbone.encode(rows, ["row"] * len(rows))
    alone = torch.cat([model.logits([row]) for row in encoded])
    torch.testing.assert_close(model.logits(encoded), alone, atol=1e-5, rtol=1e-4)
    assert model.equal_lengths


def test_a_row_that_batches_refuse_runs_alone(tmp_path: Path) -> None:
    """BART wants equally many end tokens in each row of a batch; a text may hold one in words."""
    backbone = tiny.save("bart", tmp_path / "model")
    data = texts(tmp_path)
    lines = data.read_text().splitlines()
    lines[4] = lines[4].replace(" ", " [SEP] ", 1)
    data.write_text("\n".join(lines) + "\n")
    hftl.run(hftl.Recipe(backbone=str(backbone), data=str(data), method=HEAD), out=tmp_path / "run", quiet=True)
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["features"]
    assert counts["computed"] == counts["rows"] == 45
    answers = hftl.load(tmp_path / "run").predict([line.split(",")[0] for line in lines[1:6]])
    assert len(answers) == 5


def test_a_row_that_the_model_cannot_read_is_named(architectures: ModuleType, tmp_path: Path) -> None:
    """CANINE wants four tokens at least."""
    architectures.checkpoint("text", "canine", tmp_path / "model")
    data = texts(tmp_path)
    data.write_text(data.read_text() + "w1,a\n")
    recipe = hftl.Recipe(backbone=str(tmp_path / "model"), data=str(data), method=HEAD)
    with pytest.raises(BadRowError, match=r"texts.csv row 46: model cannot read it"):
        hftl.run(recipe, out=tmp_path / "run", quiet=True)
    hftl.run(recipe, out=tmp_path / "run", quiet=True, on_bad_row="skip")
    assert json.loads((tmp_path / "run" / "skipped.json").read_text())[0]["row"] == "texts.csv row 46"
