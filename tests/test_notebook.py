"""The notebook runs in a kernel of Jupyter, and every block of docs/python.md in order, without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import runs
from nbclient import NotebookClient

import hftl

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all of this module: both show the same digits."""
    return tmp_path_factory.mktemp("cache")


def outputs(cell: Any, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


# pyzmq asks for an event loop in a way that newer Pythons warn of; ipykernel's start is not ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HFTL_CACHE", str(cache))
    # The kernel is a process of its own, which finds this checkout and the test's cache by the environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    by_source = {cell.source.splitlines()[-1]: cell for cell in code}
    errors = [output for cell in code for output in cell.outputs if output.output_type in ("error", "stream")]
    assert errors == [], "a quiet notebook is quiet"
    assert "accuracy" in outputs(by_source["run"], "text/html")[0]
    accuracy = float(outputs(by_source['run.metrics["eval"]["accuracy"]'], "text/plain")[0])
    assert accuracy > 0.98
    (wrong,) = outputs(code[2], "text/html")
    assert wrong.count("<tr>") - 1 <= round((1 - accuracy) * 599) + 1
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 10_000
    assert outputs(by_source["features"], "text/plain") == [
        "Features(1,797 × 192 float32; train 1,198, test 599; 10 labels)"
    ]
    assert float(outputs(by_source['neighbours.score(*features.of("test"))'], "text/plain")[0]) > 0.9
    (depths,) = outputs(by_source["hftl.layers(recipe, subset=300, quiet=True)"], "text/html")
    assert "depth" in depths
    (parity,) = outputs(code[-1], "text/html")
    assert "&lt;list&gt;" in parity


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_every_block_runs_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HFTL_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    runs.write_images(tmp_path / "photos")
    shown: dict[str, Any] = {}
    assert len(BLOCKS) >= 7
    for block in BLOCKS:
        exec(block, shown)
    assert shown["run"].metrics["eval"]["accuracy"] > 0.98
    assert shown["run"].report().is_file()
    values = shown["measured"].metrics["eval"]
    assert values["balanced_accuracy_score"] == pytest.approx(values["accuracy"], abs=0.01)
    assert values["margin"] > 0
    assert shown["X"].shape == (1198, 192)
    assert (tmp_path / "digits.parquet").is_file()
    assert shown["layers"].chosen in range(1, 13)
    # The data shown are data: each form reads.
    for data in (shown["frame"], shown["pairs"], shown["splits"]):
        assert hftl.Recipe(backbone="x", data=data).data is data


def test_the_page_s_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
