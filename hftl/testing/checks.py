"""What hftl takes for granted of a backbone, one function for each promise.

The first line of a function's docstring is what its author reads; what it raises says what is wrong and why that hurts.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hftl.backbones.batching import batch_groups
from hftl.backbones.cut.frontier import head_buffers, owner
from hftl.backbones.cut.search import prove
from hftl.backbones.protocol import Target
from hftl.backbones.weights import find_rule
from hftl.errors import BadRowError, HftlError
from hftl.export.model import export_model
from hftl.plugins.manager import HEAVY
from hftl.plugins.registry import find
from hftl.tasks import Task
from hftl.testing.subject import LABELS, CheckError, Subject, fingerprint_of_rows, sums
from hftl.testing.tampering import flip_last_byte, mutations, opened_files, rewrite
from hftl.wording import named_error

TRAINING_STEPS = 3
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".py")


def _registers_lightly(subject: Subject) -> None:
    """Registering imports neither torch nor transformers."""
    code = (
        "import json, sys\n"
        "from hftl.plugins.registry import find\n"
        f"find({subject.ref!r})\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CheckError(f"a fresh Python cannot find it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    heavy = json.loads(done.stdout.splitlines()[-1])
    if heavy:
        raise CheckError(f"it brings in {', '.join(heavy)}, so every hftl command waits for that: import it in `load`")


def _is_described(subject: Subject) -> None:
    """It says what it is: modality, how rows arrive, suffixes, task and library of the export."""
    spec, backbone = find(subject.ref), subject.backbone
    if spec.modality not in (backbone.modality, "any"):
        raise CheckError(f"it is registered for {spec.modality!r} but loads as {backbone.modality!r}")
    if backbone.wants not in ("file", "text"):
        raise CheckError(f"`wants` is {backbone.wants!r}; it must be 'file' or 'text'")
    if any(suffix != suffix.lower() or not suffix.startswith(".") for suffix in backbone.suffixes):
        raise CheckError("each of `suffixes` is lower case and begins with a dot, such as '.wav'")
    if backbone.wants == "file" and not backbone.suffixes:
        raise CheckError("`suffixes` is empty, so any file of a folder would be taken for a row")
    if not (backbone.pipeline_tag and backbone.library):
        raise CheckError("`pipeline_tag` and `library` say on the Hub what the exported model is for")


def _deterministic(subject: Subject) -> None:
    """Features are the same whenever they are computed."""
    model, _ = subject.backbone.build(subject.config)
    if model.training or subject.parts[0].training:
        raise CheckError("`build` returns a model in training mode: call .eval(), or dropout makes features random")
    again = subject.load()
    fresh, _ = again.build(again.config(Task.SINGLE_LABEL, LABELS))
    first = subject.features(subject.rows)
    if (gap := subject.same(subject.features(subject.rows, again, fresh), first)) is not None:
        raise CheckError(f"two loads of it give features {gap:.1e} apart; is a part of it left at random values?")
    if not all(bool(torch.isfinite(value.float()).all()) for row in first for value in row):
        raise CheckError("features are NaN or infinite")


def _independent_of_mates(subject: Subject) -> None:
    """A row's features do not depend on the rows beside it in a batch."""
    together = subject.features(subject.rows)
    for i, row in enumerate(subject.rows):
        if (gap := subject.same(subject.features([row]), [together[i]])) is not None:
            raise CheckError(f"row {i} alone and in a batch are {gap:.1e} apart; does padding leak into it?")
    backwards = subject.features(subject.rows[::-1])[::-1]
    if (gap := subject.same(backwards, together)) is not None:
        raise CheckError(f"the order of a batch changes features by {gap:.1e}")


def _padding_side(subject: Subject) -> None:
    """Features do not depend on the padding side, or the identity names it; the probes have both."""
    if getattr(subject.backbone, "tokenizer", None) is None:
        raise NotImplementedError("the backbone has no attribute `tokenizer`")
    masks = [probe["attention_mask"] for probe in subject.backbone.probes() if "attention_mask" in probe]
    if masks and not (any(_starts_with_padding(mask) for mask in masks) and any(_ends_so(mask) for mask in masks)):
        raise CheckError("`probes` must hold a batch padded on the left and one padded on the right")
    spaces, features = [], []
    for side in ("right", "left"):
        backbone: Any = subject.load()
        backbone.tokenizer.padding_side = side
        spaces.append(json.dumps(backbone.identity(), sort_keys=True))
        features.append(subject.features(subject.rows, backbone))
    gap = subject.same(features[0], features[1])
    if gap is not None and spaces[0] == spaces[1]:
        raise CheckError(
            f"padding on the other side changes features by {gap:.1e}, and `identity` does not say the side"
        )


