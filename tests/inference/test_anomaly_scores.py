"""`aecli score`: against `eval` of the same reconstructions, and scikit-learn's AUROC."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.support.trained import NAMES, fails, ok, ok_json

SCORE = ["score", "--model", "vae", "--data", "images"]


def test_scores_are_those_of_eval_worst_first(trained):
    found = ok_json(*SCORE, "--labels", "folders", "--normal", "sub", "--out", "each.csv", "--picture", "worst.png")
    measured = ok_json("eval", "--gt", "images", "--model", "vae", "--metrics", "psnr,lpips")["per_image"]
    (values,) = measured["values"].values()
    by_name = dict(zip(measured["names"], zip(values["psnr"], values["lpips"], strict=True), strict=True))
    assert found["n"] == len(NAMES) == len(found["images"])
    for each in found["images"]:
        assert (each["psnr"], each["lpips"]) == pytest.approx(by_name[each["name"]])
        assert each["mse"] == pytest.approx(255**2 / 10 ** (each["psnr"] / 10))
        assert each["label"] == ("sub" if each["name"].startswith("sub/") else "")
    errors = [each["mse"] for each in found["images"]]
    assert errors == sorted(errors, reverse=True)
    is_other = [each["label"] != "sub" for each in found["images"]]
    for score in ("mse", "lpips"):
        area = roc_auc_score(is_other, [each[score] for each in found["images"]])
        assert found["auroc"][score]["value"] == pytest.approx(area)
    with open("each.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [each["name"] for each in found["images"]] and rows[0]["rank"] == "1"
    assert [float(row["lpips"]) for row in rows] == [each["lpips"] for each in found["images"]]
    with Image.open("worst.png") as picture:
        assert picture.width > 10 * 128 and np.asarray(picture).std() > 20


def test_the_table_shows_the_ten_worst_by_the_score_asked_for(trained):
    result = ok(*SCORE, "--by", "lpips", "--out", "each.json")
    ranked = json.loads((trained / "each.json").read_text())
    table = result.stdout.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:11]] == [each["name"] for each in ranked[:10]]
    assert max(map(len, table)) <= 80 and "AUROC" not in result.stdout
    assert [each["lpips"] for each in ranked] == sorted((each["lpips"] for each in ranked), reverse=True)


@pytest.mark.parametrize("wrong", ["--labels folders", "--normal sub", "--out x.txt", "--picture x.jpg", "--fit crop"])
def test_wrong_use(wrong):
    fails(2, *SCORE, *wrong.split())


def test_a_kind_that_is_not_there_is_refused_by_name(trained):
    message = fails(1, *SCORE, "--labels", "folders", "--normal", "good")
    assert "--normal good" in message and "sub" in message
