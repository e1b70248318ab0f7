"""The notebook runs from top to bottom on a tiny setting and shows pictures; its training is stopped and goes on."""

import queue
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from tests.support.trained import assert_same_run

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """The notebook on a tiny setting."""
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
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # raised by nbclient and ipykernel
def test_the_notebook_runs(notebook, tmp_path):
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4  # curves, rows, interpolation, samples
    printed = "".join(output.get("text", "") for output in outputs)
    assert "best epoch 1" in printed and "'lpips'" in printed
    assert (tmp_path / "notebook_runs" / "vae" / "model.safetensors").is_file()


LOOP = """
for report in aecli.train(aecli.TrainConfig("vae", out=Path("looped"), **SETTINGS)):
    if getattr(report, "epoch", 0) == 2:
        open("looping", "w").close()
        while True:
            pass
"""


def answer(client, request, timeout):
    """What the kernel replied to a request, or None where it has not within that many seconds."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        try:
            reply = client.get_shell_msg(timeout=left)
        except queue.Empty:
            return None
        if reply["parent_header"]["msg_id"] == request:
            return reply["content"]
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_stop_button_saves_and_the_same_cell_goes_on(notebook, tmp_path):
    """Pressed while a step is taken, and while the reader's own code of a loop runs."""
    settings, training = (
        cell.source for cell in notebook.cells if "SETTINGS" in cell.source and "code" in cell.cell_type
    )
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))

    def run(source, stop_at=None):
        """Run a cell, and press the stop button once a file is there; returns the kind of error, or None."""
        # By default the kernel, once a cell failed, drops those that reach it before it has replied and cleaned up.
        request = client.execute(source, stop_on_error=False)
        reply = partial(answer, client, request)
        if stop_at is not None:
            until = time.monotonic() + 300
            while not (tmp_path / stop_at).exists():
                ended = reply(timeout=0.05)
                assert ended is None, f"ended before there was {stop_at}: {ended}"
                assert time.monotonic() < until, f"no {stop_at}"
            manager.interrupt_kernel()
        content = reply(timeout=600)
        assert content is not None and content["status"] != "aborted", content
        return content.get("ename")

    try:
        assert run(settings.replace('"epochs": 1', '"epochs": 4')) is None
        assert run(training.replace('/ "vae"', '/ "whole"')) is None
        assert run(training, "notebook_runs/vae/last.safetensors") == "KeyboardInterrupt"
        assert run(LOOP, "looping") == "KeyboardInterrupt"
        assert not list(tmp_path.rglob(".aecli-*"))
        assert run(training) is None
        assert run(training.replace('Path(RUNS) / "vae"', 'Path("looped")')) is None
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    for stopped in ("notebook_runs/vae", "looped"):
        assert_same_run(tmp_path / "notebook_runs/whole", tmp_path / stopped)


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
