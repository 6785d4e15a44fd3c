"""The model card: what a model is, how it is used, how it was made, how well it does and where that ends.

Everything in it comes from ``recipe.json`` and ``metrics.json``, so a card can be made again from a run's folder. Names
of labels, columns and data were written by other people: none of it may become YAML, Markdown, HTML or a terminal's
commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from hftl.data.augment import Augmentation
from hftl.recipes import Recipe
from hftl.runs.record import BackboneRecord, Metrics, RunRecord, is_repo_id
from hftl.runs.source import recipe_source, spelt
from hftl.tasks import Task
from hftl.wording import plural, printable

MOST_LABELS = 200
MOST_CLASSES_IN_TABLE = 12
MOST_ROWS = 20

# The Hub's ids of metrics, and what they are called there.
METRICS = {
    "f1": ("f1", "F1 (entities)"),
    "precision": ("precision", "Precision (entities)"),
    "recall": ("recall", "Recall (entities)"),
    "accuracy": ("accuracy", "Accuracy"),
    "subset_accuracy": ("accuracy", "Subset accuracy"),
    "f1_macro": ("f1", "F1 (macro)"),
    "f1_micro": ("f1", "F1 (micro)"),
    "f1_weighted": ("f1", "F1 (weighted)"),
    "map": ("mean_average_precision", "Mean average precision"),
    "mse": ("mse", "Mean squared error"),
    "mae": ("mae", "Mean absolute error"),
    "r2": ("r_squared", "R²"),
    "pearson": ("pearsonr", "Pearson's correlation"),
    "spearman": ("spearmanr", "Spearman's correlation"),
}
AUTO_CLASSES = {
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor", "image_processor"),
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer", "tokenizer"),
    "token-classification": ("AutoModelForTokenClassification", "AutoTokenizer", "tokenizer"),
}
# Libraries whose lines of Python the card knows.
LOADED_BY = ("onnx", "peft", "sentence-transformers", "transformers")
# What quantised weights are computed with.
DTYPE_OF = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
HOW = {
    "head": "the backbone stays as it was, and a new head was solved on its features",
    "full": "all of its parameters were fine-tuned with a new head",
    "partial": "its last blocks were fine-tuned with a new head",
    "lora": "low-rank updates of its layers (LoRA) and a new head were trained",
}


def how_trained(method: Mapping[str, Any]) -> str:
    """What became of the backbone, in words; with the views of pictures where training saw some."""
    said, views = HOW[method["name"]], method.get("views") or 1
    if views == 1:
        return said
    changes = Augmentation(method["flip"], method["crop"], method["trivial_augment"])
    return f"{said}, from {views} views of each training picture: the first as it is, the others by {changes}"


def write_card(folder: Path, made: RunRecord, metrics: Metrics, library: str) -> None:
    """Write ``README.md`` into a folder with a model or an adapter.

    Args:
        folder: where.
        made: what the run was made of.
        metrics: what came out of it.
        library: the Hub's name of the library that loads it, such as ``"transformers"`` or ``"peft"``.
    """
    (folder / "README.md").write_text(card(made, metrics, library), encoding="utf-8")


def card(made: RunRecord, metrics: Metrics, library: str) -> str:
    """The card's text, metadata included; ``"PATH_OR_REPO_ID"`` in it stands for where the model will be."""
    text = _templates().get_template("card.md.jinja").render(_facts(made, metrics, library))
    text = re.sub(r"\n{4,}", "\n\n", re.sub(r" +\n", "\n", text))
    return f"---\n{metadata(made, metrics, library).to_yaml()}\n---\n\n{text}"


def usage(made: RunRecord, metrics: Metrics, library: str) -> str | None:
    """The lines of Python that load what a library reads, as on the card; None where only its own package knows."""
    if library not in LOADED_BY:
        return None
    return _templates().get_template("use.py.jinja").render(_facts(made, metrics, library)).strip()


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("hftl.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML is escaped by `cell`, with Markdown, wherever text is not our own
    )
    environment.filters |= {"cell": cell, "python": spelt, "number": number}
    return environment


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def metadata(made: RunRecord, metrics: Metrics, library: str) -> ModelCardData:
    """What the Hub indexes."""
    backbone, identity = made.backbone, made.data.identity
    on_hub = backbone.commit is not None and is_repo_id(backbone.name)
    known = [METRICS[name][0] for name in metrics.eval if name in METRICS]
    relation: dict[str, Any] = {"base_model_relation": "adapter" if library == "peft" else "finetune"} if on_hub else {}
    return ModelCardData(
        base_model=backbone.name if on_hub else None,
        datasets=[identity["repo"]] if is_repo_id(identity.get("repo")) else None,
        eval_results=_eval_results(made, metrics),
        library_name=library,
        metrics=list(dict.fromkeys(known)) or None,
        model_name=printable(made.name),
        pipeline_tag=backbone.pipeline_tag,
        tags=["hftl", "transfer-learning", made.method["name"]],
        **_license(backbone.license),
        **relation,
    )


