"""The proof of an export: its folder, loaded as a stranger would load it, gives the run's logits.

A stranger has transformers or sentence-transformers and no hftl. A few rows of the test split are read by those
libraries' own classes, each row alone and all in one batch, and what they answer is compared with what the run found.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hftl.backbones.bare import HEAD_FACTS, HEAD_WEIGHTS, Bare
from hftl.backbones.batching import line_logits, needs_equal_lengths, on_device
from hftl.backbones.loading import reopened
from hftl.backbones.precision import weights_dtype
from hftl.backbones.protocol import Backbone, Target
from hftl.backbones.source import Source
from hftl.backbones.words import WordBackbone
from hftl.data import Split
from hftl.data.dataset import lines_of
from hftl.errors import HftlError
from hftl.export.trained import Exported
from hftl.methods import Storage
from hftl.tasks import Task
from hftl.wording import listing, named_error, plural

# How far logits may be apart, as a share of the largest: by the precision that the run computed them in.
TOLERANCES = {"no": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
# Where a head is so steep that rounding alone moves its logits further, that is no fault of the export.
NOISE = 20.0

# Raw rows (bytes, or tuples of strings), as one batch, to logits (n, C) on the CPU.
Asked = Callable[[Sequence[Any]], Tensor]


@dataclass(frozen=True)
class Evidence:
    """What an export is compared with.

    Attributes:
        test: the test split.
        task: what its labels are.
        logits: the run's, (n, C) float32, of all of its rows; (words, C) of sentences.
        precision: in which the run computed: ``"no"`` for float32, ``"bf16"`` or ``"fp16"``.
        equal_lengths: whether rows of this model have to run in batches of equal length; None where nobody knows yet.
        device: where to compute, best the one that the run used.
        storage: what the numbers were rounded to in the store that the run computed the logits of.
        slack: as ``logits``, how far that moved each at most; None where nobody can tell.
        origins: where features were read from that were made elsewhere.
    """

    test: Split
    task: Task
    logits: Tensor
    precision: str
    equal_lengths: bool | None
    device: torch.device
    storage: Storage = "float32"
    slack: Tensor | None = None
    origins: Sequence[str] = ()

    @property
    def rows(self) -> list[int]:
        """Positions of a few rows of the split, its shortest and longest text among them."""
        return self.test.few_rows()

    @property
    def tolerance(self) -> float:
        """How far logits may be apart beyond their slack, as a share of the largest."""
        rounded = self.storage if self.storage != "float32" and self.slack is None else "no"
        return max(TOLERANCES[self.precision], TOLERANCES[rounded])

    def of(self, rows: Sequence[int]) -> Tensor:
        """The run's logits of some rows, float32."""
        return self._of_rows(self.logits.float(), rows)

    def slack_of(self, rows: Sequence[int]) -> Tensor | float:
        """How far rounding moved the logits of some rows at most, where that is known; else 0."""
        return 0.0 if self.slack is None else self._of_rows(self.slack, rows)

    def _of_rows(self, lines: Tensor, rows: Sequence[int]) -> Tensor:
        if not self.task.of_words:
            return lines[list(rows)]
        parts = torch.split(lines, lines_of(self.test.labels))
        return torch.cat([parts[row] for row in rows])


def prove_exports(
    exported: Sequence[Exported], target: Target, evidence: Evidence, say: Callable[[str], None]
) -> list[Exported]:
    """Load what was exported as a stranger would, and compare.

    Args:
        exported: the folders that the export wrote.
        target: what the run was of.
        evidence: the run's logits, and of what.
        say: takes a line for a person.

    Returns:
        The folders that stay: an adapter alone where merging it into the model is not exact.

    Raises:
        HftlError: a folder does not give the run's logits; it is renamed to ``….rejected``.
    """
    adapter = next((each for each in exported if each.library == "peft"), None)
    for each in exported:
        if each is adapter:
            continue
        fault = _fault(each, target, evidence, say)
        if fault is None:
            continue
        if adapter is not None and _adapter_fault(adapter.folder, target, evidence) is None:
            shutil.rmtree(each.folder)
            say(f"export    only the adapter is kept: merged into the weights it is another model ({fault})")
            return [adapter]
        rejected = each.folder.with_name(each.folder.name + ".rejected")
        shutil.rmtree(rejected, ignore_errors=True)
        each.folder.rename(rejected)
        raise HftlError(
            f"the exported model does not give the run's predictions, so it is no result: {fault}; it is kept as "
            f"{rejected} for whoever looks into it: {_advice_on(evidence)}"
        )
    return list(exported)


def _advice_on(evidence: Evidence) -> str:
    if not evidence.origins:
        return "please report this with the backbone's name"
    names = listing(evidence.origins)
    return (
        f"rows came from {names}, which agree with this machine only roughly: leave out --trust-features, and report "
        "this with the backbone's name if it happens again"
    )


