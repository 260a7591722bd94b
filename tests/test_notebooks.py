"""The notebooks of the documentation run from top to bottom and show what their stored outputs show."""

from __future__ import annotations

from pathlib import Path

import pytest

import dmtl

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def shown(notebook) -> list[list[str]]:
    """For every cell of code, the types of what it shows; text in several pieces counts once."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for out in cell.outputs for kind in out.get("data", ["text"])}) for cell in cells]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs(name):
    """Each is small, was run in order, and ends without an error; none names a folder of its author."""
    path = FOLDER / name
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert sum("image/png" in kinds for kinds in shown(notebook)) >= 1
    assert path.stat().st_size < 400_000
    assert not any(out.output_type == "error" for cell in notebook.cells for out in cell.get("outputs", []))
    assert not any(word in path.read_text(encoding="utf-8") for word in ("/home/", "/root/", "/tmp/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_execution(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(Path(dmtl.__file__).parents[1]))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    stored = shown(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(notebook) == stored
    assert list((tmp_path / "runs").glob("*/model/model.safetensors"))
