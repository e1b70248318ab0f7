"""The images of a run, where they are and where they were."""

import json

import pytest

from tests.support.trained import JOBS, fails, ok


def forget(runs, source):
    """Have the runs' config.json name other images than theirs."""
    for file in runs.glob("*/config.json"):
        config = json.loads(file.read_text())
        config["options"]["data"] = config["data"]["source"] = source
        file.write_text(json.dumps(config))


@pytest.mark.parametrize("command", ["reconstruct", "encode", "grid", "sample", "interpolate"])
def test_a_runs_images_that_are_gone_are_said_to_be_gone(own, command):
    forget(own / "runs", "/nowhere/photos")
    is_fitted = command in ("sample", "interpolate")
    message = fails(1, *JOBS[command], *(["--prior", "gaussian"] if is_fitted else []))
    assert "was trained on /nowhere/photos, which is gone\nhint: " in message
    if not is_fitted:
        assert "--data nowhere.zip: no such" in fails(1, *JOBS[command], "--data", "nowhere.zip")
        ok(*JOBS[command], "--data", "images")
