"""The conformance kit passes what is sound, and says of each fault what it is and why it hurts."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fake_plugins import Site
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

import hftl
from hftl.plugins.manager import plugins
from hftl.plugins.registry import backbone_claims
from hftl.plugins.spec import BackboneSpec
from hftl.testing import CheckError, check_backbone, checks, subject
from hftl.testing.subject import Subject


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    tiny.model("vit").base_model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny.model("bert").base_model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "sentence", "words", "is", "of", "and", "who", "says", "a", "."]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_sound_backbones_pass(kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    check_backbone(str(request.getfixturevalue(kind)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hftl.testing: ")
    assert len(lines) == 1 + len(checks.CHECKS)
    marks = [line.split()[0] for line in lines[1:]]
    assert marks.count("✓") >= len(marks) - 1
    assert "✗" not in marks


Fail = Callable[[Any, Callable[[Subject], None]], str]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fail:
    """What one check says of a backbone."""

    def run(backbone: Callable[[], Any], check: Callable[[Subject], None], **spec: Any) -> str:
        made = BackboneSpec("faulty", spec.get("modality", "any"), lambda options: backbone(), plugin="faulty")
        for module in (subject, checks):
            monkeypatch.setattr(module, "find", lambda ref: made)
        with pytest.raises(CheckError) as caught:
            check(Subject("faulty", None, None, 1e-4, tmp_path))
        return str(caught.value)

    return run


def test_torch_at_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    (tmp_path / "torch.py").write_text("")
    site.install(
        "early",
        """
        import torch
        import hftl

        @hftl.hookimpl
        def hftl_register_backbones(register):
            register(hftl.BackboneSpec("early", "image", print))
        """,
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HFTL_PLUGINS", "early")
    with pytest.raises(
        CheckError, match=r"it brings in torch, so every hftl command waits for that: import it in `load`"
    ):
        checks._registers_lightly(Subject("early", None, None, 1e-4, tmp_path))
    with pytest.raises(CheckError, match=r"a fresh Python cannot find it: .*no backbone is called 'never'"):
        checks._registers_lightly(Subject("never", None, None, 1e-4, tmp_path))


class Described(hftl.ImageBackbone):
    suffixes = frozenset({".PNG"})


def test_description(fail: Fail, vit: Path) -> None:
    source = hftl.Source.of(vit)
    assert "lower case" in fail(lambda: Described(source), checks._is_described)
    said = fail(lambda: hftl.ImageBackbone(source), checks._is_described, modality="text")
    assert said == "it is registered for 'text' but loads as 'image'"


class Training(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)
        return model.train(), head


class Random(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)
        with torch.no_grad():
            model.vit.layernorm.weight.normal_()
        return model, head


def test_features_that_change(fail: Fail, vit: Path) -> None:
    source = hftl.Source.of(vit)
    assert "training mode" in fail(lambda: Training(source), checks._deterministic)
    assert "left at random values" in fail(lambda: Random(source), checks._deterministic)


class Neighbourly(hftl.ImageBackbone):
    def collate(self, rows: Sequence[hftl.Encoded]) -> dict[str, torch.Tensor]:
        batch = super().collate(rows)
        return {name: value - value.mean() for name, value in batch.items()}


class Unmasked(hftl.TextBackbone):
    def collate(self, rows: Sequence[hftl.Encoded]) -> dict[str, torch.Tensor]:
        batch = super().collate(rows)
        return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}


def test_batch_mates(fail: Fail, vit: Path, bert: Path) -> None:
    assert "alone and in a batch" in fail(lambda: Neighbourly(hftl.Source.of(vit)), checks._independent_of_mates)
    assert "does padding leak" in fail(lambda: Unmasked(hftl.Source.of(bert)), checks._independent_of_mates)


class Sideless(hftl.TextBackbone):
    def processor_identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().processor_identity().items() if name != "padding_side"}


class OneSided(hftl.TextBackbone):
    def probes(self) -> list[dict[str, torch.Tensor]]:
        return super().probes()[:1]


def test_padding_side(fail: Fail, bert: Path) -> None:
    source = hftl.Source.of(bert)
    assert "`identity` does not say the side" in fail(lambda: Sideless(source), checks._padding_side)
    assert "padded on the left and one padded on the right" in fail(lambda: OneSided(source), checks._padding_side)


class Elsewhere(hftl.ImageBackbone):
    def identity(self) -> dict[str, Any]:
        return super().identity() | {"folder": str(self.source.folder)}


class Weightless(hftl.ImageBackbone):
    """Says that a file which is no safetensors holds weights."""

    def weight_files(self) -> Mapping[str, Path]:
        return {"config": self.source.folder / "preprocessor_config.json", **super().weight_files()}


class Forgetful(hftl.ImageBackbone):
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "processor": {}}


def test_identity(fail: Fail, vit: Path) -> None:
    source = hftl.Source.of(vit)
    assert "leave paths out" in fail(lambda: Elsewhere(source), checks._identity_follows_weights)
    moving = hftl.Source(source.id, source.folder, commit="main")
    assert "full commit hash" in fail(lambda: hftl.ImageBackbone(moving), checks._identity_follows_weights)
    said = fail(lambda: Forgetful(source), checks._identity_follows_processor)
    assert "preprocessor_config.json changes rows but not the identity: stale features" in said


class ForgetfulText(hftl.TextBackbone):
    def processor_identity(self) -> dict[str, Any]:
        return {}


def test_identity_of_texts(fail: Fail, bert: Path) -> None:
    said = fail(lambda: ForgetfulText(hftl.Source.of(bert)), checks._identity_follows_processor)
    assert "tokenizer.json changes rows but not the identity" in said


class Pickled(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        torch.load(self.source.folder / "extra.bin", weights_only=True)
        return super().build(config)


class Unpickling(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        pickle.loads(pickle.dumps(Path("x")))
        return super().build(config)


def test_pickles(fail: Fail, vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in vit.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"a": torch.zeros(1)}, folder / "extra.bin")
    source = hftl.Source.of(folder)
    said = fail(lambda: Pickled(source), checks._safe)
    assert said == "it opens extra.bin: a pickle runs whatever its author put there"
    assert "it unpickles pathlib" in fail(lambda: Unpickling(source), checks._safe)
    assert "only safetensors hold nothing but tensors" in fail(lambda: Weightless(source), checks._safe)


class Headless(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        return super().build(config)[0], set()


class Misnamed(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        model, head = super().build(config)
        return model, head | {"classifier.scale"}


def test_head(fail: Fail, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hftl.Source.of(vit)
    # A split is looked for first; what is said of one that cannot be is the split's own message.
    monkeypatch.setattr(subject, "find_cut", lambda model, head, probes: None)
    assert "names no parameter of a head" in fail(lambda: Headless(source), checks._cut_exact)
    assert "classifier.scale, which is no parameter" in fail(lambda: Misnamed(source), checks._cut_exact)


class Whiter(hftl.ImageBackbone):
    def save_processor(self, folder: Path) -> None:
        self.processor.image_mean = [0.4, 0.4, 0.4]
        super().save_processor(folder)


class Coded(hftl.ImageBackbone):
    def save_processor(self, folder: Path) -> None:
        super().save_processor(folder)
        (folder / "modeling.py").write_text("")


def test_export(fail: Fail, vit: Path) -> None:
    source = hftl.Source.of(vit)
    assert "from the model's" in fail(lambda: Whiter(source), checks._export_loads)
    assert fail(lambda: Coded(source), checks._export_loads) == "the exported folder holds modeling.py"


class Careless(hftl.ImageBackbone):
    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[hftl.Encoded]:
        try:
            return super().encode(rows, names)
        except hftl.BadRowError as error:
            raise ValueError("bad image") from error


class Trusting(hftl.ImageBackbone):
    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        try:
            return super().build(config)
        except hftl.HftlError as error:
            raise OSError("cannot read") from error


def test_errors(fail: Fail, vit: Path) -> None:
    source = hftl.Source.of(vit)
    said = fail(lambda: Careless(source), checks._errors_ours)
    assert "must raise BadRowError with the row's name, not ValueError: bad image" in said
    said = fail(lambda: Trusting(source), checks._errors_ours)
    assert said == "weights that are cut short must raise an hftl error, not OSError: cannot read"


def test_all_failures_are_listed_at_once(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = BackboneSpec("faulty", "image", lambda options: Careless(hftl.Source.of(vit)), plugin="faulty")
    for module in (subject, checks):
        monkeypatch.setattr(module, "find", lambda ref: made)
    with pytest.raises(CheckError) as caught:
        check_backbone("faulty")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"faulty fails 2 of {len(checks.CHECKS)} checks:"
    # Nobody registered it, so a fresh Python does not know it.
    assert "a fresh Python cannot find it" in lines[1]
    assert "BadRowError" in lines[2]
    assert capsys.readouterr().out.count("✗") == 2
    assert "faulty" not in backbone_claims()
    assert plugins().failed == []