def _identity_follows_weights(subject: Subject) -> None:
    """Other weights have another identity, a copy of the same ones has the same."""
    backbone = subject.backbone
    if backbone.commit is not None and (len(backbone.commit) != 40 or set(backbone.commit) - set("0123456789abcdef")):
        raise CheckError(f"`commit` is {backbone.commit!r}: give a full commit hash, or None for local files")
    with subject.moved() as (folder, anew):
        same = subject.space(anew())
        if backbone.commit is None and same != subject.space(backbone):
            raise CheckError("a copy in another folder has another identity: leave paths out of it")
        weights = sorted(set(anew().weight_files().values()))[0]
        flip_last_byte(weights)
        if subject.space(anew()) == same:
            raise CheckError(
                f"a changed byte in {weights.relative_to(folder)} leaves the identity as it was: stale features"
            )


def _identity_follows_processor(subject: Subject) -> None:
    """Whatever setting of the preprocessing changes a row has another identity."""
    with subject.moved() as (folder, anew):
        base = anew()
        before, encoded = subject.space(base), fingerprint_of_rows(subject, base)
        changed = 0
        for file, setting, text in mutations(folder):
            kept = file.read_bytes()
            file.write_text(text, encoding="utf-8")
            try:
                other = anew()
                if fingerprint_of_rows(subject, other) == encoded:
                    continue
                changed += 1
                if subject.space(other) == before:
                    raise CheckError(f"{setting} in {file.name} changes rows but not the identity: stale features")
            except CheckError:
                raise
            except Exception:  # a setting without which nothing loads can make nothing stale
                continue
            finally:
                file.write_bytes(kept)
    if not changed:
        raise NotImplementedError("none of its JSON files has a setting that changes a row")


def _safe(subject: Subject) -> None:
    """Neither pickles nor code from the model's folder are used."""
    with opened_files() as opened:
        backbone = subject.load()
        pickles = sorted({file.name for file in backbone.weight_files().values() if file.suffix != ".safetensors"})
        if pickles:
            raise CheckError(f"`weight_files` names {', '.join(pickles)}; only safetensors hold nothing but tensors")
        backbone.build(backbone.config(Task.SINGLE_LABEL, LABELS))
    folder = str(getattr(getattr(backbone, "source", None), "folder", ""))
    bad = sorted({Path(name).name for name in opened if folder and name.startswith(folder) and name.endswith(UNSAFE)})
    if bad:
        raise CheckError(f"it opens {', '.join(bad)}: a pickle runs whatever its author put there")
    if opened.unpickled:
        raise CheckError(f"it unpickles {', '.join(sorted(opened.unpickled)[:3])}: keep state as JSON and safetensors")
    if any(name.startswith("transformers_modules") for name in sys.modules):
        raise CheckError("it runs code from a model repository (trust_remote_code)")


def _cut_exact(subject: Subject) -> None:
    """The frozen part is split off exactly, on its probes and on rows."""
    model, head, cut = subject.parts
    if not head:
        raise CheckError("`build` names no parameter of a head, so there is nothing to train")
    known = {name for name, _ in model.named_parameters()}
    if head - known:
        raise CheckError(f"`build` names {sorted(head - known)[0]}, which is no parameter of the model")
    encoded = subject.encode(subject.backbone, subject.rows)
    groups = batch_groups(encoded, equal_lengths=subject.equal_lengths)
    prove(model, cut, [subject.backbone.collate([encoded[i] for i in group]) for group in groups])
    logits = subject.logits(subject.rows)
    if logits.shape != (len(subject.rows), len(LABELS)):
        raise CheckError(f"logits have the shape {tuple(logits.shape)}, not ({len(subject.rows)}, {len(LABELS)})")


