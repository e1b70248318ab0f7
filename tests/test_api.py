"""aecli as a Python package: what a call gives is what the command line gives."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import aecli
from aecli.configs import EvalConfig, ReconstructConfig, SampleConfig
from aecli.errors import ConfigError, DataError, ModelError
from aecli.evaluation.paired import evaluate
from aecli.inference.reconstruct import reconstruct
from aecli.sampling.sample import sample
from tests.support.images import picture, save_image
from tests.support.interrupts import interrupted_at
from tests.support.trained import ok, ok_json

SIZE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Ten images of two shapes, a VAE and an AE trained on them, and what the command line makes of them."""
    place = tmp_path_factory.mktemp("api")
    for seed in range(10):
        save_image(place / f"images/{seed}.png", picture(40, 50 + 10 * (seed % 2), seed))
        save_image(place / f"small/{seed}.png", picture(SIZE, SIZE, seed))
    for model in ("vae", "ae"):
        config = aecli.TrainConfig(
            model, data=str(place / "images"), epochs=1, image_size=SIZE, batch_size=5, options={"width": 4},
            device="cpu", precision="fp32", cache="off", out=place / model,
        )  # fmt: skip
        reports = list(aecli.train(config))
        assert type(reports[-1]).__name__ == "Finished"
    ok("reconstruct", "--model", place / "vae", "--data", place / "images", "--out", place / "made")
    ok("sample", "--model", place / "vae", "--n", 19, "--seed", 3, "--out", place / "drawn")
    return place


@pytest.fixture(scope="module")
def vae(place):
    return aecli.load(place / "vae")


def pictures(place, folder="images"):
    return [Image.open(file).convert("RGB") for file in sorted((place / folder).iterdir())]


def as_lists(images):
    return [np.array(image).tolist() for image in images]


