"""What has grown slow is reported, and fails; what has not, and what can't be compared, is said."""

import re
import shutil

import pytest

from tests.benchmarks import compare
from tests.benchmarks.compare import NAMES, ROOT, STEPS, Comparison


@pytest.fixture
def slowed(tmp_path):
    """A copy of the package whose every command takes 1.5 s more."""
    shutil.copytree(ROOT / "aecli", tmp_path / "aecli", ignore=shutil.ignore_patterns("__pycache__"))
    main = tmp_path / "aecli" / "__main__.py"
    main.write_text("import time\n\ntime.sleep(1.5)\n" + main.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_what_is_slower_than_the_limit_is_reported_and_fails(slowed, capsys):
    # A limit below any ratio: what a busy machine makes of two times would decide otherwise.
    for limit, status in (("0.001", 1), ("1000", 0)):
        words = [str(ROOT), str(slowed), "--turns", "1", "--only", "aecli --help", "--limit", limit]
        assert compare.main(words) == status
        assert (f"slower than {limit} x" in capsys.readouterr().out) == bool(status)


@pytest.mark.parametrize(
    ("other", "slower"), [((1.5, 1.4), True), ((1.5, 1.2), False), ((0.5, 0.5), False), ((1.3, 1.3), False)]
)
def test_only_a_range_beyond_the_limit_is_slower(other, slower):
    assert Comparison("step", (1.0, 1.0), other).is_slower(1.3) == slower


def test_ratios_are_of_neighbours():
    assert Comparison("step", (1.0, 4.0), (2.0, 4.4)).ratios == pytest.approx([1.1, 2.0])


def test_equal_trees_are_not_measured(capsys):
    assert compare.main([str(ROOT)]) == 0
    assert "the same" in capsys.readouterr().out


def test_unknown_revisions_and_names_are_refused(capsys):
    for words in (["no-such-revision"], ["HEAD", "--only", "nothing"]):
        with pytest.raises(SystemExit) as exited:
            compare.main(words)
        assert exited.value.code == 2
    assert "neither a git revision nor a folder" in capsys.readouterr().err


def test_what_no_longer_works_fails(slowed, capsys):
    (slowed / "aecli" / "__main__.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    assert compare.main([str(ROOT), str(slowed), "--turns", "1", "--only", "aecli --help"]) == 1
    assert "aecli --help: fails in OTHER" in capsys.readouterr().out


@pytest.mark.soak  # the last step of .ci/run, the benchmarks against the commit before, runs them all
def test_all_of_them_run_and_steps_that_no_longer_work_fail(slowed, capsys):
    (slowed / "aecli" / "training" / "dry_run.py").write_text("raise RuntimeError\n", encoding="utf-8")
    assert compare.main([str(ROOT), str(slowed), "--turns", "1", "--limit", "1000"]) == 1
    printed = capsys.readouterr().out  # REV's steps ran before OTHER's failed
    assert re.findall("^(.*): fails in (.*?):", printed, re.MULTILINE) == [(name, "OTHER") for name in STEPS]
    assert all(name in printed for name in NAMES)