def _license(stated: Mapping[str, str]) -> dict[str, Any]:
    """The backbone's licence, if it is one that the Hub takes: an identifier, or ``other`` with a name or a link."""
    if not re.fullmatch(r"[\w.-]+", stated.get("license", "")):
        return {}
    return {name: printable(value) for name, value in stated.items()}


def _eval_results(made: RunRecord, metrics: Metrics) -> list[EvalResult]:
    identity = made.data.identity
    repo = identity.get("repo")
    return [
        EvalResult(
            # What is measured, which is not what the base model's own class is for.
            task_type=_task_of_tag(made.backbone.pipeline_tag),
            dataset_type=str(repo) if is_repo_id(repo) else "custom",
            dataset_name=printable(data_name(made)),
            dataset_config=identity.get("config"),
            dataset_revision=identity.get("commit") if is_repo_id(repo) else None,
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=value,
        )
        for name, value in metrics.eval.items()
        if name in METRICS and value is not None
    ]


def _task_of_tag(tag: str) -> str:
    """The task that a model was trained for, also where what is exported is a base model and its head."""
    return {"feature-extraction": "text-classification"}.get(tag, tag.replace("feature-extraction", "classification"))


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _facts(made: RunRecord, metrics: Metrics, library: str) -> dict[str, Any]:
    """What the template tells."""
    backbone, data, method = made.backbone, made.data, made.method
    task, names, identity = data.task, data.label_names, data.identity
    tag = _task_of_tag(backbone.pipeline_tag)
    auto_model, auto_processor, processor_argument = AUTO_CLASSES.get(tag, ("", "", ""))
    computed, columns = metrics.eval, identity.get("columns", {})
    report = metrics.training
    return {
        "name": made.name,
        "what": _what(task, len(names), tag),
        "base": _base(backbone),
        "how": how_trained(method),
        "library": library,
        "quantize": method.get("quantize"),
        "dtype": DTYPE_OF[method.get("mixed_precision", "no")],
        "loaded_by": LOADED_BY,
        "plugin": backbone.plugin or "that wrote them",
        "pipeline_tag": tag,
        "auto_model": auto_model,
        "auto_processor": auto_processor,
        "processor_argument": processor_argument,
        "backbone": backbone.name,
        "commit": backbone.commit,
        "pooled": backbone.pooling,
        "shorter": backbone.identity.get("depth", {}).get("config", {}),
        "problem_type": task.problem_type,
        "example": _example(tag, task, len(names), len(columns.get("inputs", ()))),
        "arguments": ', aggregation_strategy="first"' if task.of_words else "",
        "unit": "entities" if task.of_words else "rows",
        "of_words": task.of_words,
        "pairs": len(columns.get("inputs", ())) == 2,
        "reading": _reading(task),
        "outputs": "Labels" if task.has_classes else "Targets",
        "task": task.words,
        "label_names": names,
        "most_labels": MOST_LABELS,
        "data": data_name(made),
        "data_commit": identity.get("commit") if is_repo_id(identity.get("repo")) else None,
        "sizes": metrics.rows or data.rows,
        "notes": [at_home(note, made) for note in data.notes],
        "scores": {name: value for name, value in computed.items() if value is None or isinstance(value, (int, float))},
        "intervals": metrics.known_intervals(),
        "crossed": metrics.cross_validation,
        "drawn": metrics.intervals,
        "by_views": metrics.test_views,
        **_by_class(computed, names),
        "at_half": computed.get("at_half"),
        "thresholds": "at_half" in computed,
        # Where folds decided, each by its own, a label has none.
        "by_label": any("threshold" in row for row in computed.get("per_class", {}).values()),
        # Runs of a release that did not say aimed at F1.
        "aim": report.get("thresholds_for", "F1"),
        "not_reached": [names[label] for label in report.get("not_reached", [])],
        "scope": metrics.scope_scores(),
        "scope_of": metrics.out_of_scope,
        "abstention": report.get("abstention"),
        "abstain_below": report.get("abstain_below"),
        "calibration": report.get("calibration"),
        "settings": _settings(made, report),
        "recipe": published_recipe(made),
        "fill_in": any("fill in" in comment for comment in _to_fill_in(made).values()),
        "hardware": made.hardware,
        "seconds_said": ", ".join(f"{name} {value:,.1f} s" for name, value in metrics.seconds.items()),
        "versions": made.versions,
        "limitations": list(_limitations(made, metrics)),
    }