class TestReconstruct:
    def test_as_the_command_writes_it(self, place, vae):
        assert as_lists(vae.reconstruct(pictures(place))) == as_lists(pictures(place, "made"))

    def test_each_kind_of_image_is_returned_as_that_kind(self, place, vae):
        image = pictures(place)[0].resize((SIZE, SIZE))
        array = np.array(image)
        tensor = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
        as_pil, as_array, as_tensor = (vae.reconstruct(each) for each in (image, array, tensor))
        assert isinstance(as_pil[0], Image.Image) and as_array.dtype == np.uint8
        assert as_array.shape == (1, SIZE, SIZE, 3) and as_tensor.shape == (1, 3, SIZE, SIZE)
        assert as_tensor.dtype == torch.float32 and as_tensor.abs().max() <= 1
        assert np.array_equal(np.array(as_pil[0]), as_array[0])
        rounded = ((as_tensor[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(rounded, as_array[0])

    def test_a_module_by_hand_gives_the_same(self, place, vae):
        batch = torch.rand(3, 3, 64, 32) * 2 - 1
        with torch.no_grad():
            expected = vae.module(batch)
        assert torch.allclose(vae.reconstruct(batch), expected, atol=1e-5)

    def test_more_images_than_go_at_once(self, vae):
        many = np.stack([picture(SIZE, SIZE, seed) for seed in range(40)])
        assert np.array_equal(vae.reconstruct(many)[:16], vae.reconstruct(many[:16]))
        assert len(vae.reconstruct(many)) == 40


def kinds_of_picture():
    """PIL images that RGB bytes are not: 16 bits, alpha, a palette, and turned by its EXIF note."""
    grey = (picture(40, 48, 1)[..., 0].astype(np.uint16) << 8) + 77
    yield "deep", Image.fromarray(grey), {}
    alpha = Image.fromarray(picture(40, 48, 2))
    alpha.putalpha(Image.fromarray(picture(40, 48, 3)[..., 0]))
    yield "alpha", alpha, {}
    yield "palette", Image.fromarray(picture(40, 48, 4)).quantize(16), {}
    note = Image.Exif()
    note[274] = 6
    yield "turned", Image.fromarray(picture(40, 48, 5)), {"exif": note}


def test_pil_images_of_all_kinds_are_what_files_of_them_are(place, vae):
    folder = place / "kinds"
    folder.mkdir()
    for name, image, options in kinds_of_picture():
        image.save(folder / f"{name}.png", **options)
    ok("reconstruct", "--model", place / "vae", "--data", folder, "--out", place / "made_kinds")
    opened = [Image.open(file) for file in sorted(folder.iterdir())]
    made = vae.reconstruct(opened)
    assert as_lists(made) == as_lists(pictures(place, "made_kinds")) and len(made) == 4
    assert opened[0].size == (48, 40)  # and are still open


class TestLatents:
    def test_encode_then_decode_is_reconstruct(self, place, vae):
        images = pictures(place)
        latents = vae.encode(images)
        assert latents.shape == (10, 64, 1, 1) and latents.dtype == torch.float32 and vae.options.width == 4
        made = [np.array(one, dtype=int) for one in vae.reconstruct(images)]
        again = [np.array(one, dtype=int) for one in vae.decode(latents)]
        assert max(np.abs(one - other).max() for one, other in zip(made, again, strict=True)) <= 1
        assert vae.decode(latents, output="array").shape == (10, SIZE, SIZE, 3)
        assert vae.decode(latents.numpy(), output="tensor").dtype == torch.float32

    def test_an_ae_has_latents_too(self, place):
        ae = aecli.load(place / "ae")
        assert ae.encode(pictures(place)[:2]).shape == (2, 64, 1, 1)
        with pytest.raises(ModelError, match="can't be sampled"):
            ae.sample(2, prior="normal")
        assert len(ae.sample(2, prior="gaussian")) == 2


class TestSample:
    def test_as_the_command_draws_it(self, place, vae):
        drawn = vae.sample(19, seed=3)
        assert as_lists(drawn) == as_lists(pictures(place, "drawn"))
        assert np.array_equal(vae.sample(5, seed=3, output="array")[4], np.array(drawn[4]))

    @pytest.mark.parametrize("wrong", [{"n": 0}, {"seed": -1}, {"temperature": -1}, {"output": "jpeg"}])
    def test_invalid_arguments_are_refused(self, vae, wrong):
        with pytest.raises(ConfigError):
            vae.sample(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "photo.png", [], [1, 2], None,
        np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8),
        torch.zeros(3, 33, 32), torch.zeros(1, 1, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_image_is_refused(vae, wrong):
    for call in (vae.encode, vae.reconstruct):
        with pytest.raises(DataError, match="expected"):
            call(wrong)


class TestRanges:
    @pytest.mark.parametrize(
        ("scale", "said"), [(lambda x: x * 255, "values from 0 to 25"), (lambda x: x * 2.1 - 1, "from -1 to 1.1"),
                            (lambda x: x - 1.5, "values from -1.5"), (lambda x: x / 0, "NaN|inf")],
    )  # fmt: skip
    def test_a_tensor_outside_its_range_is_refused(self, vae, scale, said):
        inside = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        inside[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
        for call in (vae.encode, vae.reconstruct):
            with pytest.raises(DataError, match=rf"{said}.*expected values in \[-1, 1\]"):
                call(scale(inside))

    def test_a_single_nan_is_found(self, vae):
        images = torch.zeros(40, 3, SIZE, SIZE)
        images[39, 2, 5, 7] = float("nan")
        with pytest.raises(DataError, match="NaN"):
            vae.encode(images)

    def test_the_whole_range_is_taken_with_the_rounding_of_half_precision(self, vae):
        ramp = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE)
        for images in (ramp, ramp.double(), ramp.bfloat16(), (ramp.half() * 1.0005)):
            assert vae.encode(images).isfinite().all()

    def test_the_conversion_that_is_told_of_bytes_is_right(self, place, vae):
        image = torch.from_numpy(np.array(pictures(place)[0].resize((SIZE, SIZE)))).permute(2, 0, 1)
        with pytest.raises(DataError, match=r"hint: x / 127\.5 - 1$"):
            vae.encode(image)
        assert torch.equal(vae.encode(image / 127.5 - 1), vae.encode(image.permute(1, 2, 0).numpy()))

    @pytest.mark.parametrize("wrong", [torch.full((1, 64, 1, 1), float("nan")), None, "x", [[1.0]], np.array(["x"])])
    def test_what_is_no_finite_latent_is_refused(self, vae, wrong):
        with pytest.raises(DataError, match="latents"):
            vae.decode(wrong)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"model": 3}, "--model"), ({"model": None}, "--model"), ({"runs": None}, "--runs"), ({"device": 3}, "--device"),
     ({"precision": "fp8"}, "--precision"), ({"image_size": 33}, "--image-size"), ({"fit": "stretch"}, "--fit")],
)  # fmt: skip
def test_arguments_of_load_are_refused_by_name(place, arguments, named):
    with pytest.raises(ConfigError, match=named):
        aecli.load(**{"model": place / "vae", **arguments})


def test_a_model_is_loaded_for_another_image_size(place):
    with pytest.warns(UserWarning, match="--image-size 64: .* was trained with 32"):
        model = aecli.load(place / "vae", image_size=64)
    assert model.image_size == 64 and model.reconstruct(pictures(place)[0])[0].size == (64, 64)


def test_only_a_config_is_trained():
    with pytest.raises(ConfigError, match="expected a TrainConfig"):
        aecli.train("vae")


def test_latents_of_another_model_are_refused(vae):
    for wrong in (torch.zeros(2, 3, 1, 1), torch.zeros(64, 1, 1), torch.zeros(0, 64, 1, 1)):
        with pytest.raises(DataError, match="expected"):
            vae.decode(wrong)


