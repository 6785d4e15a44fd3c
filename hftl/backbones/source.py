"""`Source`: where a backbone's files are, a folder or a commit of a Hub repository brought to a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hftl._version import __version__
from hftl.backbones.files import PICKLE, WEIGHTS, listed_files
from hftl.errors import BackboneError
from hftl.hub.client import hub_errors, with_retries

# Weights in safetensors only, what configurations, tokenizers and processors are stored in, and the card.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
# Folders hold other formats and checkpoints.
UNWANTED = ["*/*", "adapter_model*"]
# The modules of a sentence-transformers model, which lie in folders.
MODULES = ["?_Pooling/config.json", "?_Dense/config.json", "?_Dense/model.safetensors"]


@dataclass(frozen=True)
class Source:
    """The files of a pretrained model.

    Attributes:
        id: the Hub id, or the folder's name.
        folder: where the files are.
        commit: the resolved commit for a Hub repository; None for a folder, which is identified by its contents.
        pickled: the repository's weights are a pickle, from which the safetensors in ``folder`` were made.
    """

    id: str
    folder: Path
    commit: str | None = None
    pickled: bool = False

    @classmethod
    def of(cls, ref: str | Path, *, offline: bool = False) -> Source:
        """The files of a folder, or of a Hub repository brought to the local cache.

        Args:
            ref: a folder, or ``user/name[@revision]``.
            offline: use only what the cache holds.

        Raises:
            BackboneError: there is no such model, or it cannot be fetched.
        """
        folder = Path(ref).expanduser()
        return local_source(folder) if folder.is_dir() else hub_source(str(ref), offline=offline)

    def weight_files(self) -> dict[str, Path]:
        """Each tensor's name in the checkpoint and the safetensors file that holds it.

        Raises:
            BackboneError: there are no safetensors weights, or a listed file is missing.
        """
        from safetensors import SafetensorError, safe_open

        index = self.folder / f"{WEIGHTS}.index.json"
        single = self.folder / WEIGHTS
        check_regular(self.folder, f"{self.id}")
        if index.exists() and not single.exists():
            files = listed_files(self.id, index)
        elif single.exists():
            try:
                with safe_open(single, framework="pt") as opened:
                    files = dict.fromkeys(opened.keys(), single)
            except SafetensorError as error:
                raise BackboneError(f"{self.id}: {WEIGHTS} is damaged ({error}); fetch it again") from error
        else:
            raise BackboneError(f"{self.id} has no {WEIGHTS}; {self._instead()}")
        missing = sorted({file.name for file in files.values() if not file.exists()})
        if missing:
            raise BackboneError(f"{self.id}: {missing[0]} is named by {index.name} but missing")
        return files

    def _instead(self) -> str:
        """What a person can do where there are no safetensors."""
        if self.commit is not None:
            return f"hftl reads safetensors: give --allow-pickle to read its {PICKLE} as nothing but tensors"
        if not any(self.folder.glob(f"{Path(PICKLE).stem}*")):
            return "there are no weights in the folder"
        # Only what comes from the Hub is converted by hftl, because a commit names what was converted.
        where = str(self.folder)
        convert = f"AutoModel.from_pretrained({where!r}).save_pretrained({where!r})"
        return f"hftl reads safetensors: write them once, in Python, with transformers: {convert}"

    def license(self) -> dict[str, str]:
        """The licence that the model's card states: ``license``, ``license_name``, ``license_link``, those given."""
        from huggingface_hub import ModelCard

        try:
            card = ModelCard.load(self.folder / "README.md", ignore_metadata_errors=True).data
        except Exception:  # no card, or one that is no card: whatever is in there, it states no licence
            return {}
        given = {name: getattr(card, name, None) for name in ("license", "license_name", "license_link")}
        return {name: value for name, value in given.items() if isinstance(value, str)}


def local_source(folder: Path) -> Source:
    """A folder that transformers can load.

    Raises:
        BackboneError: it holds no ``config.json``, or an adapter.
    """
    folder = folder.expanduser().resolve()
    check_regular(folder, f"folder {folder.name!r}")
    _refuse_adapter(folder, f"folder {folder.name!r}")
    if not (folder / "config.json").exists():
        raise BackboneError(f"folder {folder.name!r} holds no config.json, so it is no transformers model")
    return Source(folder.name, folder)


def check_regular(folder: Path, what: str) -> None:
    """Refuse a model's folder that holds anything but files and folders: reading a FIFO or a device never ends.

    Raises:
        BackboneError: naming the first such entry.
    """
    for entry in sorted(folder.iterdir()):
        # A link is what it leads to; one that leads nowhere is a missing file, which is found out where it is read.
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise BackboneError(f"{what}: {entry.name} is no regular file (a pipe, a socket or a device); replace it")


def _refuse_adapter(folder: Path, what: str) -> None:
    """An adapter names another model, which transformers would load in place of this one, from wherever it says."""
    if (folder / "adapter_config.json").exists():
        raise BackboneError(f"{what} holds a PEFT adapter: merge it into its base model, and give the merged model")


def is_hub_id(ref: str) -> bool:
    """Whether a reference is shaped like ``name``, ``user/name`` or either with ``@revision``."""
    return re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?(@[\w.\-/]+)?", ref) is not None


def hub_source(ref: str, *, offline: bool = False, allow_pickle: bool = False) -> Source:
    """Bring a Hub repository's configuration, preprocessing files and safetensors weights to the local cache.

    Args:
        ref: ``user/name`` or ``user/name@revision``.
        offline: use only what the cache holds.
        allow_pickle: where a repository has no safetensors, read its pickle with ``weights_only`` and convert it once.

    Raises:
        BackboneError: unknown, private or gated, or not reachable and not in the cache.
    """
    repo, _, revision = ref.partition("@")
    source = _fetched(repo, revision or None, WANTED, offline)
    _refuse_adapter(source.folder, f"{repo} on the Hub")
    if not (source.folder / "config.json").exists():
        raise BackboneError(f"{repo} on the Hub holds no config.json, so it is no transformers model")
    if (source.folder / "modules.json").exists():
        _fetched(repo, source.commit, MODULES, offline, unwanted=())
    if allow_pickle and not any(source.folder.glob("*.safetensors")):
        from hftl.backbones.pickles import converted  # brings torch

        # The commit that was resolved, because the branch may move in between.
        source = _fetched(repo, source.commit, [*WANTED, "pytorch_model*"], offline)
        return replace(source, folder=converted(repo, source.folder), pickled=True)
    return source


def _fetched(
    repo: str, revision: str | None, patterns: Sequence[str], offline: bool, unwanted: Sequence[str] = UNWANTED
) -> Source:
    from huggingface_hub import snapshot_download

    from hftl.hub.verify import verify_snapshot

    def fetch() -> str:
        return snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(unwanted),
            local_files_only=offline,
            library_name="hftl",
            library_version=__version__,
        )

    with hub_errors(repo, "backbone", BackboneError):
        folder = Path(with_retries(fetch))
    verify_snapshot(repo, folder, patterns, unwanted)
    return Source(repo, folder, commit=folder.name)
