"""The model card: what it tells, its metadata, and names that would be something else than names."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hftl.cli.output import show
from hftl.export.card import card as typed_card
from hftl.export.card import cell
from hftl.runs.record import Metrics, RunRecord
from hftl.wording import printable

HOSTILE = [
    "---\nlicense: mit\n---",
    "a: b\n- c: &x [d, {e: *x}]",
    "!!python/object/apply:os.system ['id']",
    "null",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><!-- ",
    "&lt;b&gt; &#60;script&#62;",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/track.png)",
    "https://evil.example and www.evil.example, me@evil.example",
    "<https://evil.example>",
    "| --- | a | b |",
    "```\n# title\n```",
    "`code` **bold** _under_ ~~gone~~ $x^2$ # hash",
    "\\| \\` \\\\",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \x08\x7f\x9b",
    "right\u202eto\u2066left\u200b\ufeff",
    "../../../../etc/passwd",
    '{{ 7 * 7 }} {% raw %} ${HOME} %s "\'"""',
    "- item",
    "1. one",
    "[bold red]rich[/bold red]",
    "@everyone :smile: #1",
]


def made(labels: list[str], **changes: Any) -> dict[str, Any]:
    """What recipe.json holds, for some label names."""
    return {
        "name": "flowers",
        "recipe": {
            "backbone": "user/vit",
            "data": "user/data",
            "method": {"name": "head", "pooling": "native", "folds": 3},
            "seed": 7,
            "task": None,
        },
        "backbone": {
            "name": "user/vit",
            "commit": "a" * 40,
            "pipeline_tag": "image-classification",
            "license": {"license": "apache-2.0"},
            "pickled": False,
            "identity": {"processor": {}},
        },
        "data": {
            "identity": {"repo": "user/data", "config": "default", "commit": "b" * 40},
            "task": "single_label",
            "label_names": labels,
            "rows": {"train": 30, "test": 20},
            "notes": ["a note"],
        },
        "versions": {"hftl": "0.1.0"},
        "hardware": "2 CPU cores",
    } | changes


def measured(labels: list[str]) -> dict[str, Any]:
    """What metrics.json holds: every row of the first label is taken for the last."""
    n = len(labels)
    confusion = [[0] * n for _ in range(n)]
    for i in range(n):
        confusion[i][i if i else n - 1] = 10 + i
    one = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 10}
    values = {"ece": 0.125, "brier": 0.25, "log_loss": 0.5}
    return {
        "eval": {"accuracy": 0.75, "f1_macro": 0.5, "per_class": dict.fromkeys(labels, one), "confusion": confusion},
        "head": {
            "chosen": 0.5,
            "chosen_on": "3 folds",
            "calibration": {"temperature": 1.5, "rows": 30, "folded": True, "before": values, "after": values},
        },
        "features": {"truncated": 0},
        "rows": {"train": 30, "test": 20},
        "seconds": {"extract": 1.0, "train": 2.0, "total": 4.0},
    }


def card(made: dict[str, Any], measured: dict[str, Any], library: str) -> str:
    return typed_card(RunRecord.model_validate(made), Metrics.model_validate(measured), library)


