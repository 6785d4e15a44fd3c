"""A space's name: every input counts, and it is the same everywhere."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftl.store.identity import canonical_json, space_id

IDENTITY = {
    "extractor": 1,
    "plugin": {"name": "hftl", "version": "0.1.0"},
    "model": "google/vit-base-patch16-224-in21k",
    "commit": "b4569560a39a0f1af58e3ddaf17facf20ab919b0",
    "weights": None,
    "modality": "image",
    "processor": {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5, 0.5, 0.5]},
    "config": "0f3b9c",
    "max_length": 128,
    "pooling": "native",
    "dtype": "float32",
    "storage": "float32",
    "attention": "sdpa",
    "view": "none",
    "normalize": False,
    "scale": 1.0,
}

GOLDEN = "56dba771ab65d46879219399f0168c10"

CHANGES = {
    "extractor": {"extractor": 2},
    "plugin's name": {"plugin": {"name": "other", "version": "0.1.0"}},
    "plugin's version": {"plugin": {"name": "hftl", "version": "0.1.1"}},
    "model": {"model": "google/vit-base-patch16-224"},
    "commit": {"commit": "b4569560a39a0f1af58e3ddaf17facf20ab919b1"},
    "weights": {"weights": ["00"]},
    "modality": {"modality": "text"},
    "one number deep in the processor": {
        "processor": {"size": {"height": 224, "width": 225}, "resample": 2, "image_mean": [0.5, 0.5, 0.5]}
    },
    "the last digit of a float": {"processor": {**IDENTITY["processor"], "image_mean": [0.5, 0.5, 0.5000001]}},
    "config": {"config": "0f3b9d"},
    "max_length": {"max_length": 129},
    "max_length none": {"max_length": None},
    "pooling": {"pooling": "mean"},
    "compute dtype": {"dtype": "bfloat16"},
    "storage dtype": {"storage": "float16"},
    "attention": {"attention": "eager"},
    "view": {"view": "flip"},
    "a flag": {"normalize": True},
    "a flag that becomes a number": {"normalize": 0},
    "an integer for a float": {"scale": 1},
    "a new input": {"quantized": False},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_input_alone_changes_the_space(change):
    assert space_id({**IDENTITY, **change}) != space_id(IDENTITY)


@pytest.mark.parametrize("key", IDENTITY)
def test_a_missing_input_changes_the_space(key):
    assert space_id({k: v for k, v in IDENTITY.items() if k != key}) != space_id(IDENTITY)


def test_the_order_of_keys_does_not_matter():
    assert space_id(dict(reversed(IDENTITY.items()))) == space_id(IDENTITY)


def test_twenty_processes_agree():
    code = "import json,sys; from hftl.store.identity import space_id; print(space_id(json.load(sys.stdin)))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in range(20)
    ]
    names = {process.communicate(json.dumps(IDENTITY))[0].strip() for process in processes}
    assert names == {space_id(IDENTITY)}


def test_the_name_never_changes_between_versions_of_hftl():
    # A literal: if this fails, every store in the world is computed again.
    assert space_id({"a": [1, 1.5, "é", None, True], "b": {}}) == GOLDEN
    assert len(GOLDEN) == 32


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10))
def test_canonical_json_is_json_and_stable(obj):
    text = canonical_json(obj)
    assert json.loads(text) == obj
    assert canonical_json(json.loads(text)) == text
    assert text.isascii()


@pytest.mark.parametrize("bad", [(1,), {1}, b"x", {1: 2}, {"a": [{"b": object()}]}, 1j])
def test_what_is_not_json_is_refused(bad):
    with pytest.raises(TypeError):
        canonical_json(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_floats_that_json_cannot_say_are_refused(bad):
    with pytest.raises(ValueError, match="which JSON cannot say"):
        canonical_json(bad)
