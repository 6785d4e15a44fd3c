"""What a backbone of a plugin does wrong is one line that names it, before work is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from test_rows_alone import HEAD, texts
from torch import Tensor, nn

import hftl
from hftl.errors import HftlError
from hftl.plugins.spec import BackboneSpec
from hftl.testing import check_backbone, checks
from hftl.testing.subject import Subject

Run = Callable[[type[hftl.TextBackbone]], str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run with a backbone of a class; the one line that says why that fails."""
    source, data = tiny.save("bert", tmp_path / "bert"), texts(tmp_path)

    def run(kind: type[hftl.TextBackbone]) -> str:
        spec = BackboneSpec("faulty", "text", lambda options: kind(hftl.Source.of(source)), plugin="faulty-plugin")
        monkeypatch.setattr("hftl.frozen.recipe.find", lambda ref: spec)
        with pytest.raises(HftlError) as caught:
            hftl.run(hftl.Recipe(backbone="faulty", data=str(data), method=HEAD), out=tmp_path / "run", quiet=True)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


class Wrapped(nn.Module):
    """A model with a forward of its own."""

    def __init__(self, model: Any, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, **inputs: Tensor) -> Any:
        return self.change(self.model(**inputs))


def wrapped(backbone: hftl.TextBackbone, config: Any, change: Callable[[Any], Any]) -> tuple[nn.Module, set[str]]:
    model, head = hftl.TextBackbone.build(backbone, config)
    return Wrapped(model, change).eval(), {f"model.{name}" for name in head}


class Plain(hftl.TextBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        return wrapped(self, config, lambda output: output.logits)


def test_a_forward_without_logits(refused: Run) -> None:
    assert "Wrapped returns Tensor, which has no `logits`" in refused(Plain)


class Dropping(hftl.TextBackbone):
    def collate(self, rows: Sequence[hftl.Encoded]) -> dict[str, Tensor]:
        return super().collate(rows[:-1] if len(rows) > 1 else rows)


def test_a_collate_that_drops_a_row(refused: Run) -> None:
    said = refused(Dropping)
    assert "collate made" in said
    assert "it has to give one row for each" in said


class Random(hftl.TextBackbone):
    """Random on words of the data, which the probes that prove it do not hold."""

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)

        def noisy(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            ids = args[0] if args else kwargs["input_ids"]
            words = torch.tensor(self.tokenizer.convert_tokens_to_ids(["red", "blue", "cat"]))
            known = torch.isin(ids, words).any(1)[:, None, None]
            return output + torch.randn_like(output) * known

        model.get_submodule("bert.embeddings").register_forward_hook(noisy, with_kwargs=True)
        return model, head


def test_a_random_backbone(refused: Run) -> None:
    assert "gives a row other features than a moment before" in refused(Random)


class Changing(hftl.TextBackbone):
    """Its body is another one each time it is loaded."""

    loads = 0

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)
        type(self).loads += 1
        with torch.no_grad():
            model.get_parameter("bert.embeddings.LayerNorm.weight").mul_(type(self).loads)
            model.get_parameter("bert.embeddings.LayerNorm.bias").add_(torch.linspace(-1, 1, 32) * type(self).loads)
        return model, head


def test_weights_that_change_between_runs(refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = tmp_path / "bert", tmp_path / "texts.csv"
    spec = BackboneSpec("changing", "text", lambda options: Changing(hftl.Source.of(source)), plugin="faulty-plugin")
    monkeypatch.setattr("hftl.frozen.recipe.find", lambda ref: spec)
    recipe = hftl.Recipe(backbone="changing", data=str(data), method=HEAD)
    hftl.features(recipe, quiet=True)
    data.write_text(data.read_text() + "a new dog,a\n")
    assert "gives a row other features than an earlier run stored" in refused(Changing)


class NaN(hftl.TextBackbone):
    """Finite on the probes, and not on a word of the data."""

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)

        def spoil(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            ids = args[0] if args else kwargs["input_ids"]
            red = self.tokenizer.convert_tokens_to_ids("red")
            return output.masked_fill((ids == red).any(1)[:, None, None], float("nan"))

        model.get_submodule("bert.embeddings").register_forward_hook(spoil, with_kwargs=True)
        return model, head


def test_features_that_are_not_finite_name_the_plugin(refused: Run) -> None:
    said = refused(NaN)
    assert "(plugin 'faulty-plugin')" in said
    assert "texts.csv row 1" in said


def test_the_kit_trains_a_head_with_running_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.LevitConfig(
        image_size=64, patch_size=16, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 2, 3], depths=[1, 1, 1],
        key_dim=[8, 8, 8], mlp_ratio=[2, 2, 2], attention_ratio=[2, 2, 2],
        architectures=["LevitForImageClassification"],
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LevitForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    check_backbone(str(tmp_path))
    assert "✓  A trained head's export loads in plain libraries" in capsys.readouterr().out


def test_the_kit_makes_do_with_short_rows(tmp_path: Path) -> None:
    """A backbone may say that a text is too long for it."""

    class Short(hftl.TextBackbone):
        def encode(self, rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[hftl.Encoded]:
            for row, name in zip(rows, names, strict=True):
                if len(row[0]) > 64 and name != "probe":
                    raise hftl.BadRowError(name, "too long")
            return super().encode(rows, names)

    source = tiny.save("bert", tmp_path / "bert")
    subject = Subject("short", None, None, 1e-4, tmp_path)
    subject.backbone = Short(hftl.Source.of(source))
    assert len(subject.rows) == 3
    checks._independent_of_mates(subject)
    assert len(subject.logits(subject.rows)) == 3