def _what(task: Task, labels: int, tag: str) -> str:
    things = {"image": "images", "text": "texts"}.get(tag.partition("-")[0], "inputs")
    return task.case(
        single_label=f"It gives {things} one of {labels:,} labels.",
        multi_label=f"It gives {things} any of {labels:,} labels, each decided on its own.",
        regression=f"It predicts {'a number' if labels == 1 else f'{labels:,} numbers'} from {things}.",
        token_labels=f"It gives each word of a text one of {labels:,} tags.",
    )


def _base(backbone: BackboneRecord) -> str:
    depth = backbone.identity.get("depth")
    whole = _whole_base(backbone)
    return f"the first {depth['blocks']} of the {depth['of']} blocks of {whole}" if depth else whole


def _whole_base(backbone: BackboneRecord) -> str:
    if backbone.commit and is_repo_id(backbone.name):
        name = backbone.name
        return f"[{cell(name)}](https://huggingface.co/{name}) at commit `{backbone.commit}`"
    return cell(backbone.name)


def _example(tag: str, task: Task, labels: int, inputs: int) -> str:
    """The arguments of a pipeline for one example."""
    if tag == "audio-classification":
        return '"sound.wav"'
    if task.of_words:
        return '"some text"'
    if tag == "image-classification":
        return '"photo.jpg"' if task.is_exclusive else f'"photo.jpg", top_k={labels}'
    text = '{"text": "some text", "text_pair": "another text"}' if inputs == 2 else '"some text"'
    return f"{text}, {'' if task.is_exclusive else 'top_k=None, '}truncation=True"


def _reading(task: Task) -> str:
    """What a person does with the logits that an encoder gives."""
    return task.case(
        single_label="[labels[row.argmax()] for row in logits]",
        multi_label="[dict(zip(labels, row)) for row in np.exp(-np.logaddexp(0, -logits))]",
        regression="logits",
        token_labels="[(inputs.tokens(0)[place], labels[logits[0, place].argmax()]) for place in first]",
    )