def parsed(text: str) -> list[Token]:
    """The body's tokens, by a Markdown parser that knows tables, deletions and HTML."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def tables(text: str) -> list[list[list[str]]]:
    """Each table's rows of cells as a reader sees them; a cell must hold nothing but text, or text in bold."""
    found: list[list[list[str]]] = []
    inside = False
    for token in parsed(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            inside = True
        elif token.type == "inline" and inside:
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text", "strong_open", "strong_close"}, token.content
            found[-1][-1].append("".join(child.content for child in token.children or ()))
            inside = False
    return found


def code(text: str) -> list[str]:
    return [token.content for token in parsed(text) if token.type == "fence"]


def test_hostile_names_of_labels_are_read_back_as_names_in_every_table() -> None:
    text = ModelCard(card(made(HOSTILE), measured(HOSTILE), "transformers")).text
    names = [printable(name) for name in HOSTILE]
    labels, _, _, per_class, confused, *_ = tables(text)
    assert [row[1] for row in labels[1:]] == names
    assert {row[0] for row in per_class[1:]} <= set(names)
    assert confused[1:] == [[names[0], names[-1], "10"]]
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_nothing_but_text_wherever_it_stands(name: str) -> None:
    hostile = made([name, "other"], name=name, hardware=name, versions={"hftl": name, name: name})
    hostile["data"]["notes"] = [name]
    hostile["recipe"] |= {"data": name, "input_columns": [name]}
    hostile["data"]["identity"] = {}
    hostile["backbone"] |= {"name": name, "commit": None, "license": {"license": "other", "license_name": name}}
    text = card(hostile, measured([name, "other"]), "peft")
    assert all(c.isprintable() or c == "\n" for c in text)
    block = REGEX_YAML_BLOCK.search(text)
    assert block is not None
    told = yaml.safe_load(block[2])
    assert set(told) == {
        *("license", "license_name", "library_name", "pipeline_tag", "tags", "metrics", "model-index"),
    }
    assert told["license_name"] == printable(name)
    body = text[block.end() :]
    kinds = {child.type for token in parsed(body) for child in token.children or ()}
    assert kinds <= {"text", "strong_open", "strong_close", "code_inline", "link_open", "link_close", "softbreak"}
    assert not [token for token in parsed(body) if token.type in ("html_block", "hr", "ordered_list_open")]
    links = {c.attrs["href"] for token in parsed(body) for c in token.children or () if c.type == "link_open"}
    assert links == {"https://pypi.org/project/hftl/"}
    for row in tables(body)[0][1:]:
        assert row[1] in (printable(name), "other")


@pytest.mark.parametrize(("bits", "loads"), [("8bit", "load_in_8bit=True"), ("4bit", "load_in_4bit=True")])
def test_an_adapter_of_quantised_weights_is_put_on_weights_that_are_quantised_alike(bits: str, loads: str) -> None:
    told = made(["a", "b"])
    told["recipe"]["method"] = {"name": "lora", "quantize": bits, "mixed_precision": "bf16"}
    told["backbone"]["pipeline_tag"] = "text-classification"
    use = code(ModelCard(card(told, measured(["a", "b"]), "peft")).text)[0]
    assert ast.parse(use)
    assert {loads, 'dtype="bfloat16"', "quantization_config=quantized"} <= set(re.findall(r"[^\s(,]+(?=[,)])", use))
    # Merged into weights of so few bits, the updates would be rounded to them.
    assert "merge" not in use
    told["recipe"]["method"]["quantize"] = None
    assert "quantiz" not in code(ModelCard(card(told, measured(["a", "b"]), "peft")).text)[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_in_code_is_a_string(name: str) -> None:
    hostile = made([name, "other"], name=name)
    hostile["data"]["identity"] = {}
    hostile["recipe"] |= {"data": name, "input_columns": [name]}
    use, recipe = code(ModelCard(card(hostile, measured([name, "other"]), "peft")).text)
    assigned = [node for node in ast.parse(use).body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(assigned[0].value) == [name, "other"]
    (function,) = [node for node in ast.parse(recipe).body if isinstance(node, ast.FunctionDef)]
    (returned,) = function.body
    assert isinstance(returned, ast.Return)
    assert isinstance(returned.value, ast.Call)
    fields = {keyword.arg: keyword.value for keyword in returned.value.keywords}
    assert set(fields) == {"backbone", "data", "input_columns", "seed", "method"}
    assert ast.literal_eval(fields["input_columns"]) == [name]
    # Of files here only the last name is told.
    assert ast.literal_eval(fields["data"]) == name.rstrip("/").rsplit("/", 1)[-1]


def test_no_address_becomes_a_link_by_itself() -> None:
    # GitHub's Markdown makes links of these; each is broken by a backslash.
    for address in ("https://evil.example", "www.evil.example", "WWW.evil.example", "me@evil.example"):
        assert not re.search(r"https?://|www\.|\w@", cell(address), re.IGNORECASE)


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"label": name} for name in HOSTILE], ["label"], as_json=False)
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    for name in HOSTILE:
        assert printable(name) in printed


def test_the_words_of_a_card_stay_readable() -> None:
    for words in ("sun flower", "It's 20% of 60 rows (12), 3.5 each: fine", "naïve 日本語 👩‍🌾", "a/b - c; d"):
        assert cell(words) == words


def test_the_card_says_how_well_it_does_and_how_it_was_made() -> None:
    text = ModelCard(card(made(["a", "b"]), measured(["a", "b"]), "transformers")).text
    _, splits, results, per_class, confusion, calibration, settings = tables(text)
    assert splits[1:] == [["train", "30"], ["test", "20"]]
    assert ["accuracy", "0.7500"] in results
    assert per_class[1] == ["a", "0.5000", "0.2500", "0.3333", "10"]
    assert confusion == [["", "a", "b"], ["a", "0", "10"], ["b", "0", "11"]]
    assert calibration[1] == ["expected calibration error (15 bins)", "0.1250", "0.1250"]
    assert {tuple(row) for row in settings} >= {("method", "head"), ("method.folds", "3"), ("chosen strength", "0.5")}
    use, recipe = code(text)
    assert 'pipeline("image-classification", model="PATH_OR_REPO_ID")' in use
    assert f'backbone="user/vit@{"a" * 40}"' in recipe
    assert "method=Head(folds=3)" in recipe
    assert "temperature of 1.5000, fitted on 30 rows" in text


def test_files_of_this_machine_are_told_by_their_last_name_only() -> None:
    private = made(["a", "b"])
    private["recipe"]["data"] = "/home/alice/secret project/pets.csv"
    private["data"] |= {"identity": {}, "notes": ["/home/alice/secret project/pets.csv: 3 rows"]}
    text = card(private, measured(["a", "b"]), "transformers")
    assert "alice" not in text
    assert 'data="pets.csv"' in text
    assert "datasets:" not in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["dataset"] == {
        "name": "pets.csv",
        "type": "custom",
    }


@pytest.mark.parametrize(
    ("license", "told"),
    [
        ({"license": "mit"}, {"license": "mit"}),
        ({}, {}),
        ({"license": "not a: licence\n"}, {}),
        (
            {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
            {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
        ),
    ],
)
def test_the_licence_is_the_backbone_s_if_it_states_one(license: dict[str, str], told: dict[str, str]) -> None:
    made_of = made(["a", "b"])
    made_of["backbone"]["license"] = license
    data = ModelCard(card(made_of, measured(["a", "b"]), "transformers")).data.to_dict()
    assert {name: value for name, value in data.items() if name.startswith("license")} == told
