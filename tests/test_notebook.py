"""The notebook runs in a kernel of Jupyter, without a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def outputs(cell: Any, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


# pyzmq asks for an event loop in a way that newer Pythons warn of; ipykernel's start is not ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