def _by_class(computed: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Tables of classes and of their confusion, or of the worst of them where there are many."""
    of_types = "per_type" in computed
    classes = list(computed.get("per_type" if of_types else "per_class", {}).items())
    title = "By type of entity:" if of_types else "By label:"
    if len(classes) > MOST_ROWS:
        classes = sorted(classes, key=lambda item: item[1]["f1"])[:MOST_ROWS]
        title = f"The {MOST_ROWS} {'types' if of_types else 'labels'} with the lowest F1:"
    confusion = computed.get("confusion")
    confused = []
    if confusion and len(names) > MOST_CLASSES_IN_TABLE:
        wrong = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j]
        confused = [(n, names[i], names[j]) for n, i, j in sorted(wrong, reverse=True)[:MOST_ROWS]]
        confusion = None
    return {"per_class": classes, "per_class_title": title, "confusion": confusion, "confused": confused}


def _settings(made: RunRecord, report: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the recipe, and what was chosen by the data."""
    fields = {name: value for name, value in made.recipe.items() if name not in ("method", "data", "backbone")}
    if dropped := fields.pop("drop", ()):
        # How many, not which: names of rows may say more than their owner wants to publish.
        fields["drop"] = plural(len(dropped), "row")
    options = made.method
    method = {"method": options["name"]} | {f"method.{n}": value for n, value in options.items() if n != "name"}
    chosen = {
        f"chosen {name}": report[key]
        for name, key in (("strength", "chosen"), ("on", "chosen_on"), ("by", "chosen_by"))
        if report.get(key)
    }
    return {**method, **chosen, **fields}


def _limitations(made: RunRecord, metrics: Metrics) -> list[str]:
    backbone, task = made.backbone, made.data.task
    limitations = [
        f"The results are of {metrics.scored_rows:,} rows of the same data; other sources and times were not measured.",
        f"What {_whole_base(backbone)} gets wrong about people and things, this model gets wrong too; see its card.",
    ]
    if task.is_exclusive and "coverage" not in metrics.eval:
        limitations.append("It always answers with one of its labels, also for what is none of them.")
    rare = [n for n, row in metrics.eval.get("per_class", {}).items() if row["support"] < 10]
    if rare:
        limitations.append(f"{len(rare):,} labels have fewer than 10 test rows, so their numbers are rough.")
    if metrics.eval.get("accuracy") == 1.0:
        limitations.append(
            "No test row was predicted wrong: the test split is too small or too easy to tell how often it errs."
        )
    if task.of_words:
        limitations.append(
            "Words are judged at their first token. A pipeline finds words by itself, and cuts texts of more than "
            f"{_max_length(made)}; `hftl predict` reads those in windows."
        )
    truncated = metrics.features.get("truncated")
    if truncated:
        limitations.append(
            f"{truncated:,} texts were longer than the model reads; what is beyond {_max_length(made)} was not read."
        )
    limitations += [
        f"The features of {rows:,} rows were not computed by this run, but read from {cell(origin)}; a random sample "
        "of them was computed again and agreed."
        for origin, rows in metrics.foreign
    ]
    if made.backbone.pickled:
        limitations.append("The backbone's weights were published as a pickle; they were read as nothing but tensors.")
    calibration = (metrics.head or {}).get("calibration")
    if task.has_classes and not (calibration and calibration["folded"]):
        limitations.append("The scores were not calibrated: they rank labels, but are no probabilities.")
    return limitations


def _max_length(made: RunRecord) -> str:
    length = made.backbone.max_length
    return f"{length:,} tokens" if length else "its limit"


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def published_recipe(made: RunRecord) -> str:
    """A recipe file that does the same again: commits are pinned, and what has its default value is left out.

    What only the machine that ran it has stands there by its last name, with a comment that says what to fill in.
    """
    fields = {
        name: value for name, value in made.recipe.items() if name in Recipe.model_fields and name != "metrics"
    } | {
        "backbone": made.backbone_reference if made.backbone.commit else made.backbone.name,
        "data": made.data_reference if made.data_on_hub else data_name(made),
        "drop": (),
    }
    return recipe_source(Recipe.model_validate(fields), made.name, comments=_to_fill_in(made))


def _to_fill_in(made: RunRecord) -> dict[str, str]:
    """Comments on the fields of a recipe that mean something only on the machine that ran it."""
    backbone, data = made.backbone, str(made.recipe["data"])
    comments: dict[str, list[str]] = {"backbone": [], "data": [], "metric": []}
    if any(each.endswith(f":{made.recipe.get('metric')}") for each in made.recipe.get("metrics", ())):
        comments["metric"].append("fill in: metrics=(…,), in which the recipe brought this function")
    if backbone.commit is None and str(made.recipe["backbone"]) != backbone.name:
        comments["backbone"].append("fill in: the folder that you keep this model in")
    if backbone.plugin not in ("", "hftl"):
        comments["backbone"].append(f"needs the package {printable(f'{backbone.plugin} {backbone.plugin_version}')}")
    if made.data_on_hub is None and not data.startswith("sample:"):
        comments["data"].append("fill in: the path that you keep these data at")
    if dropped := made.recipe.get("drop"):
        comments["data"].append(f"{plural(len(dropped), 'row')} left out, which the run's recipe.json names")
    return {field: "; ".join(said) for field, said in comments.items() if said}


def data_name(made: RunRecord) -> str:
    """What the data are called: of files here only the last name, because the folders above are nobody's business."""
    ref = str(made.recipe["data"])
    if made.data_on_hub:
        return made.data_on_hub
    return ref if ref.startswith("sample:") else Path(ref).name or "data"


def at_home(note: str, made: RunRecord) -> str:
    """A note without the folders that this machine's files are in."""
    ref = str(made.recipe["data"])
    return note.replace(ref, data_name(made)) if "/" in ref else note


# ── escaping ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What has a meaning inside a line of Markdown; what makes an address a link; what begins a list, a rule or a title.
MARKUP = re.compile(r"[<>&]|[\\`*_{}\[\]#|~$^@]|:(?=\S)|(?<=www)\.|^[-+=]|^\d+[.)]", re.IGNORECASE)


def cell(value: object) -> str:
    """Text for a cell of a Markdown table or the middle of a line: no markup, HTML, link or line break is in it."""
    return MARKUP.sub(lambda sign: ENTITIES.get(sign[0], f"{sign[0][:-1]}\\{sign[0][-1]}"), printable(value))


def number(value: float | None) -> str:
    """A number with four digits; what is undefined is said to be."""
    return "undefined" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
