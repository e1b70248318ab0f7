"""The table of `eval` as Markdown, LaTeX and CSV, and which predictions the terminal compares."""

import csv
import json
import re

import numpy as np
import pytest

from aecli.cli.formats import Cell, as_latex, as_markdown
from tests.support.images import save_image
from tests.support.paired import crop
from tests.support.trained import fails, ok, ok_json


@pytest.fixture
def arguments(tmp_path):
    """`eval` of two predictions, the second one better."""
    for index in range(4):
        pixels = crop(index)
        save_image(tmp_path / f"gt/{index}.png", pixels)
        save_image(tmp_path / f"low/{index}.jpg", pixels, quality=10)
        save_image(tmp_path / f"high/{index}.jpg", pixels, quality=70)
    return ["eval", "--gt", tmp_path / "gt", "--pred", f"a_b|c={tmp_path / 'low'}", "--pred",
            f"100%={tmp_path / 'high'}", "--metrics", "psnr,ssim"]  # fmt: skip


def means(arguments):
    return [[f"{r['psnr']['mean']:.2f}", f"{r['ssim']['mean']:.4f}"] for r in ok_json(*arguments)["results"]]


def test_markdown(arguments):
    (low, high), printed = means(arguments), ok(*arguments, "--format", "markdown").stdout
    heading, rule, *rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert re.split(r" *(?<!\\)\| *", heading)[1:-1] == ["", "PSNR ↑", "SSIM ↑"] and rule == "| --- | ---: | ---: |"
    cells = [re.split(r" *(?<!\\)\| *", row)[1:-1] for row in rows]
    assert [row[0] for row in cells] == [r"a\_b\|c", "100%"]
    assert [cell.split()[0] for cell in cells[0][1:]] == low
    assert [cell.split()[0] for cell in cells[1][1:]] == [f"**{mean}**" for mean in high]
    assert "4 images" in printed and "image by image" not in printed and "psnr: PSNR of" in printed


def test_latex(arguments):
    (low, high), printed = means(arguments), ok(*arguments, "--format", "latex").stdout
    lines = [line for line in printed.splitlines() if not line.startswith("%")]
    assert lines[0] == r"\begin{tabular}{lrr}" and lines[-1] == r"\end{tabular}"
    heading, *rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r" \\")]
    assert heading[1:] == [r"PSNR $\uparrow$", r"SSIM $\uparrow$"]
    assert [row[0] for row in rows] == [r"a\_b|c", r"100\%"]
    assert [cell.split()[0] for cell in rows[0][1:]] == low
    assert [cell.split()[0] for cell in rows[1][1:]] == [rf"\textbf{{{mean}}}" for mean in high]
    assert printed.count("{") == printed.count("}")


def test_csv_has_the_numbers_of_the_json(arguments):
    rows = list(csv.DictReader(ok(*arguments, "--format", "csv").stdout.splitlines()))
    for row, result in zip(rows, ok_json(*arguments)["results"], strict=True):
        assert row["name"] == result["name"]
        for name in ("psnr", "ssim"):
            assert float(row[f"{name}_mean"]) == result[name]["mean"]
            assert [float(row[f"{name}_ci95_{end}"]) for end in ("low", "high")] == result[name]["ci95"]
        assert int(row["psnr_images"]) == 4 and not any(key.startswith("lpips") for key in row)


def test_sets_have_these_formats_too(tmp_path):
    for index in range(8):
        save_image(tmp_path / f"gt/{index}.png", crop(index))
        save_image(tmp_path / f"new/{index}.png", crop(index + 9))
    arguments = ["eval", "--gt", tmp_path / "gt", "--samples", tmp_path / "new", "--features", "alex"]
    (result,) = ok_json(*arguments)["results"]
    (row,) = csv.DictReader(ok(*arguments, "--format", "csv").stdout.splitlines())
    assert float(row["fd-alex"]) == result["fd-alex"] and float(row["kd-alex_value"]) == result["kd-alex"]["value"]
    assert f"| {result['fd-alex']:.2f} |" in ok(*arguments, "--format", "markdown").stdout
    assert f"& {result['fd-alex']:.2f} &" in ok(*arguments, "--format", "latex").stdout


def test_names_do_not_break_the_tables():
    name = r"\x{$y}&#_~^%[1](2)*`|<b>"
    (line,) = as_markdown(["", "a"], [[Cell(name), Cell("1")]], []).splitlines()[2:]
    assert line == r"| \\x{$y}&#\_~^%[1]\(2)\*\`\|\<b\> | 1 |"
    (line,) = [each for each in as_latex(["", "a"], [[Cell(name), Cell("1")]], []).splitlines() if " & " in each][1:]
    assert line == (r"\textbackslash{}x\{\$y\}\&\#\_\textasciitilde{}\textasciicircum{}\%{[}1](2)*`|<b> & 1 \\")


def test_json_and_another_format_are_refused(arguments):
    assert "--format" in fails(2, *arguments, "--json", "--format", "latex")


@pytest.mark.parametrize("name", ["table.tex", "table", "table.csv.txt"])
def test_per_image_refuses_other_suffixes(arguments, tmp_path, name):
    assert "--format latex" in fails(2, *arguments, "--per-image", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_per_image_as_json(arguments, tmp_path):
    save_image(tmp_path / "gt/0.png", crop(9))
    (tmp_path / "low/0.jpg").unlink()
    save_image(tmp_path / "low/0.png", crop(9))
    ok(*arguments, "--per-image", tmp_path / "each.JSON")
    ok(*arguments, "--per-image", tmp_path / "each.csv")
    rows = json.loads((tmp_path / "each.JSON").read_text())
    in_csv = list(csv.DictReader((tmp_path / "each.csv").read_text().splitlines()))
    assert (
        rows[0] == {"name": "0.png", "prediction": "a_b|c", "psnr": None, "ssim": pytest.approx(1)}
        and in_csv[0]["psnr"] == "inf"
    )
    for row, other in zip(rows[1:], in_csv[1:], strict=True):
        assert (row["name"], row["prediction"]) == (other["name"], other["prediction"])
        assert (row["psnr"], row["ssim"]) == (float(other["psnr"]), float(other["ssim"]))


def test_of_many_predictions_the_best_is_compared_with_every_other(tmp_path):
    arguments = ["eval", "--gt", tmp_path / "gt", "--metrics", "psnr"]
    for index in range(3):
        save_image(tmp_path / f"gt/{index}.png", crop(index))
        for quality in (20, 90, 30, 40, 50):
            save_image(tmp_path / f"q{quality}/{index}.jpg", crop(index), quality=quality)
    for quality in (20, 90, 30, 40, 50):
        arguments += ["--pred", tmp_path / f"q{quality}"]
    printed, found = ok(*arguments).stdout, ok_json(*arguments)
    assert len(found["comparisons"]) == 10
    assert "q90, best by PSNR" in printed and "all 10 pairs" in printed
    others = re.findall(
        r"q90 - (q\d+), image by image:\n  PSNR ↑ +(\S+) \[(\S+), (\S+)\]  better on 3, worse on 0", printed
    )
    means = {result["name"]: result["psnr"]["mean"] for result in found["results"]}
    assert [name for name, *_ in others] == ["q20", "q30", "q40", "q50"]
    for name, difference, low, high in others:
        assert float(difference) == pytest.approx(means["q90"] - means[name], abs=0.0051)
        assert float(low) <= float(difference) <= float(high)
    assert printed.count("image by image") == 4 and np.all([float(low) > 0 for _, _, low, _ in others])
    printed = ok(*arguments[:-2]).stdout
    assert printed.count("image by image") == 6
