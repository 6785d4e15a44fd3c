"""timm models are claimed, and what they need is said in one line; the models need a matching torchvision."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hftl_timm
import pytest

import hftl
from hftl.testing import check_backbone

HAS_TIMM = find_spec("timm") is not None and find_spec("torchvision") is not None


def timm_folder(folder: Path) -> Path:
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hftl_timm, "find_spec", lambda package: package)


@pytest.mark.usefixtures("installed")
def test_claims_timm_and_nothing_else(tmp_path: Path) -> None:
    claimed = hftl_timm.hftl_resolve_backbone("timm/resnet18.a1_in1k")
    assert (claimed.name, claimed.modality) == ("timm/resnet18.a1_in1k", "image")
    assert hftl_timm.hftl_resolve_backbone("hf-hub:timm/resnet18.a1_in1k").name == "timm/resnet18.a1_in1k"
    folder = timm_folder(tmp_path / "mine")
    assert hftl_timm.hftl_resolve_backbone(str(folder)).name == str(folder)
    for other in ("google/vit-base-patch16-224", "timms/x", str(tmp_path), "hf-hub:google/vit"):
        assert hftl_timm.hftl_resolve_backbone(other) is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hftl_timm, "find_spec", lambda package: None)
    with pytest.raises(hftl.BackboneError, match=r"needs timm and torchvision: pip install 'hftl-timm\[timm\]'"):
        hftl_timm.hftl_resolve_backbone("timm/resnet18.a1_in1k")
    monkeypatch.setattr(hftl_timm, "find_spec", lambda package: package if package == "timm" else None)
    with pytest.raises(hftl.BackboneError, match="needs torchvision: pip"):
        hftl_timm.hftl_resolve_backbone("timm/resnet18.a1_in1k")


def test_torchvision_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms\\ndoes not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(hftl.BackboneError, match=r"torchvision does not load .*operator nms does not exist.*one build"):
        hftl_timm.load("timm/resnet18.a1_in1k", hftl.BackboneOptions())


@pytest.mark.skipif(HAS_TIMM, reason="says what is missing where something is")
def test_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "from hftl import Recipe, recipe\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='timm/resnet18.a1_in1k', data='sample:digits')\n"
    )
    command = [sys.executable, "-m", "hftl", "run", "r.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("hftl: timm/resnet18.a1_in1k needs ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not HAS_TIMM, reason="needs timm, and a torchvision of the same build as torch")
def test_promises(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    folder = timm_folder(tmp_path / "resnet")
    model = timm.create_model("resnet18", num_classes=10)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    check_backbone(str(folder))
