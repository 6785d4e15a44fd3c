"""The leaf that knows `datasets`: data sets on the Hub, and data sets that somebody made in Python."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever release it uses

from hftl.data.dataset import RowNames
from hftl.data.raw import LazySplits, RawData, RawSplit, assign_splits
from hftl.data.tables import class_label_names, plain_column
from hftl.errors import DataError, HubError
from hftl.foreign import fingerprint
from hftl.hub.client import answer_in, broke_off, causes, disk_is_full, explain, is_outage, with_retries
from hftl.wording import is_debugging, listing, named_error, one_line

OFFLINE_WAYS = (
    "without the Hub, give a folder, a .csv/.tsv/.jsonl/.parquet file, or sample:digits; "
    "a data set that was loaded once is read from the cache"
)


def load_hub_data(ref: str, beside: str = "") -> RawData:
    """Load ``user/name[:config][@revision]``, pinned to the commit that the revision names now.

    Args:
        ref: the reference.
        beside: what to add to an error if the person may have meant a local file.

    Raises:
        DataError: the Hub cannot be reached, the data set is unknown, gated or broken.
    """
    match = re.fullmatch(r"(?P<repo>[^:@]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?", ref)
    if match is None:
        raise DataError(f"{ref}: not of the form user/name, user/name:config or user/name@revision")
    repo, config, revision = match["repo"], match["config"], match["revision"]

    def load() -> tuple[datasets.DatasetBuilder, datasets.DatasetDict]:
        builder = datasets.load_dataset_builder(repo, name=config, revision=revision)
        builder.download_and_prepare()
        return builder, builder.as_dataset()

    with _hub_errors(ref, repo, beside), _without_bars():
        builder, loaded = with_retries(load)
    # Without the Hub, datasets takes whatever commit it finds in its cache.
    from_cache = type(builder).__module__ == "datasets.packaged_modules.cache.cache"
    expected = _commit_in_cache(repo, revision) if revision and from_cache else revision
    if expected and re.fullmatch("[0-9a-f]{40}", expected) and builder.hash != expected:
        raise DataError(f"{ref}: the Hub cannot be reached, and the cache holds another commit, {builder.hash}")
    within = (
        constants.HF_HUB_CACHE,
        datasets.config.HF_DATASETS_CACHE,
        datasets.config.DOWNLOADED_DATASETS_PATH,
    )
    return _source(
        loaded,
        name=ref,
        identity={"repo": repo, "config": builder.config.name, "commit": builder.hash},
        # What stands in somebody else's table must not make us read this machine's files.
        foreign=True,
        notes=[f"from the cache, because the Hub cannot be asked: commit {builder.hash}"] if from_cache else [],
        within=tuple(Path(folder).resolve() for folder in within),
    )


def _commit_in_cache(repo: str, revision: str) -> str:
    """The commit that a branch or tag named when the Hub was last asked; zeros if it never was."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="dataset")
    try:
        return (folder / "refs" / revision).read_text()
    except OSError:
        return "0" * 40


def from_datasets(data: datasets.DatasetDict | datasets.Dataset) -> RawData:
    """Use a data set made in Python; a single `Dataset` is the training split."""
    if isinstance(data, datasets.Dataset):
        data = datasets.DatasetDict({"train": data})
    return _source(data, name="", identity={"fingerprints": _fingerprints(data)})


def _fingerprints(data: datasets.DatasetDict) -> dict[str, str]:
    return {split: fingerprint(part) for split, part in data.items()}


def _source(
    data: datasets.DatasetDict, name: str, identity: dict[str, Any], notes: Sequence[str] = (), **more: Any
) -> RawData:
    chosen, others = assign_splits(data)
    if not chosen and len(data) == 1:
        chosen, others = {"train": next(iter(data))}, []
    readers = {split: partial(split_of_dataset, data[key], f"{name} {key}".strip()) for split, key in chosen.items()}
    return RawData(
        LazySplits(readers),
        notes=[*notes, *([f"ignored other splits: {listing(others)}"] if others else [])],
        names=list(data),
        identity=identity,
        **more,
    )


def split_of_dataset(data: datasets.Dataset, name: str) -> RawSplit:
    """A split's rows as they are stored: images and sounds stay encoded, a memory-mapped file stays on disk.

    Only a data set that was shuffled or filtered is gathered into memory. Each split is read by its own features: the
    numbers of a ClassLabel mean nothing by those of another one.
    """
    table = data.with_format("arrow")[:]
    columns = {column: plain_column(values) for column, values in zip(table.column_names, table.columns, strict=True)}
    return RawSplit(
        pa.table(columns) if columns else table,
        RowNames([(name, len(table))]),
        codebooks=[class_label_names(data.features.to_dict())],
    )


def read_saved(folder: Path) -> RawData:
    """Read what ``save_to_disk`` of `datasets` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder makes the loader and pyarrow raise
        raise DataError(f"{folder}: cannot be read as a folder of save_to_disk: {named_error(error)}") from error
    if isinstance(data, datasets.Dataset):
        data = datasets.DatasetDict({"train": data})
    return _source(data, name="", identity={"fingerprints": _fingerprints(data)}, root=folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let `datasets`, which may have been imported only now, show no bars of its own."""
    if is_debugging() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def _hub_errors(ref: str, repo: str, beside: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into one line."""
    try:
        yield
    except (DatasetsError, HfHubHTTPError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        chain = list(causes(error))
        # Long enough for a list of configurations to choose from.
        said = one_line(error, 3000)
        if any(isinstance(e, GatedRepoError) for e in chain) or "gated" in said:
            why = (
                f"gated data set: accept its terms at {constants.ENDPOINT}/datasets/{repo} and log in with "
                f"'hf auth login'; {OFFLINE_WAYS}"
            )
        elif broke_off(error):
            why = str(explain(error, repo, "dataset", OFFLINE_WAYS))
        elif any(isinstance(e, (OfflineModeIsEnabled, httpx.TransportError, ConnectionError)) for e in chain):
            why = f"no such file or folder here{beside}, and the Hub cannot be reached; {OFFLINE_WAYS}"
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
            why = (
                f"no such file or folder here{beside}, and no such data set or revision on the Hub, or it is "
                f"private (log in with 'hf auth login'); {OFFLINE_WAYS}"
            )
        elif answer_in(error) is not None or disk_is_full(error):
            why = str(explain(error, repo, "dataset", OFFLINE_WAYS))
        else:
            why = f"cannot be loaded from the Hub: {said}"
        raise (HubError if is_outage(error) else DataError)(f"{ref}: {why}") from error