def _fault(exported: Exported, target: Target, evidence: Evidence, say: Callable[[str], None]) -> str | None:
    """What is wrong with an export; None if nothing is, or if nobody can tell, which is said."""
    try:
        asked = _stranger(exported, target.backbone, evidence.device)
    except HftlError:
        raise
    except Exception as error:  # whatever a library raises on a folder that it should have loaded
        return f"{exported.library} cannot load it: {named_error(error)[:300]}"
    if asked is None:
        say(f"export    not compared with the run: {exported.library} is not here, or hftl does not know how it loads")
        return None
    return _compared(asked, target, evidence, say)


def _compared(asked: Asked, target: Target, evidence: Evidence, say: Callable[[str], None]) -> str | None:
    chosen = evidence.rows
    inputs = evidence.test.inputs
    rows = [inputs[i] for i in chosen]
    deep = [i for i, row in enumerate(rows) if isinstance(row, bytes) and _is_deep(row)]
    if deep:
        say(
            f"export    {inputs.name(chosen[deep[0]])} has more than 8 bits a pixel: hftl scales such pictures, other "
            "programs cut them off at white, so that the exported model sees other pixels there; convert them to 8 bits"
        )
        rows = [row for i, row in enumerate(rows) if i not in deep]
        chosen = [row for i, row in enumerate(chosen) if i not in deep]
    if isinstance(target.backbone, WordBackbone):
        whole = [i for i, row in enumerate(rows) if isinstance(row, tuple) and target.backbone.is_plain(row)]
        rows, chosen = [rows[i] for i in whole], [chosen[i] for i in whole]
    if not rows:
        return None
    expected = evidence.of(chosen)
    largest, slack = max(float(expected.abs().max()), 1e-6), evidence.slack_of(chosen)
    tolerance = evidence.tolerance * largest
    try:
        alone = torch.cat([asked([row]) for row in rows])
    except Exception as error:  # whatever the library raises on a row
        return f"{named_error(error)[:300]}"
    if (gap := _difference(alone, expected, slack)) > tolerance:
        # Only now, because it costs as much again.
        noise = max(_difference(asked([row] * 4), asked([row]).repeat(4, 1)) for row in rows)
        if gap > max(tolerance, NOISE * noise):
            each = torch.split((alone - expected).abs().amax(1), [len(evidence.of([row])) for row in chosen])
            name = inputs.name(chosen[int(torch.stack([gaps.max() for gaps in each]).argmax())])
            return f"the logits of {name} alone are {gap:.2g} apart, of a largest of {largest:.2g}"
        tolerance = max(tolerance, NOISE * noise)
        say(
            f"export    the head is so steep that rounding alone moves its logits by {noise:.1g}: features hardly "
            "differ between rows, and other machines will predict otherwise; take another backbone or a stronger L2"
        )
    if evidence.precision != "no":
        how = "weights in it" if weights_dtype(target.backbone) != torch.float32 else "the export computes in float32"
        say(
            f"export    its logits are within {gap / largest:.1%} of the run's "
            f"({evidence.precision}, {how}; {evidence.tolerance:.0%} would be allowed)"
        )
    if evidence.storage != "float32":
        off, allowed = _difference(alone, expected) / largest, float(torch.as_tensor(slack).max()) / largest
        say(
            f"export    its logits are within {off:.2%} of the run's, of what was rounded to {evidence.storage} on the "
            f"disk ({evidence.tolerance + allowed:.1%} would be allowed)"
        )
    try:
        together = asked(rows)
    except Exception:  # some models refuse a batch whose rows they take alone
        return None
    if (gap := _difference(together, alone)) <= tolerance:
        return None
    # Asked of the pretrained model and not of the export, which may be wrong in just this.
    equal_lengths = evidence.equal_lengths
    if equal_lengths is None:
        equal_lengths = needs_equal_lengths(target.build()[0], target.backbone.probes(), target.backbone.name)
    if equal_lengths:
        return None
    return f"the logits of {plural(len(rows), 'row')} in one batch are {gap:.2g} from those of each row alone"


def _difference(left: Tensor, right: Tensor, slack: Tensor | float = 0.0) -> float:
    """How far logits are apart at most, beyond what each may be."""
    if left.shape != right.shape:
        return float("inf")
    gap = float(((left - right).abs() - slack).max())
    return max(gap, 0.0) if gap == gap else float("inf")


def _is_deep(encoded: bytes) -> bool:
    """Whether a picture has more than 8 bits a channel; False for what is no picture."""
    from PIL import Image

    try:
        mode = Image.open(io.BytesIO(encoded)).mode
    except Exception:  # other modalities' files
        return False
    return mode == "F" or mode.startswith("I")


# ── who loads it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _stranger(exported: Exported, backbone: Backbone, device: torch.device) -> Asked | None:
    """What answers rows; None where nobody can be asked."""
    folder = exported.folder
    if exported.library == "sentence-transformers" and backbone.modality == "text":
        return _sentence_encoder(folder, device) if find_spec("sentence_transformers") else None
    if isinstance(backbone, WordBackbone):
        return _tagger(folder, device)
    if isinstance(backbone, Bare):
        return _bare(folder, backbone, device)
    if exported.library == "transformers" and backbone.modality in ("text", "image"):
        return _transformers(folder, backbone, device)
    source = getattr(backbone, "source", None)
    if not isinstance(source, Source):
        return None
    # The library of a plugin, through the plugin: its class loads the folder that was written.
    other = reopened(backbone, Source(source.id, folder))
    network, _ = other.load_trained()
    return _by_backbone(network.to(device), other, device)


