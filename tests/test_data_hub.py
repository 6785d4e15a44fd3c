"""Data sets of the `datasets` library: given in Python, and read through its loader without the Hub."""

import io
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image

from hftl.data import Files, RowNames, load_data
from hftl.errors import BadRowError, DataError

PIXELS = [np.full((4, 4, 3), 20 * i, dtype=np.uint8) for i in range(12)]


def text_dataset(n: int = 12) -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant", "never"])}
    )
    return datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(n)], "label": [i % 2 for i in range(n)]}, features
    )


def image_dataset() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=["x", "y"])})
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    return datasets.Dataset.from_dict({"image": images, "labels": [i % 2 for i in range(12)]}, features)


def test_class_label_names_keep_their_order_and_classes_without_a_row_are_left_out() -> None:
    data = load_data(datasets.DatasetDict({"train": text_dataset(), "test": text_dataset(3)}), wants="text")
    assert data.label_names == ["zebra", "ant"]
    assert data.test.labels.tolist() == [0, 1, 0]
    assert "left out, as no training row has them: 1 class 'never'" in data.notes
    assert data.train.inputs.name(2) == "train row 3"


def test_minus_one_of_a_class_label_is_unlabelled_as_in_glue() -> None:
    features = text_dataset().features
    test = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features)
    data = load_data(
        datasets.DatasetDict({"train": text_dataset(), "validation_matched": text_dataset(4), "test_matched": test}),
        wants="text",
    )
    assert len(data.test) == 4
    assert any(note.startswith("test split left out") for note in data.notes)


def test_a_class_number_without_a_name_is_an_error() -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": pa.array([0, 1, 7])})
    dataset = datasets.Dataset(table, info=datasets.DatasetInfo(features=text_dataset().features))
    with pytest.raises(DataError, match="train row 3: label 7 of only 3 classes"):
        load_data(dataset, wants="text")


def test_a_column_with_named_classes_is_the_label_whatever_its_name() -> None:
    dataset = text_dataset().rename_column("label", "kind").add_column("votes", [3, 4] * 6)
    assert load_data(dataset, wants="text").label_names == ["zebra", "ant"]


def test_lists_of_class_labels_are_multi_label() -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.ClassLabel(names=["joy", "fear", "none"])),
        }
    )
    rows = {"text": list("abcd"), "labels": [[0, 1], [2], [], [1]]}
    dataset = datasets.Dataset.from_dict(rows, features)
    data = load_data(datasets.DatasetDict({"train": dataset, "test": dataset}), wants="text")
    assert (data.task, data.label_names) == ("multi_label", ["joy", "fear", "none"])
    assert data.test.labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("shuffled", [False, True])
def test_images_stay_encoded(shuffled: bool) -> None:
    dataset = image_dataset()
    order = np.random.default_rng(0).permutation(12) if shuffled else np.arange(12)
    if shuffled:
        dataset = dataset.select(order)
    data = load_data(datasets.DatasetDict({"train": dataset, "test": dataset}), wants="file")
    assert isinstance(data.train.inputs, Files)
    for row, original in enumerate(order):
        encoded = data.train.inputs.read(row)
        assert encoded.startswith(b"\x89PNG")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), PIXELS[original])
        assert data.train.labels[row] == original % 2
    assert "12 of 12 test rows stand in the training split too" in data.notes


def test_images_that_are_files_are_read_from_them(tmp_path: Path) -> None:
    paths = []
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    dataset = datasets.Dataset.from_dict({"image": paths, "label": ["a", "b"] * 6}).cast_column(
        "image", datasets.Image()
    )
    data = load_data(dataset, wants="file", seed=1)
    assert isinstance(data.test.inputs, Files)
    path = data.test.inputs.path(0)
    assert path is not None
    assert data.test.inputs.read(0) == path.read_bytes()


def test_other_splits_are_named_and_training_is_needed() -> None:
    data = load_data(datasets.DatasetDict({"train": text_dataset(), "unsupervised": text_dataset()}), wants="text")
    assert "ignored other splits: 'unsupervised'" in data.notes
    with pytest.raises(DataError, match="no training split among 'test', 'validation'"):
        load_data(datasets.DatasetDict({"test": text_dataset(), "validation": text_dataset()}), wants="text")
    only = load_data(datasets.DatasetDict({"default": text_dataset()}), wants="text")
    assert len(only.train) + len(only.test) == 12
    with pytest.raises(DataError, match="IterableDataset cannot be used"):
        load_data(text_dataset().to_iterable_dataset(), wants="text")