class TestEvaluate:
    def test_as_the_command_measures(self, place):
        printed = ok_json("eval", "--gt", place / "images", "--pred", f"same={place / 'images'}", "--pred",
                          f"made={place / 'made'}", "--on-mismatch", "resize", "--metrics", "psnr,ssim")  # fmt: skip
        predictions = {"same": place / "images", "made": place / "made"}
        report = aecli.evaluate(place / "images", predictions, on_mismatch="resize", metrics=("psnr", "ssim"))
        assert json.loads(json.dumps(report.to_json()["results"])) == printed["results"]

    def test_the_ways_to_name_predictions(self, place):
        images = place / "images"
        one, listed = (aecli.evaluate(images, pred, metrics=("psnr",)) for pred in (images, [images]))
        config = aecli.EvalConfig(gt=str(images), pred=(str(images),))
        asked = aecli.evaluate(config, metrics=("psnr",))
        assert one.to_json() == listed.to_json() == asked.to_json() and one.n == 10

    def test_images_in_memory_are_measured_as_their_files(self, place):
        truth, made = (np.stack([np.array(each) for each in pictures(place, name)]) for name in ("small", "made"))
        in_files = aecli.evaluate(place / "small", {"vae": place / "made"}, metrics=("psnr", "ssim")).to_json()
        tensor = torch.from_numpy(made).permute(0, 3, 1, 2)
        for pred in ({"vae": made}, {"vae": tensor}, {"vae": [Image.fromarray(each) for each in made]}):
            report = aecli.evaluate(truth, pred, metrics=("psnr", "ssim"))
            assert report.to_json()["results"] == in_files["results"]
        unnamed = aecli.evaluate(truth, made, metrics=("psnr",)).to_json()["results"]
        assert [(each["name"], each["psnr"]) for each in unnamed] == [("pred", in_files["results"][0]["psnr"])]

    @pytest.mark.parametrize("wrong", [None, 3, {"a": 3}, [np.zeros((2, 4, 4, 3))], {"a": None}])
    def test_what_is_neither_source_nor_images_is_refused(self, place, wrong):
        with pytest.raises(ConfigError, match="--pred"):
            aecli.evaluate(place / "images", wrong)
        with pytest.raises(ConfigError, match="--gt"):
            aecli.evaluate(3, place / "images")

    def test_errors_are_of_aecli(self, place):
        with pytest.raises(aecli.AecliError, match="nowhere"):
            aecli.evaluate(place / "images", place / "nowhere")


def test_importing_costs_no_torch_until_something_is_used():
    code = (
        "import sys, aecli; heavy = {'torch', 'numpy', 'PIL', 'rich', 'typer'}; "
        "assert 'load' in dir(aecli) and not heavy & set(sys.modules), heavy & set(sys.modules); "
        "aecli.TrainConfig('vae'); assert not heavy & set(sys.modules); aecli.load; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+", aecli._version.__version__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = aecli.nothing_like_it


class TestInterrupted:
    """An interrupt, or an exception of the listener, half-way: nothing is locked or half written, and it goes again."""

    @pytest.fixture
    def calls(self, place, tmp_path):
        shutil.copytree(place / "vae", tmp_path / "vae", ignore=shutil.ignore_patterns("prior*"))
        common = {"model": str(tmp_path / "vae"), "device": "cpu"}
        images = str(place / "images")
        return {
            "reconstruct": partial(reconstruct, ReconstructConfig(
                data=images, out=tmp_path / "made", latents=tmp_path / "latents.safetensors", batch_size=1,
                overwrite=True, **common,
            )),
            "sample": partial(sample, SampleConfig(n=40, out=tmp_path / "drawn.png", **common)),
            "evaluate": partial(evaluate, EvalConfig(
                gt=images, pred=(images,), metrics=("psnr",), batch_size=2, report=tmp_path / "page.html",
                per_image=tmp_path / "table.csv",
            )),
        }  # fmt: skip

    def require_tidy(self, folder):
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
        assert all(path.read_bytes().endswith(b"IEND\xaeB`\x82") for path in (folder / "made").rglob("*.png"))

    @pytest.mark.parametrize("name", ["reconstruct", "sample", "evaluate"])
    @pytest.mark.parametrize("interrupt", [True, False], ids=["signal", "listener"])
    def test_at_its_reports(self, calls, tmp_path, name, interrupt):
        def listen(left, _report):
            if next(left, None) is None:
                if interrupt:
                    signal.raise_signal(signal.SIGINT)
                raise KeyboardInterrupt

        for before in (0, 2):
            with pytest.raises(KeyboardInterrupt):
                calls[name](partial(listen, iter(range(before))))
            self.require_tidy(tmp_path)
        calls[name]()
        self.require_tidy(tmp_path)

    # Python drops a KeyboardInterrupt that comes while it closes a generator: then the call goes on to its end.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("name", ["reconstruct", "sample", "evaluate"])
    @pytest.mark.parametrize("numbers", [(80, 300), pytest.param(range(1, 1000, 5), marks=pytest.mark.soak)],
                             ids=["quick", "soak"])  # fmt: skip
    def test_between_them(self, calls, tmp_path, name, numbers):
        for number in numbers:
            try:
                with interrupted_at(number):
                    calls[name]()
            except KeyboardInterrupt:
                self.require_tidy(tmp_path)
        calls[name]()
        self.require_tidy(tmp_path)