def _by_backbone(network: Any, backbone: Backbone, device: torch.device) -> Asked:
    def asked(rows: Sequence[Any]) -> Tensor:
        batch = backbone.collate(backbone.encode(list(rows), [f"row {i}" for i in range(len(rows))]))
        return _logits(network, batch, device)

    return asked


def _logits(network: Any, batch: Any, device: torch.device) -> Tensor:
    with torch.inference_mode():
        logits = line_logits(network, on_device(batch, device))
    return logits.float().cpu()


PLAIN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _transformers(folder: Path, backbone: Backbone, device: torch.device) -> Asked:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if backbone.modality == "text" else AutoModelForImageClassification
    network = auto.from_pretrained(folder, use_safetensors=True, **PLAIN).eval().to(device)
    batch = _preparing(folder, backbone)
    return lambda rows: _logits(network, batch(rows), device)


def _tagger(folder: Path, device: torch.device) -> Asked:
    """A token classification model, asked for the first token of each word."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    network = AutoModelForTokenClassification.from_pretrained(folder, use_safetensors=True, **PLAIN).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder, **PLAIN)

    def asked(rows: Sequence[Any]) -> Tensor:
        words = [list(row) for row in rows]
        batch = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
        logits = _logits(network, dict(batch), device)
        lines = []
        for row in range(len(rows)):
            word_of = batch.word_ids(row)
            lines += [logits[row, word_of.index(word)] for word in range(len(words[row])) if word in word_of]
        return torch.stack(lines)

    return asked


def _preparing(folder: Path, backbone: Backbone) -> Callable[[Sequence[Any]], Any]:
    """What makes a batch of raw rows, as transformers' own classes do."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.image_utils import load_image

    if backbone.modality == "text":
        tokenizer = AutoTokenizer.from_pretrained(folder, **PLAIN)

        def of_texts(rows: Sequence[Any]) -> Any:
            texts = [[row[i] for row in rows] for i in range(len(rows[0]))]
            return tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")

        return of_texts
    processor = AutoImageProcessor.from_pretrained(folder, **PLAIN)

    def of_pictures(rows: Sequence[Any]) -> Any:
        return processor(images=[load_image(Image.open(io.BytesIO(row))) for row in rows], return_tensors="pt")

    return of_pictures


def _bare(folder: Path, backbone: Backbone, device: torch.device) -> Asked:
    """A base model and the head beside it, as the card says."""
    from transformers import AutoModel

    body = AutoModel.from_pretrained(folder, use_safetensors=True, **PLAIN).eval().to(device)
    batch = _preparing(folder, backbone)
    head, facts = load_file(folder / HEAD_WEIGHTS), json.loads((folder / HEAD_FACTS).read_text(encoding="utf-8"))

    def asked(rows: Sequence[Any]) -> Tensor:
        inputs = on_device(batch(rows), device)
        with torch.inference_mode():
            output = getattr(body, facts["call"])(**inputs)
        if facts["pooling"] == "pooler":
            features = output.pooler_output
        elif facts["pooling"] == "projection":
            features = output.pooler_output / output.pooler_output.norm(dim=-1, keepdim=True)
        else:
            tokens = output.last_hidden_state
            tokens = {"tokens": tokens, "map": tokens.flatten(2).mT, "map last": tokens.flatten(1, -2)}[facts["layout"]]
            skip, mask = facts["skip"], inputs[facts["mask"]].bool() if facts["mask"] else None
            own = [row if mask is None else row[mask[i]] for i, row in enumerate(tokens)]
            parts = {"cls": lambda row: row[0], "mean": lambda row: row[skip:].mean(0)}
            features = torch.stack(
                [torch.cat([parts[kind](row) for kind in facts["pooling"].split("+")]) for row in own]
            )
        logits: Tensor = features.float().cpu() @ head["weight"].T + head["bias"]
        return logits

    return asked


def _sentence_encoder(folder: Path, device: torch.device) -> Asked:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(folder), device=str(device), local_files_only=True)

    def asked(rows: Sequence[Any]) -> Tensor:
        texts = [row[0] if len(row) == 1 else tuple(row) for row in rows]
        logits: Tensor = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return logits.float().cpu()

    return asked


def _adapter_fault(folder: Path, target: Target, evidence: Evidence) -> str | None:
    """What is wrong with an adapter that PEFT puts on the pretrained model; None if nothing is."""
    from peft import PeftModel

    network, _ = target.build()
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        network = PeftModel.from_pretrained(network, str(folder)).eval().to(evidence.device)
    return _compared(_by_backbone(network, target.backbone, evidence.device), target, evidence, lambda _: None)
