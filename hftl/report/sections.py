"""What each section of a run's page tells, from the run's folder: plain values for the template, figures as SVG."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors import safe_open

from hftl.export.card import METRICS, at_home, data_name, how_trained, published_recipe, usage
from hftl.intervals import Interval, proportion
from hftl.report import figures
from hftl.report.collected import COLLECTED, Collected
from hftl.report.numbers import (
    MOST_CLASSES,
    Predictions,
    calibration,
    clustered,
    confusion_matrix,
    confusions,
    curves,
    intervals,
    most_confused,
    said,
    worst_rows,
)
from hftl.report.sentences import table_of_types, worst_cards
from hftl.report.spans import JudgedEntities, judged_rows
from hftl.report.svg import SERIES
from hftl.runs.folder import CARD, EVENTS, RunFolder
from hftl.runs.judgement import among_rows, judgements
from hftl.runs.record import Metrics, RunRecord
from hftl.wording import plural

MOST_CONFUSIONS, MOST_CLASS_ROWS, MOST_CURVES, MOST_TARGETS = 15, 1000, 12, 4
MOST_READABLE = 20
MOST_SCATTERED = 1500
MOST_WITHOUT_PICTURES = 20


@dataclass(frozen=True)
class ShownScore:
    """A number of the run and how sure it is."""

    name: str
    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class RunPage:
    """Everything that a run's page tells.

    Attributes:
        run: the run's folder.
    """

    run: RunFolder

    @cached_property
    def made(self) -> RunRecord:
        """What the run was made of."""
        return self.run.record()

    @cached_property
    def metrics(self) -> Metrics:
        """What came out of it."""
        return self.run.metrics()

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """What the training of the head, or of the model, reports."""
        return self.metrics.training

    @cached_property
    def predictions(self) -> Predictions:
        """What the model said of the test split."""
        data = self.made.data
        thresholds = self.training.get("thresholds")
        decided_by = thresholds if "at_half" in self.metrics.eval else None
        file, by_folds = self.run.path / "predictions.parquet", self.metrics.is_by_folds
        return Predictions.read(file, data.task, data.label_names, decided_by, by_folds=by_folds)

    @cached_property
    def collected(self) -> Collected:
        """What only the living run knew, or why that is not there."""
        found = Collected.read(self.run.path)
        if found is not None:
            return found
        why = f"the run kept no {COLLECTED}: it is of an older hftl, or was told --no-report; run it again to have it"
        return Collected(missing=dict.fromkeys(("rows", "map", "suspects", "copies", "near"), why))

    def facts(self) -> dict[str, Any]:
        """What the template is given."""
        made, task = self.made, self.made.data.task
        by_task: dict[str, Any] = task.case(
            single_label={"confusion": self.confusion, "classes": self.classes, "calibration": self.calibration},
            multi_label={"curves": self.curves, "classes": self.classes, "calibration": self.calibration},
            regression={"targets": self.targets},
            token_labels={"types": self.types, "sentences": self.sentences},
        )
        sections = dict.fromkeys(("confusion", "classes", "calibration", "curves", "targets", "types", "sentences"))
        return {
            "made": made,
            "how": how_trained(made.method),
            "data": data_name(made),
            "rows": self.metrics.rows or made.data.rows,
            "verdicts": [line.partition(" ")[2].strip() for line in judgements(self.metrics, made.criterion)],
            "scores": self.scores(),
            "crossed": self.metrics.cross_validation,
            "training": self.learning(),
            **sections,
            **{name: tell() for name, tell in by_task.items()},
            "worst": self.worst() if not task.of_words else None,
            "map": self.map(),
            "doubts": self.doubts(),
            "cost": self.cost(),
            "use": self.use(),
            "recipe": published_recipe(made),
            "notes": [at_home(note, made) for note in made.data.notes],
            "versions": made.versions,
            "collected": self.collected,
        }

    # ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def scores(self) -> dict[str, Any]:
        """All numbers with intervals, the one that chooses first, and beside it what costs nothing."""
        # Runs of a release that did not keep them in metrics.json have them made of their predictions.
        found, told = self.metrics.known_intervals(), self.metrics.intervals
        if not found:
            made = intervals(self.predictions)
            found, told = made.of, made.as_json()
        numbers = {
            name: value for name, value in self.metrics.eval.items() if value is None or isinstance(value, float)
        }
        scores = [ShownScore(NAMES.get(name, name), value, found.get(name)) for name, value in numbers.items()]
        criterion = self.made.criterion
        first = NAMES.get(criterion.name, criterion.name)
        main = next((score for score in scores if score.name == first), None)
        # What costs nothing is measured by the task's own metric.
        free = [] if criterion.is_stated and criterion.name != criterion.task.metric else self._free()
        shown = [("this run", main.interval), *free] if main and main.interval else []
        return {
            "main": main,
            "all": scores,
            "free": free,
            "scope": self.metrics.scope_scores(),
            "scope_of": self.metrics.out_of_scope,
            "figure": figures.beside(shown, first) if free and shown else None,
            "samples": told["samples"],
            "drawn": "sentences" if self.made.data.task.of_words and told["drawn"] == "rows" else told["drawn"],
            "units": told["units"],
            "task_metric": first,
        }

    def _free(self) -> list[tuple[str, Interval]]:
        rows, known = len(self.predictions), self.training.get("baselines", {})
        # F1 of a lexicon is no share of rows: its interval is among what the run kept.
        shares = known if self.made.data.task.is_exclusive else {}
        sure = self.training.get("baseline_intervals", {})
        # Nobody knows of rows of one group how alike they are where only the share was kept: as good as one.
        units = self.metrics.intervals.get("units", rows) if self.predictions.groups is not None else rows
        of_classes = [
            (name, Interval(value, *sure[name]) if name in sure else proportion(value * units, units))
            for name, value in shares.items()
        ]
        others = [(each.what, Interval(each.value, each.low, each.high)) for each in self.collected.free]
        return [
            (SHORT.get(name, name) + among_rows(name, self.training), value) for name, value in (*of_classes, *others)
        ]

    # ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def learning(self) -> dict[str, Any]:
        """How the strength was chosen, or how fine-tuning went."""
        report = self.training
        drawn: list[Markup] = []
        lines: list[tuple[str, str]] = []
        if path := report.get("path"):
            strength, chosen_by, metric = float(report["chosen"]), report.get("chosen_by"), self.made.criterion.name
            if chosen_by == metric:
                drawn.append(figures.strengths_by(path, strength, metric))
            else:
                drawn.append(figures.strengths(path, strength))
            by = f" by {chosen_by}" if chosen_by else ""
            lines.append(("L2 strength", f"{strength:.4g}, chosen{by} on {report['chosen_on']}"))
        elif "settings" in report:
            chosen = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in report["chosen"].items())
            lines.append(("chosen", f"{chosen}, on {report['chosen_on']}"))
        if history := report.get("epochs"):
            drawn.append(figures.epochs(history, int(report["kept_epoch"]), self.made.criterion.name))
            steps = self._steps()
            if len(steps) > 1:
                drawn.append(figures.losses_by_step(steps))
            lines += [
                ("epoch kept", self._kept(report, history)),
                ("learning rate", f"{report['lr']:.3g}"),
                ("batch", plural(int(report["batch_size"]), "row")),
            ]
        if calibrated := report.get("calibration"):
            before, after = calibrated["before"]["log_loss"], calibrated["after"]["log_loss"]
            done = "folded into the head" if calibrated["folded"] else "not applied"
            told = f"temperature {calibrated['temperature']:.3g}, {done}: held-out log loss {before:.4f} → {after:.4f}"
            lines.append(("calibration", told))
        if abstains := report.get("abstention"):
            told = f"where the highest score is below {report['abstain_below']:.4f}, chosen for a coverage of "
            told += f"{abstains['asked']:g} on {plural(abstains['rows'], 'held-out row')}"
            lines.append(("abstains", told))
        if report.get("converged") is False:
            lines.append(("warning", "the solution did not converge to its tolerance"))
        return {"figures": drawn, "lines": lines}

    def _kept(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
        by = f"by {self.made.criterion.name} on the {history[0]['split']} split"
        return f"{report['kept_epoch']} of {len(history) - 1}, {by}"

    def _steps(self) -> list[dict[str, Any]]:
        """Steps with a loss, in order; of one that a resumed run took again, what it was then."""
        file, steps = self.run.path / EVENTS, {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            # A run that was killed within a line has half of one, and what it wrote when it was resumed behind it.
            with suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "step" and isinstance(event.get("loss"), float):
                    steps[int(event["step"])] = event
        return [steps[step] for step in sorted(steps)]

    # ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def confusion(self) -> dict[str, Any]:
        """The matrix, or the part of it that can be read and the whole from afar; the most frequent confusions."""
        names, found = self.predictions.names, confusions(self.predictions)
        drawn: list[tuple[str, Markup]] = []
        if len(names) <= figures.MOST_CELLS_WITH_NUMBERS:
            drawn.append(("", self._matrix(range(len(names)), "confusion")))
        else:
            if worst := most_confused(found, MOST_READABLE):
                drawn.append((f"The {len(worst)} labels that are confused most", self._matrix(worst, "confusion")))
            if len(names) <= MOST_CLASSES:
                title = f"All {len(names)} labels, those that are confused side by side"
                drawn.append((title, self._matrix(range(len(names)), "confusion-all")))
        support = np.bincount(self.predictions.labels, minlength=len(names))
        top = [
            {
                "label": names[each.label],
                "predicted": names[each.predicted],
                "count": each.count,
                "share": each.count / int(support[each.label]),
            }
            for each in found[:MOST_CONFUSIONS]
        ]
        return {"figures": drawn, "top": top, "pairs": len(found), "wrong": sum(each.count for each in found)}

    def _matrix(self, classes: Sequence[int], name: str) -> Markup:
        matrix = confusion_matrix(self.predictions, classes)
        order = clustered(matrix)
        names = [self.predictions.names[classes[k]] for k in order]
        return figures.confusion(matrix[np.ix_(order, order)], names, name)

    def classes(self) -> dict[str, Any]:
        """Precision, recall, F1 and support of each label, the worst first."""
        confused: dict[int, tuple[str, int]] = {}
        if self.made.data.task.is_exclusive:
            for each in reversed(confusions(self.predictions)):
                confused[each.label] = (self.predictions.names[each.predicted], each.count)
        rows = [
            {"name": name, **{column: row.get(column) for column in COLUMNS}, "confused": confused.get(k)}
            for k, (name, row) in enumerate(self.metrics.eval.get("per_class", {}).items())
        ]
        # A label without test rows has no F1 that means anything.
        rows.sort(key=lambda row: (row["support"] == 0, row["f1"], -row["support"]))
        without = sum(row["support"] == 0 for row in rows)
        has_threshold = any(row["threshold"] is not None for row in rows)
        return {
            "rows": rows[:MOST_CLASS_ROWS],
            "left_out": max(0, len(rows) - MOST_CLASS_ROWS),
            "without": without,
            "has_threshold": has_threshold,
        }

    def calibration(self) -> dict[str, Any]:
        """Whether scores are what they say."""
        error, bins = calibration(self.predictions)
        return {"error": error, "figure": figures.reliability_diagram(bins, error)}

    def curves(self) -> dict[str, Any]:
        """Precision by recall of labels, and what tuned thresholds are worth."""
        found = curves(self.predictions, len(self.predictions.names))
        at_half = self.metrics.eval.get("at_half")
        return {
            "figure": figures.precision_recall(found[:MOST_CURVES]) if found else None,
            "shown": min(len(found), MOST_CURVES),
            "of": len(found),
            "tuned": self.predictions.thresholds is not None,
            "aim": self.training.get("thresholds_for", "F1"),
            "at_half": at_half,
            "f1_macro": self.metrics.eval.get("f1_macro"),
        }

    def targets(self) -> list[dict[str, Any]]:
        """Predicted against true values and errors of each target, and its numbers."""
        predictions, found = self.predictions, []
        drawn = np.random.default_rng(0).permutation(len(predictions))[:MOST_SCATTERED]
        by_target = self.metrics.eval.get("per_target", {})
        for k, name in enumerate(predictions.names[:MOST_TARGETS]):
            labels, predicted = predictions.labels[:, k], predictions.scores[:, k]
            found.append(
                {
                    "name": name,
                    "scores": by_target.get(name, {}),
                    "figures": [
                        figures.predicted_by_true(labels[drawn], predicted[drawn], name, f"scatter-{k}"),
                        figures.residuals(predicted.astype(np.float64) - labels, name, f"residuals-{k}"),
                    ],
                }
            )
        return found

    def types(self) -> dict[str, Any]:
        """F1, precision, recall and what became of the entities of each type, the worst first; which are confused."""
        return table_of_types(self.metrics.eval["per_type"], self.judged_entities)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def worst(self) -> dict[str, Any]:
        """The worst predictions, with their rows and the training rows nearest to them."""
        collected, predictions = self.collected, self.predictions
        known = {each.row: each for each in collected.worst if each.row < len(predictions)}
        rows = list(known) or worst_rows(predictions, MOST_WITHOUT_PICTURES)
        cards = []
        for row in rows:
            label, predicted = said(predictions, row)
            kept = known.get(row)
            near = kept.near if kept else []
            cards.append(
                {
                    "name": predictions.rows[row],
                    "shown": collected.rows[kept.shown] if kept else None,
                    "label": label,
                    "predicted": predicted,
                    "scores": self._scores_of(row),
                    "near": [(collected.rows[each.shown], each.cosine) for each in near],
                    "votes": Counter(collected.rows[each.shown].label for each in near).most_common(),
                }
            )
        return {"cards": cards, "reference": collected.neighbours_of, "missing": collected.missing}

    @cached_property
    def judged_entities(self) -> list[JudgedEntities]:
        """The entities of the test sentences."""
        return judged_rows(self.predictions)

    def sentences(self) -> dict[str, Any]:
        """The sentences with the worst mistakes, as they are and as they were predicted."""
        return worst_cards(self.predictions, self.judged_entities, self.collected)

    def _scores_of(self, row: int) -> list[tuple[str, float]]:
        """The score of the prediction and of the label; none where the prediction itself is a number."""
        if not self.made.data.task.is_exclusive:
            return []
        scores, names = self.predictions.scores[row], self.predictions.names
        both = (int(scores.argmax()), int(self.predictions.labels[row]))
        return [(names[k], float(scores[k])) for k in both]

    def map(self) -> dict[str, Any] | None:
        """Test rows on a plane."""
        found, predictions = self.collected.map, self.predictions
        if found is None or not found.rows or max(found.rows) >= len(predictions):
            return None
        rows = np.array(found.rows)
        task = self.made.data.task
        legend: list[str] = []
        if not task.has_classes:
            figure = figures.values_on_plane(found, predictions.labels[rows, 0], predictions.names[0])
        else:
            if task.is_exclusive:
                classes, wrong = predictions.labels[rows], (predictions.predicted != predictions.labels)[rows]
                by_confusion = most_confused(confusions(predictions), len(SERIES))
            else:
                # A row of several labels has the colour of its first.
                truth = predictions.labels[rows] > 0
                classes = np.where(truth.any(1), truth.argmax(1), -1)
                wrong, by_confusion = (predictions.predicted != (predictions.labels > 0)).any(1)[rows], []
            frequent = [k for k, _ in Counter(classes[classes >= 0].tolist()).most_common()]
            coloured = sorted(dict.fromkeys((*by_confusion, *frequent)).keys() & set(frequent), key=frequent.index)
            coloured = list(dict.fromkeys((*by_confusion, *coloured)))[: len(SERIES)]
            legend = [predictions.names[k] for k in coloured]
            figure = figures.plane(found, classes, coloured, wrong)
        return {
            "figure": figure,
            "method": found.method,
            "explained": sum(found.explained),
            "shown": len(rows),
            "legend": legend,
            "others": len(predictions.names) - len(legend) if task.has_classes else 0,
        }

    def doubts(self) -> dict[str, Any]:
        """Likely wrong labels, and rows that stand in two splits."""
        collected = self.collected
        rows = collected.rows
        suspects, copies = collected.suspects, collected.copies
        return {
            "suspects": suspects,
            "suspected": [(rows[each.shown], each.suggested, each.why) for each in suspects.first] if suspects else [],
            "copies": copies,
            "copied": [(rows[c.shown], rows[c.other], c) for c in copies.first] if copies else [],
        }

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def cost(self) -> list[tuple[str, str]]:
        """What the run took."""
        seconds, features = self.metrics.seconds, self.metrics.features
        rest = seconds.get("total", 0.0) - seconds.get("extract", 0.0) - seconds.get("train", 0.0)
        lines = [(f"seconds, {name}", f"{seconds[key]:,.1f}") for key, name in STEPS.items() if key in seconds]
        if seconds:
            lines.insert(-1, ("seconds, all else (reading, proof, export)", f"{max(rest, 0.0):,.1f}"))
        computed, reused = features.get("computed", 0), features.get("reused", 0)
        if computed or reused:
            lines.append(("features", f"{computed:,} computed, {reused:,} reused"))
        if computed and seconds.get("extract"):
            lines.append(("rows computed per second", f"{computed / seconds['extract']:,.1f}"))
        lines += [("made elsewhere", f"{rows:,} rows, read from {origin}") for origin, rows in self.metrics.foreign]
        if windowed := features.get("windowed"):
            lines.append(("sentences read in several windows", f"{windowed:,}"))
        if truncated := features.get("truncated"):
            lines.append(("texts cut to what the model reads", f"{truncated:,}"))
        trained, every = self._parameters()
        if trained is not None:
            share = f" of {every:,} ({100 * trained / every:.2g} %)" if every else ""
            lines.append(("parameters trained", f"{trained:,}{share}"))
        elif every:
            lines.append(("parameters", f"{every:,}"))
        memory = self.training.get("peak_memory_bytes") or self.collected.peak_memory_bytes
        if memory:
            lines.append(("peak memory", f"{memory / 1e9:,.2f} GB"))
        if self.made.hardware:
            lines.append(("computed on", self.made.hardware))
        return lines

    def _parameters(self) -> tuple[int | None, int | None]:
        """Trained, and all that the exported model has; None where nothing tells."""
        counts = self.training.get("parameters")
        if isinstance(counts, Mapping):
            return counts["trained"], counts["all"]
        every = 0
        for file in sorted(self.run.model.rglob("*.safetensors")):
            with safe_open(file, "numpy") as tensors:
                every += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118
        return counts, every or None

    def use(self) -> list[tuple[str, str]]:
        """Lines of Python that load what was exported, by what loads it; they are run where the run's folder is."""
        found = []
        for folder in (self.run.model, self.run.adapter):
            library = library_of(folder)
            lines = usage(self.made, self.metrics, library) if library else None
            if library and lines:
                here = f"{self.run.path.name}/{folder.name}"
                found.append((f"{folder.name}, with {library}", lines.replace("PATH_OR_REPO_ID", here)))
        example = self._example()
        lines = f'import hftl\n\nmodel = hftl.load("{self.run.path.name}")\nprint(model.predict({example}))'
        return [*found, ("hftl", lines)]

    def _example(self) -> str:
        if self.made.data.task.of_words:
            return '"some text"'
        if self.made.backbone.pipeline_tag not in ("text-classification", "feature-extraction"):
            return '"file"' if "image" not in self.made.backbone.pipeline_tag else '"photo.jpg"'
        pairs = len(self.made.data.identity.get("columns", {}).get("inputs", ())) == 2
        return '("some text", "another text")' if pairs else '"some text"'


NAMES = {name: told for name, (_, told) in METRICS.items()} | {
    "log_loss": "Log loss",
    "rmse": "Root mean squared error",
    "accuracy_answered": "Accuracy of answered rows",
    "coverage": "Share of rows answered",
}
SHORT = {
    "majority": "most frequent label",
    "prototype": "nearest class mean",
    "knn": "nearest neighbours",
    "zero_shot": "text tower, no label",
}
COLUMNS = ("f1", "precision", "recall", "support", "threshold")
STEPS = {"extract": "features", "train": "training", "total": "in all"}


def library_of(folder: Path) -> str | None:
    """The library that an export says on its card that it is loaded by; None where there is no export."""
    try:
        card = (folder / CARD).read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^library_name: (\S+)$", card.partition("\n---\n")[0], re.MULTILINE)
    return found[1] if found else None