# References to the Hub


class Builder:
    """Stands for the builder that `datasets` returns for a Hub repository."""

    hash = "c" * 40
    config = datasets.BuilderConfig(name="plain")

    def __init__(self, data: datasets.DatasetDict) -> None:
        self.data = data

    def download_and_prepare(self) -> None:
        pass

    def as_dataset(self) -> datasets.DatasetDict:
        return self.data


@pytest.mark.parametrize(
    ("ref", "asked"),
    [
        ("user/name", ("user/name", None, None)),
        ("user/name:en-US", ("user/name", "en-US", None)),
        ("user/name@refs/convert/parquet", ("user/name", None, "refs/convert/parquet")),
        (f"user/na.me_1:plain@{'c' * 40}", ("user/na.me_1", "plain", "c" * 40)),
    ],
)
def test_hub_references(monkeypatch: pytest.MonkeyPatch, ref: str, asked: tuple[str, str | None, str | None]) -> None:
    seen = []

    def load_dataset_builder(repo: str, *, name: str | None, revision: str | None) -> Builder:
        seen.append((repo, name, revision))
        return Builder(datasets.DatasetDict({"train": text_dataset()}))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    data = load_data(ref, wants="text")
    assert seen == [asked]
    assert data.ref == ref
    assert data.identity["commit"] == "c" * 40
    assert data.train.inputs.name(0).startswith(f"{ref} train row ")


def test_the_cache_does_not_stand_in_for_another_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(datasets.DatasetDict({"train": text_dataset()}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: builder)
    with pytest.raises(DataError, match="the cache holds another commit, cccc"):
        load_data(f"user/name@{'d' * 40}", wants="text")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach 'user/nam' on the Hub"),
            "the Hub cannot be reached; .*a folder, .*sample:digits",
        ),
        (OfflineModeIsEnabled("offline"), "the Hub cannot be reached"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'user/nam' is a gated dataset on the Hub."),
            "gated .*hf auth login",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'user/nam' doesn't exist"),
            "no such data set or revision on the Hub",
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"),
            "Please pick one among: .'a', 'b'.",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "scripts are no longer supported",
        ),
    ],
)
def test_what_goes_wrong_on_the_hub_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def load_dataset_builder(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "name.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^user/nam: .*{message}") as caught:
        load_data("user/nam", wants="text")
    assert "\n" not in str(caught.value)


def test_a_foreign_table_cannot_name_files_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(PIXELS[0]).save(secret)
    text = datasets.Dataset.from_dict({"image": [str(secret)] * 4, "label": ["a", "b"] * 2})
    for dataset, message in (
        (text, "no image or audio file column"),
        (text.cast_column("image", datasets.Image()), ""),
    ):
        builder = Builder(datasets.DatasetDict({"train": dataset}))
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, builder=builder, **k: builder)
        if message:
            with pytest.raises(DataError, match=message):
                load_data("user/name", wants="file")
        else:
            inputs = load_data("user/name", wants="file", test_size=0.5).train.inputs
            with pytest.raises(BadRowError, match="leads out of the data set's folder"):
                inputs[0]


def test_the_real_loader_reads_a_repository_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder of `datasets` itself, on a local folder in place of a repository."""
    (tmp_path / "repo").mkdir()
    image_dataset().to_parquet(tmp_path / "repo" / "train-00000-of-00001.parquet")
    real = datasets.load_dataset_builder

    def load_dataset_builder(repo: str, *, name: str | None, revision: str | None) -> datasets.DatasetBuilder:
        assert repo == "user/flowers"
        return real(str(tmp_path / "repo"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    data = load_data("user/flowers", wants="file")
    assert data.label_names == ["x", "y"]
    assert data.identity["columns"] == {"inputs": ["image"], "labels": ["labels"]}
    assert sorted(hash(b) for b in (*data.train.inputs, *data.test.inputs)) == sorted(
        hash(cell["bytes"]) for cell in image_dataset().with_format("arrow")[:]["image"].to_pylist()
    )


def test_local_data_need_neither_datasets_nor_torch() -> None:
    script = "import sys, hftl.data; print(sorted({'datasets', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_row_names_span_sources() -> None:
    names = RowNames([("a.csv", 2), ("empty.csv", 0), ("b.csv", 3)])
    assert [names[i] for i in range(5)] == [
        "a.csv row 1",
        "a.csv row 2",
        "b.csv row 1",
        "b.csv row 2",
        "b.csv row 3",
    ]
