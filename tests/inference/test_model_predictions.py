"""`aecli eval --model`: the numbers of the way through files, to the last digit; what models keep; their floors."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import aecli
from aecli.inference import loaded_model
from aecli.models.ae import AE
from aecli.models.options import PatchOptions
from tests.support.images import picture, save_image, truncate
from tests.support.ranks import run_ranks
from tests.support.trained import SIZE, TRAIN, fails, invoke, ok, ok_json, write_images

SMALL = ["--data", "images", "--val-fraction", "0.3", "--image-size", str(SIZE), "--quiet"]


@pytest.fixture(scope="module")
def more_runs(trained_once, tmp_path_factory):
    """Runs of a resnet, of a PCA of pieces of whole pictures, and of the PCA that keeps what `ae` does."""
    place = tmp_path_factory.mktemp("more")
    (place / "images").symlink_to(trained_once / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        network = ["--width", "4", "-o", "depth=1", "--epochs", "1", "--batch-size", "9"]
        ok("train", "resnet", *SMALL, *network, "--fit", "squash", "--out", "resnet")
        for name, fit, side in (("pieces", "random-crop", 8), ("pca16", "squash", 16)):
            ok("train", "pca", *SMALL, "--fit", fit, "-o", f"downsampling={side}", "--out", name)
    return place


@pytest.fixture
def place(trained, more_runs):
    """As `trained`, with the folder `more` of these runs."""
    (trained / "more").symlink_to(more_runs)
    return trained


def measure(*args, gt="images"):
    return ok_json("eval", "--gt", gt, "--batch-size", "5", *args)


def without_figures(document):
    """What does not depend on whether predictions were read or made."""
    results = [{key: value for key, value in each.items() if key != "model"} for each in document["results"]]
    return results, document["comparisons"], document["protocol"], document["per_image"], document["unpaired"]


class TestAsThroughFiles:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_to_the_last_digit(self, place, monkeypatch, workers):
        """In batches of two for the models, of five to be measured, which don't end at the same images."""
        monkeypatch.setattr(loaded_model, "WORKER_PIXELS", 2 * SIZE**2)
        models = {"ae": "ae", "vae": "runs/vae", "r": "more/resnet"}
        for name, model in models.items():
            ok("reconstruct", "--model", model, "--data", "images", "--batch-size", "5", "--out", f"out/{name}")
        files = [word for name in models for word in ("--pred", f"{name}=out/{name}")]
        named = [word for name, model in models.items() for word in ("--model", f"{name}={model}")]
        made = measure(*named, "--workers", workers)
        assert made["n"] == 12
        assert without_figures(made) == without_figures(measure(*files, "--image-size", str(SIZE)))

    @pytest.mark.parametrize("options", [["--model", "p=more/pieces"], ["--model", "p=ae", "--native"]], ids="-".join)
    def test_of_whole_images_of_several_sizes(self, place, monkeypatch, options):
        monkeypatch.setattr(loaded_model, "WORKER_PIXELS", 2 * 40 * 48)
        for seed, size in enumerate([(40, 48), (33, 50), (40, 48), (40, 48), (64, 64), (33, 50), (40, 48), (90, 41),
                                     (40, 48), (40, 48), (33, 50)]):  # fmt: skip
            save_image(place / f"mixed/{seed:02}.png", picture(*size, seed))
        deep = np.random.default_rng(0).integers(0, 65536, (40, 48), np.uint16)
        Image.fromarray(deep).save(place / "mixed/11.png")  # of 16 bits, measured unrounded
        model = options[1].removeprefix("p=")
        ok("reconstruct", "--model", model, "--native", "--data", "mixed", "--batch-size", "5", "--out", "out")
        made = measure(*options, gt="mixed")
        assert "depth" in made["definitions"]
        assert without_figures(made) == without_figures(measure("--pred", "p=out", gt="mixed"))

    def test_without_what_can_not_be_read_beside_what_is_read(self, place, monkeypatch):
        monkeypatch.setattr(loaded_model, "WORKER_PIXELS", 3 * SIZE**2)
        shutil.copytree("images", "some")
        truncate(place / "some/i4.png")
        assert invoke("reconstruct", "--model", "ae", "--data", "some", "--batch-size", "5", "--out", "out").exit_code
        shutil.copytree("out", "fewer")
        (place / "fewer/i8.png").unlink()
        options = ["--on-mismatch", "skip", "--image-size", str(SIZE), "--pred", "f=fewer"]
        made = measure("--model", "m=ae", *options, gt="some")
        read = measure("--pred", "m=out", *options, gt="some")
        assert (made["n"], [each["name"] for each in made["results"]]) == (10, ["f", "m"])
        assert made["per_image"] == {"names": made["per_image"]["names"],
                                     "values": {name: read["per_image"]["values"][name] for name in "fm"}}  # fmt: skip
        assert made["comparisons"][0]["psnr"]["ties"] == 10

    def test_in_several_processes(self, place):
        arguments = ["eval", "--gt", "images", "--model", "ae", "--floor", "--metrics", "psnr", "--batch-size", "2",
                     "--json"]  # fmt: skip
        statuses, stdout, stderr = run_ranks(place, arguments, 2)
        assert statuses == [0, 0], stderr
        found, alone = json.loads(stdout), ok_json(*arguments[:-1])
        assert without_figures(found) == without_figures(alone)

    def test_from_python(self, place):
        found = aecli.evaluate("images", models=("ae", "v=runs/vae"), metrics=("psnr",))
        model = aecli.load("ae")
        pictures = [Image.open(path) for path in sorted((place / "images").rglob("*.png"))]
        truth = [np.array(each.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for each in pictures]
        by_hand = aecli.evaluate(truth, {"ae": model.reconstruct(np.stack(truth))}, metrics=("psnr",))
        assert [result.name for result in found.results] == ["ae", "v"]
        assert found.results[0].scores["psnr"].mean == pytest.approx(by_hand.results[0].scores["psnr"].mean, abs=1e-3)


class TestHowTheTruthIsRead:
    def test_as_the_models_do_or_as_options_say(self, place):
        protocol = measure("--model", "ae", "--metrics", "psnr")["protocol"]
        assert (protocol["image_size"], protocol["fit"], protocol["background"]) == (SIZE, "squash", "white")
        options = ["--image-size", "64", "--fit", "crop", "--background", "black", "--metrics", "psnr"]
        protocol = measure("--model", "ae", "--model", "more/pieces", *options)["protocol"]
        assert (protocol["image_size"], protocol["fit"], protocol["background"]) == (64, "crop", "black")

    def test_models_that_differ_are_refused_with_the_options_that_decide(self, place):
        message = fails(2, "eval", "--gt", "images", "--model", "ae", "--model", "more/pieces")
        assert "--model pieces: reads images whole" in message and f"ae {SIZE}x{SIZE} by squash" in message
        hint = message.partition("hint: ")[2].split()
        assert hint == ["--image-size", str(SIZE), "--fit", "squash", "--background", "white"]
        assert measure("--model", "ae", "--model", "more/pieces", "--metrics", "psnr", *hint)["n"] == 12
        assert measure("--model", "ae", "--model", "more/pieces", "--metrics", "psnr", "--native")["n"] == 12

    def test_a_model_that_can_not_have_the_size_is_refused_by_name(self, place):
        message = fails(2, "eval", "--gt", "images", "--model", "more/resnet", "--model", "ae", "--image-size", "40")
        assert "'ae' needs a multiple of 32" in message

    def test_weights_that_do_not_say_are_given_what_the_others_read(self, place):
        save_file(load_file("runs/ae/model.safetensors"), "plain.safetensors")
        found = measure("--model", "plain.safetensors", "--model", "ae", "--metrics", "psnr")
        values = found["per_image"]["values"]
        assert found["protocol"]["image_size"] == SIZE and values["plain"] == values["ae"]

    def test_names(self, place):
        assert "already used" in fails(2, "eval", "--gt", "images", "--pred", "ae=images", "--model", "ae")
        assert "already used" in fails(2, "eval", "--gt", "images", "--model", "ae", "--model", "runs/ae")
        found = measure("--model", "ae", "--model", "b=runs/ae", "--pred", "images", "--metrics", "psnr",
                        "--on-mismatch", "resize")  # fmt: skip
        assert [each["name"] for each in found["results"]] == ["images", "ae", "b"]

    @pytest.mark.parametrize(
        "options", [["--pred", "images", "--floor"], ["--pred", "images", "--native"],
                    ["--samples", "images", "--model", "ae"], ["--pred", "images", "--precision", "bf16"],
                    ["--model", "ae", "--native", "--fit", "crop"]],
        ids=" ".join,
    )  # fmt: skip
    def test_options_without_what_they_are_for(self, place, options):
        fails(2, "eval", "--gt", "images", *options)


class TestFigures:
    def test_what_a_model_keeps_and_how_fast_it_is(self, place):
        found = measure("--pred", "images", "--model", "ae", "--metrics", "psnr", "--on-mismatch", "resize")
        read, made = found["results"]
        parameters = sum(parameter.numel() for parameter in aecli.load("ae").module.parameters())
        assert "model" not in read
        assert made["model"]["kept"] == {"numbers": 64, "share": 64 / (3 * SIZE**2), "bits_per_pixel": None}
        assert (made["model"]["parameters"], made["model"]["precision"]) == (parameters, "fp32")
        assert 1 < made["model"]["images_per_s"] < 1e6

    def test_columns_stand_in_every_format_and_in_the_page(self, place):
        arguments = ["eval", "--gt", "images", "--pred", "a=images", "--model", "ae", "--on-mismatch", "resize"]
        printed = ok(*arguments).stdout
        table = printed[: printed.index("image by image")]
        assert "keeps" in table and "1/48" in table and "154k params" in table and "img/s" in table
        assert max(map(len, table.splitlines())) <= 80
        arguments += ["--metrics", "psnr"]
        ok(*arguments, "--report", "page.html")
        page = (place / "page.html").read_text()
        assert '<td class="number">1/48</td><td class="number">153,623</td>' in page
        data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
        assert data["predictions"] == ["a", "ae"] and [len(each) for each in data["embedded"]] == [3] * 12
        heading = ok(*arguments, "--format", "markdown").stdout.splitlines()[0]
        assert [word.strip() for word in heading.split("|")[1:5]] == ["", "keeps", "parameters", "images/s"]
        assert "img/s" in (reduced := ok(*arguments, "--precision", "bf16").stdout) and "bf16" in reduced
        rows = list(csv.DictReader(ok(*arguments, "--format", "csv").stdout.splitlines()))
        assert (rows[1]["model_parameters"], rows[0]["model_parameters"]) == ("153623", "")
        assert "keeps" not in ok("eval", "--gt", "images", "--pred", "images", "--metrics", "psnr").stdout


class TestFloor:
    def test_it_is_the_pca_that_train_makes_of_the_same_images(self, place):
        found = measure("--model", "ae", "--model", "r=more/resnet", "--floor", "--model", "more/pca16", "--metrics",
                        "psnr")  # fmt: skip
        names = [each["name"] for each in found["results"]]
        assert names == ["ae", "pca 1/48", "r", "pca 1/12", "pca16"]
        values = found["per_image"]["values"]
        assert values["pca 1/48"]["psnr"] == pytest.approx(values["pca16"]["psnr"], abs=1e-3)
        floors = [each["model"] for each in found["results"] if each["model"]["floor_of"]]
        assert [floor["floor_of"] for floor in floors] == [["ae"], ["r"]]
        assert floors[0]["kept"] == found["results"][0]["model"]["kept"]

    def test_models_that_keep_as_much_have_one(self, place):
        result = ok("eval", "--gt", "images", "--model", "ae", "--model", "vae", "--floor", "--metrics", "psnr")
        assert result.stdout.count("\npca 1/48 ") == 1 and "pca 1/48: the floor of ae, vae" in result.stdout

    def test_what_keeps_bits_has_none(self, place, monkeypatch):
        monkeypatch.setattr(AE, "bits_per_latent", 10.0)
        result = ok("eval", "--gt", "images", "--model", "ae", "--floor", "--metrics", "psnr")
        assert "--floor: ae has none" in result.stderr and "\npca" not in result.stdout
        assert "0.00977 bpp" in result.stdout

    def test_it_is_never_fitted_to_what_is_measured(self, place):
        shutil.copy("runs/ae/model.safetensors", "alone.safetensors")
        message = fails(1, "eval", "--gt", "images", "--model", "alone.safetensors", "--floor")
        assert "no run folder" in message and "--floor" in message
        write_images(place / "gone", ["a", "b", "c"])
        ok("train", "ae", *TRAIN[2:], "--data", "gone", "--epochs", "1", "--out", "run", "--quiet")
        shutil.rmtree(place / "gone")
        message = fails(1, "eval", "--gt", "images", "--model", "run", "--floor")
        assert "gone" in message and "leave out --floor" in message

    @pytest.mark.parametrize(
        ("image_size", "shape", "expected"),
        [(64, (16, 8, 8), (8, 16)), (256, (1024, 8, 8), (16, 256)), (64, (4, 16, 16), (4, 4)), (64, (768,), (16, 48)),
         (32, (3072,), (16, 768)), (32, (4096,), None), (32, (7,), (32, 7))],
        ids=str,
    )  # fmt: skip
    def test_its_patches(self, image_size, shape, expected):
        from aecli.inference.floor import floor_options

        class Model:
            def latent_shape(self, size):
                return shape

        assert floor_options(Model(), image_size) == (expected and PatchOptions(*expected))
