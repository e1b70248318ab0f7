"""aecli/ARCHITECTURE.md describes the code: its floors are the import contract's, its folders and files exist."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aecli"
PAGE = (PACKAGE / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_floors_are_the_contracts():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [each for each in pyproject["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    listed: dict[int, set[str]] = {}
    for floor, name in re.findall(r"^\| (\d) \| `(\w+)` \|", PAGE, re.MULTILINE):
        listed.setdefault(int(floor), set()).add(name)
    contracted = [set(layer.split(" | ")) for layer in contract["layers"]]
    assert [listed[floor] for floor in sorted(listed, reverse=True)] == contracted


def test_every_folder_is_in_the_page():
    folders = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_dir()}
    folders = {folder for folder in folders if "__pycache__" not in folder}
    assert {folder for folder in folders if f"`{folder}`" not in PAGE} == set()


def test_every_file_named_exists():
    files = {name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if "NAME" not in name}
    assert files and {name for name in files if not ((PACKAGE / name).is_file() or (ROOT / name).is_file())} == set()
