"""The notebook runs from top to bottom on a tiny setting and shows pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # raised by nbclient and ipykernel
def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("SETTINGS"))
    for value, tiny in (
        ('"image_size": 64', '"image_size": 32'),
        ('"epochs": 12', '"epochs": 1'),
        ('"width": 8', '"width": 4'),
    ):
        assert value in settings.source
        settings.source = settings.source.replace(value, tiny)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4  # curves, rows, interpolation, samples
    printed = "".join(output.get("text", "") for output in outputs)
    assert "best epoch 1" in printed and "'lpips'" in printed
    assert (tmp_path / "notebook_runs" / "vae" / "model.safetensors").is_file()


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