def _export_loads(subject: Subject) -> None:
    """A trained head's export loads in plain libraries and gives the same logits."""
    model, head, _ = subject.parts
    tensors = head.union(head_buffers(model, head))
    rule = find_rule(model, tensors, subject.backbone.weight_files())
    _train(subject, tensors)
    # Before anything is saved, because saving may change what is saved.
    expected = subject.logits(subject.rows)
    trained = {name: value.detach().clone() for name, value in model.state_dict().items() if name in tensors}
    folder = subject.folder / "export"
    target = Target(subject.backbone, subject.backbone.config(Task.SINGLE_LABEL, LABELS))
    export_model(target, type(model).__name__, rule, trained, folder)
    bad = sorted(file.name for file in folder.rglob("*") if file.suffix in UNSAFE)
    if bad:
        raise CheckError(f"the exported folder holds {', '.join(bad)}")
    if subject.plain is not None:
        logits = torch.as_tensor(subject.plain(folder, subject.rows))
    elif subject.backbone.library != "transformers" or subject.backbone.modality not in ("image", "text"):
        raise CheckError("give check_backbone plain=…, which loads the exported folder as anybody would")
    else:
        logits = pipeline_logits(folder, subject.backbone.pipeline_tag, subject.rows)
    if (gap := subject.same([[logits]], [[expected]])) is not None:
        raise CheckError(f"the exported folder's logits are {gap:.1e} from the model's")


def _train(subject: Subject, tensors: set[str]) -> None:
    """A few steps of training, in which a head's running statistics move as its parameters do."""
    model, head, _ = subject.parts
    parameters = [value for name, value in model.named_parameters() if name in head]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    encoded = subject.encode(subject.backbone, subject.rows)
    labels = torch.arange(len(encoded)) % len(LABELS)
    batch = subject.backbone.collate(encoded)
    for name in {owner(tensor) for tensor in tensors}:
        model.get_submodule(name).train()
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def _errors_ours(subject: Subject) -> None:
    """What goes wrong is an hftl error that says where."""
    if subject.backbone.wants == "file":
        for what, row in (("garbage", b"\x00garbage" * 9), ("nothing", b""), ("half a file", subject.rows[0][:60])):
            error = _raised(partial(subject.backbone.encode, [row], ["photos/17"]))
            if not isinstance(error, BadRowError) or "photos/17" not in str(error):
                raise CheckError(
                    f"`encode` of {what} must raise BadRowError with the row's name, not {_raised_name(error)}"
                )
        with ThreadPoolExecutor(4) as pool:
            alone = [sums(subject.encode(subject.backbone, [row])) for row in subject.rows]
            jobs = [pool.submit(subject.encode, subject.backbone, [row]) for row in subject.rows * 4]
            if [sums(job.result()) for job in jobs] != alone * 4:
                raise CheckError("`encode` gives other values when several threads call it, as hftl does")
    with subject.moved() as (folder, anew):
        weights = sorted(set(anew().weight_files().values()))[0]
        for what, content in (("cut short", weights.read_bytes()[:200]), ("missing", None)):
            rewrite(weights, content)
            error = _raised(lambda: anew().build(subject.config))
            if not isinstance(error, HftlError):
                raise CheckError(f"weights that are {what} must raise an hftl error, not {_raised_name(error)}")
        rewrite(folder / "config.json", b"{")
        error = _raised(lambda: anew().config(Task.SINGLE_LABEL, LABELS))
        if not isinstance(error, HftlError):
            raise CheckError(f"a damaged config.json must raise an hftl error, not {_raised_name(error)}")


CHECKS: list[Callable[[Subject], None]] = [
    _registers_lightly,
    _is_described,
    _deterministic,
    _independent_of_mates,
    _padding_side,
    _identity_follows_weights,
    _identity_follows_processor,
    _safe,
    _cut_exact,
    _export_loads,
    _errors_ours,
]


def pipeline_logits(folder: Path, task: str, rows: Sequence[Any]) -> Tensor:
    """Logits (n, 3) by ``transformers.pipeline``."""
    from PIL import Image
    from transformers import pipeline

    asked: Any = pipeline(task, model=str(folder))
    logits = []
    for row in rows:
        if isinstance(row, bytes):
            given: Any = Image.open(io.BytesIO(row)).convert("RGB")
        else:
            given = {"text": row[0], "text_pair": row[1]} if len(row) == 2 else row[0]
        answer = asked(given, top_k=len(LABELS), function_to_apply="none")
        scores = {entry["label"]: entry["score"] for entry in answer}
        logits.append([scores[label] for label in LABELS])
    return torch.tensor(logits)


def _starts_with_padding(mask: Tensor) -> bool:
    return bool((mask[:, 0] == 0).any())


def _ends_so(mask: Tensor) -> bool:
    return bool((mask[:, -1] == 0).any())


def _raised(work: Callable[[], object]) -> BaseException | None:
    try:
        work()
    except (Exception, SystemExit) as error:
        return error
    return None


def _raised_name(error: BaseException | None) -> str:
    return "nothing" if error is None else named_error(error)[:200]
