"""The options of every command but `train`, with their defaults and checks. `None`: decided when the command runs."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aecli.configs import checks
from aecli.configs.checks import DEFAULT_METRICS, LARGEST_SIDE, METRICS, MOST_DRAWN, require
from aecli.configs.options import (
    DATA,
    MACHINE,
    METRICS_PANEL,
    MODEL,
    OUTPUT,
    RUN,
    CheckedOptions,
    check_value,
    option,
    option_fields,
)
from aecli.configs.train import (
    SOURCE_HELP,
    DataConfig,
    background_option,
    device_option,
    precision_option,
    runs_option,
    seed_option,
    workers_option,
)  # fmt: skip

model_option = partial(
    option, ..., "A registry name (its newest run under --runs), a run's folder or its name there, a .safetensors "
    "file, a diffusers folder, or hf:ORG/NAME.", MODEL,
    metavar="MODEL", completes="model",
)  # fmt: skip
batch_size_option = partial(option, 16, "Images at a time.", MACHINE, least=1)
overwrite_option = partial(
    option, False, "Write into a folder that already holds files, replacing those of the same name; never an input.",
    OUTPUT,
)  # fmt: skip
table_format_option = partial(
    option, "text", "The printed table's: markdown and latex are to paste, csv has all numbers.", OUTPUT,
    choices=checks.TABLE_FORMATS,
)  # fmt: skip
own_image_size_option = partial(
    option, None, "Side of the square images, in pixels, where not as in training.", DATA, least=1, most=LARGEST_SIDE,
    shown_default="as trained",
)  # fmt: skip
own_fit_option = partial(
    option, None, "squash: resize both sides at once; crop: resize the short side, crop the middle.", DATA,
    choices=checks.FITS, shown_default="as trained",
)  # fmt: skip
walk_prior_option = partial(
    option, "auto", "The prior in whose whitened space the path lies; auto: the best one fitted.", RUN,
    choices=tuple(prior for prior in checks.PRIORS if prior not in checks.TRAINED_PRIORS),
)  # fmt: skip
WALK_OUT_HELP = "A .png sheet, or an animated .gif or .webp; an existing file is replaced."


@dataclass(frozen=True)
class ReconstructConfig(CheckedOptions):
    """`aecli reconstruct`. Without `data`, the run's validation images; `split` is then `val`, else `all`."""

    model: str = model_option()
    data: str | None = option(None, f"Images to reconstruct. {SOURCE_HELP}", DATA, metavar="SOURCE",
                              completes="source", shown_default="the run's validation images")  # fmt: skip
    split: str | None = option(None, "Which of the images, by the run's own split.", DATA, choices=checks.SPLITS,
                               shown_default="all of --data, or val")  # fmt: skip
    background: str | None = background_option(None, shown_default="as trained")
    image_size: int | None = own_image_size_option()
    fit: str | None = own_fit_option()
    native: bool = option(
        False, "Keep each image's own size: pad to a multiple of 32, reconstruct, crop back. A model trained with "
        "--fit random-crop always does, unless --fit or --image-size says otherwise.", DATA,
    )  # fmt: skip
    tile: str = option(
        "auto", "Side of the tiles that pictures of their own sizes are computed in, in pixels, to which comes what "
        "their pixels depend on; auto: 1024 for pictures of more than 2 megapixels; off: whole.", MACHINE,
        metavar="auto|off|N", pattern=r"auto|off|[1-9]\d{0,4}", expected="auto, off or a number of pixels",
    )  # fmt: skip
    out: Path | None = option(None, "Folder to write to.", OUTPUT, metavar="DIR",
                              shown_default="reconstructions/MODEL")  # fmt: skip
    latents: Path | None = option(
        None, "Save the latents too: `mean` (N, …) and, where the model has a posterior, `log_variance`, with the "
        "images' names in the metadata.", OUTPUT, metavar="FILE.safetensors",
    )  # fmt: skip
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    device: str = device_option()
    precision: str = precision_option()
    workers: int | None = workers_option()

    def _check_together(self) -> None:
        for flag, value in (("--image-size", self.image_size), ("--fit", self.fit)):
            require(value is None or not self.native, flag, value, "no --native, which keeps each image's own size")
        if self.latents is not None:
            require(self.latents.suffix == ".safetensors", "--latents", self.latents, "the name of a .safetensors file")
            require(not self.native, "--latents", self.latents, "no --native, whose latents differ in size")


@dataclass(frozen=True)
class SampleConfig(CheckedOptions):
    """`aecli sample`. `out` is a `.png` sheet, or a folder of one PNG per image; `steps` are a flow's."""

    model: str = model_option()
    prior: str = option(
        "auto", "The distribution of latents; auto: the best available. gaussian and mixture are fitted on first use; "
        "flow, or autoregressive for a model with codes, is trained by aecli train prior.", RUN, choices=checks.PRIORS,
    )  # fmt: skip
    data: str | None = option(
        None, f"Images to fit gaussian or mixture to; needed for weights in no run folder. {SOURCE_HELP}", DATA,
        metavar="SOURCE", completes="source", shown_default="the run's training images",
    )  # fmt: skip
    n: int = option(64, "Images to draw.", RUN, least=1, most=checks.MOST_SAMPLES)
    classes: tuple[str, ...] = option(
        (), "Draw images of this class, a folder of the images of aecli train prior --labels folders; repeatable: of "
        "each in turn.", RUN, flag="--class", metavar="NAME",
    )  # fmt: skip
    guidance: float = option(
        1.0, "At more than 1, exaggerate: with --class what is particular to it, else what a flow has learned beyond "
        "the Gaussian that it began as.", RUN, least=0, most=100,
    )  # fmt: skip
    steps: int | None = option(None, "Steps of a flow's solver.", RUN, shown_default="50", least=1, most=MOST_DRAWN)
    temperature: float = option(
        1.0, "Multiplies the prior's standard deviations; divides logits.", RUN, least=0, most=1e6
    )
    seed: int = seed_option()
    out: Path = option(
        Path("samples.png"), "A .png sheet (an existing file is replaced), or a folder for one PNG per image.",
        OUTPUT, metavar="FILE|DIR",
    )  # fmt: skip
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()

    def _check_together(self) -> None:
        require(self.steps is None or self.prior in ("auto", "flow"), "--steps", self.steps,
                "--prior flow, the only one with steps")  # fmt: skip
        require(self.data is None or self.prior in ("auto", "gaussian", "mixture"), "--data", self.data,
                "--prior gaussian or mixture, which are fitted to images")  # fmt: skip
        require(not self.classes or self.prior in ("auto", *checks.TRAINED_PRIORS), "--class", ", ".join(self.classes),
                f"a prior that is trained, not --prior {self.prior}, which knows no classes")  # fmt: skip
        require(not self.classes or self.data is None, "--class", ", ".join(self.classes),
                "no --data: what is fitted to images knows no classes")  # fmt: skip
        is_guided_flow = self.prior in ("auto", "flow") and self.data is None
        require(self.guidance == 1 or bool(self.classes) or is_guided_flow, "--guidance", f"{self.guidance:g}",
                "a --class, or a flow, to exaggerate")  # fmt: skip
        require(self.data is None or self.steps is None, "--steps", self.steps,
                "no --data: only a flow has steps, and it isn't fitted to images")  # fmt: skip


@dataclass(frozen=True)
class InterpolateConfig(CheckedOptions):
    """`aecli interpolate A B`: the path from one image to another."""

    first: Path = option(..., "The image file to begin at.", "", metavar="A", positional=True)
    second: Path = option(..., "The image file to end at.", "", metavar="B", positional=True)
    model: str = model_option()
    prior: str = option(
        "auto", "The prior in whose space the path is an arc; auto: a flow, if aecli train prior trained one, else the "
        "best one fitted.", RUN, choices=tuple(prior for prior in checks.PRIORS if prior != "autoregressive"),
    )  # fmt: skip
    steps: int = option(8, "Images in the row.", RUN, least=2, most=MOST_DRAWN)
    out: Path = option(Path("interpolation.png"), WALK_OUT_HELP, OUTPUT, metavar="FILE")
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()


@dataclass(frozen=True)
class TraverseConfig(CheckedOptions):
    """`aecli traverse`: paths along the directions in which latents vary most."""

    model: str = model_option()
    prior: str = walk_prior_option()
    n: int = option(8, "Directions, one row each.", RUN, least=1, most=MOST_DRAWN)
    steps: int = option(7, "Images in a row.", RUN, least=2, most=MOST_DRAWN)
    out: Path = option(Path("traversal.png"), WALK_OUT_HELP, OUTPUT, metavar="FILE")
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()

    def _check_together(self) -> None:
        require(self.prior != "normal", "--prior", self.prior, "gaussian: N(0, I) has no principal directions")


@dataclass(frozen=True)
class EvalConfig(CheckedOptions):
    """`aecli eval`. Each of `pred`, or of `samples`, is `[NAME=]SOURCE`, each of `models` `[NAME=]MODEL`.

    `pred` and the reconstructions of `models` are compared image by image; `samples` as sets, by `features`, and with
    `train` to detect copies.
    """

    gt: str = option(..., f"Ground truth. {SOURCE_HELP}", DATA, metavar="SOURCE", completes="source")
    pred: tuple[str, ...] = option(
        (), "Images to compare with it, paired by relative path without suffix; repeatable.", DATA,
        metavar="[NAME=]SOURCE", completes="prediction",
    )  # fmt: skip
    models: tuple[str, ...] = option(
        (), "A model, whose reconstructions are measured without being written: a registry name, a run folder, or a "
        ".safetensors file; repeatable.", MODEL, name="model", metavar="[NAME=]MODEL", completes="model",
    )  # fmt: skip
    floor: bool = option(False, "Below each model, the PCA that keeps the same share, fitted to the training images of "
                         "its run.", MODEL)  # fmt: skip
    samples: tuple[str, ...] = option(
        (), "New images, compared with the ground truth as sets, whatever their names; repeatable.", DATA,
        metavar="[NAME=]SOURCE", completes="prediction",
    )  # fmt: skip
    train: str | None = option(None, "With --samples: the training images, to detect samples that are copies of them.",
                               DATA, metavar="SOURCE", completes="source")  # fmt: skip
    pred_name: tuple[str, ...] = option(
        (), "How predictions are named after the ground truth: '{}_rec' pairs 01_rec.png with 01.jpg; {:d} and {:04d} "
        "are the name with its number unpadded or padded, {name} that with its suffix; 'gt_{}=pred_{}' is how both are "
        "named; repeatable.", DATA, metavar="TEMPLATE",
    )  # fmt: skip
    on_mismatch: str = option(
        "error", "Images without a partner or of another size: fail, or leave them out; resize the prediction, or crop "
        "both to their common size from the top left.", DATA, choices=checks.MISMATCH_ACTIONS,
    )  # fmt: skip
    image_size: int | None = option(
        None, "Bring the ground truth to squares of this side first, as for training.", DATA, least=1,
        most=LARGEST_SIDE, shown_default="the first --model's, or as it is",
    )  # fmt: skip
    fit: str | None = option(
        None, "How --image-size does it: resize both sides at once, or resize the short side and crop the middle.",
        DATA, choices=checks.FITS, shown_default="the first --model's, or squash",
    )  # fmt: skip
    native: bool = option(False, "With --model: measure whole images, padded for the model and cropped back.", DATA)
    background: str | None = background_option(None, shown_default="the first --model's, or white")
    metrics: tuple[str, ...] = option(
        DEFAULT_METRICS, "Which, separated by commas; -y: of the luma (BT.601), as in tables of super-resolution; fid, "
        "kid (extra: fid), and over AlexNet fd-alex, kd-alex: of all images as two sets.", METRICS_PANEL,
        metavar=",".join(METRICS), choices=METRICS, separated=True,
    )  # fmt: skip
    crop_border: int = option(0, "Pixels to cut off on each side of both images before measuring.", METRICS_PANEL,
                              least=0, most=LARGEST_SIDE)  # fmt: skip
    data_range: int | None = option(
        None, "The highest value of images of more than 8 bits, such as 4095 for 12 bits in 16-bit files.",
        METRICS_PANEL, metavar="N", least=1, most=65535, shown_default="65535",
    )  # fmt: skip
    lpips_net: str = option("alex", "LPIPS' network; alex ships with aecli.", METRICS_PANEL, choices=checks.LPIPS_NETS)
    lpips_weights: Path | None = option(None, "That network's convolution weights, .safetensors or torchvision's .pth.",
                                        METRICS_PANEL, metavar="FILE")  # fmt: skip
    ssim_window: str = option("gaussian", "Wang's Gaussian window, or scikit-image's plain 7×7 one.", METRICS_PANEL,
                              choices=checks.SSIM_WINDOWS)  # fmt: skip
    features: str = option("auto", "With --samples: the feature network; auto: inception (extra: fid) if its weights "
                           "are available, else alex.", METRICS_PANEL, choices=checks.FEATURES)  # fmt: skip
    format: str = table_format_option()
    per_image: Path | None = option(None, "Write every image's values to this file; an existing one is replaced.",
                                    OUTPUT, metavar="FILE.csv|FILE.json")  # fmt: skip
    report: Path | None = option(
        None, "Write an HTML page of tables, charts and every image, worst first (with a folder of pictures beside it "
        "if there are many); an existing one is replaced.", OUTPUT, metavar="FILE.html",
    )  # fmt: skip
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    workers: int | None = workers_option()
    device: str = device_option()
    precision: str = precision_option()

    @property
    def truth_fit(self) -> str:
        """How the ground truth is brought to `image_size`."""
        return self.fit or "squash"

    @property
    def truth_background(self) -> str:
        """What transparency is laid over."""
        return self.background or "white"

    def _check_together(self) -> None:
        require(self.report is None or self.report.suffix.lower() in (".html", ".htm"), "--report", self.report,
                "the name of a .html file")  # fmt: skip
        require(self.per_image is None or self.per_image.suffix.lower() in (".csv", ".json"), "--per-image",
                self.per_image, "the name of a .csv or .json file\nhint: for a paper: --format latex")  # fmt: skip
        require(bool(self.pred or self.models or self.samples), "--pred", "",
                "at least one [NAME=]SOURCE, or one of --model or --samples")  # fmt: skip
        require(len(self.metrics) > 0, "--metrics", "", f"some of {','.join(METRICS)}")
        for flag in ("per_image", "report"):
            require(not getattr(self, flag) or not set(self.metrics) <= set(checks.SET_METRICS),
                    f"--{flag.replace('_', '-')}", getattr(self, flag),
                    f"a metric with values per image, not --metrics {','.join(self.metrics)}")  # fmt: skip
        if self.models:
            for flag, value in (("--image-size", self.image_size), ("--fit", self.fit)):
                require(value is None or not self.native, flag, value, "no --native, which measures whole images")
        else:
            require(self.fit is None or self.image_size is not None, "--fit", self.fit, "--image-size, which it is for")
            for flag, given, value in (("--floor", self.floor, ""), ("--native", self.native, ""),
                                       ("--precision", self.precision != "auto", f" {self.precision}")):  # fmt: skip
                require(not given, flag, value.strip(), "a --model, which it is for")
        for template in self.pred_name:
            require(checks.is_template(template), "--pred-name", repr(template), checks.TEMPLATES)
        is_used = "lpips" in self.metrics or ("dists" in self.metrics and self.lpips_net == "vgg")
        require(self.lpips_weights is None or is_used, "--lpips-weights", self.lpips_weights,
                f"lpips among the metrics, not --metrics {','.join(self.metrics)}")  # fmt: skip
        if self.samples:
            self._require_sets()
        else:
            require(self.train is None, "--train", self.train, "--samples to compare it with")
            require(self.features == "auto", "--features", self.features, "--samples, which alone use features")

    def _require_sets(self) -> None:
        for flag, given in (("--pred", self.pred), ("--model", self.models)):
            require(not given, "--samples", self.samples[0], f"no {flag}: sets are not compared image by image")
        for flag in ("per_image", "report", "lpips_weights", "image_size", "data_range", "pred_name"):
            value = getattr(self, flag)
            require(not value, f"--{flag.replace('_', '-')}", value, "--pred: sets have no values per image")
        require(self.metrics == DEFAULT_METRICS, "--metrics", ",".join(self.metrics),
                "--pred: sets have metrics of their own")  # fmt: skip
        require(self.crop_border == 0, "--crop-border", self.crop_border, "--pred: sets are compared as a whole")
        require(
            self.on_mismatch in ("error", "skip"), "--on-mismatch", self.on_mismatch, "error or skip with --samples"
        )


@dataclass(frozen=True)
class CompareConfig(CheckedOptions):
    """`aecli compare A B`: two files that `aecli eval --json` wrote."""

    first: Path = option(..., "The JSON of an evaluation.", "", metavar="A.json", positional=True)
    second: Path = option(..., "The JSON of another one, of the same images.", "", metavar="B.json", positional=True)
    format: str = table_format_option()


@dataclass(frozen=True)
class ScoreConfig(CheckedOptions):
    """`aecli score`: images ranked by how badly a model reconstructs them."""

    model: str = model_option()
    data: str = option(..., f"Images to rank. {SOURCE_HELP}", DATA, metavar="SOURCE", completes="source")
    labels: str | None = option(None, "folders: the first folder of an image's path says which kind it is of.", DATA,
                                choices=("folders",), shown_default="none")  # fmt: skip
    normal: str | None = option(None, "With --labels: the kind that is normal; how well the scores find the others is "
                                "told as AUROC.", DATA, metavar="NAME")  # fmt: skip
    on_mismatch: str = option("error", "Images that can't be read, or are too small: fail, or leave them out.", DATA,
                              choices=("error", "skip"))  # fmt: skip
    image_size: int | None = own_image_size_option()
    fit: str | None = own_fit_option()
    background: str | None = background_option(None, shown_default="as trained")
    by: str = option("mse", "The score to rank by: mean squared error, or LPIPS over AlexNet.", METRICS_PANEL,
                     choices=("mse", "lpips"))  # fmt: skip
    out: Path | None = option(None, "Write every image's scores to this file; an existing one is replaced.", OUTPUT,
                              metavar="FILE.csv|FILE.json")  # fmt: skip
    picture: Path | None = option(None, "Draw the ten worst images above their reconstructions; an existing file is "
                                  "replaced.", OUTPUT, metavar="FILE.png")  # fmt: skip
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    workers: int | None = workers_option()
    device: str = device_option()
    precision: str = precision_option()

    def _check_together(self) -> None:
        require((self.labels is None) == (self.normal is None), "--labels", self.labels or "",
                "--labels folders and --normal NAME together")  # fmt: skip
        require(self.out is None or self.out.suffix.lower() in (".csv", ".json"), "--out", self.out,
                "the name of a .csv or .json file")  # fmt: skip
        require(self.picture is None or self.picture.suffix.lower() == ".png", "--picture", self.picture,
                "the name of a .png file")  # fmt: skip
        require(self.fit is None or self.image_size is not None, "--fit", self.fit, "--image-size, which it is for")


@dataclass(frozen=True)
class GridConfig(CheckedOptions):
    """`aecli grid`. By default, every registry model that has a run, on the first run's validation images."""

    n: int = option(10, "Images, chosen at random.", DATA, least=1, most=MOST_DRAWN)
    data: str | None = option(None, f"Images to choose from. {SOURCE_HELP}", DATA, metavar="SOURCE",
                              completes="source", shown_default="the first run's validation images")  # fmt: skip
    models: tuple[str, ...] = option(
        (), "A row for this model: any MODEL that reconstruct takes; repeatable.", MODEL,
        name="model", metavar="MODEL", completes="model", shown_default="every registry model that has a run",
    )  # fmt: skip
    out: Path = option(Path("grid.png"), "The picture to write; an existing file is replaced.", OUTPUT,
                       metavar="FILE.png")  # fmt: skip
    seed: int = seed_option()
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()


@dataclass(frozen=True)
class ExportConfig(CheckedOptions):
    """`aecli export`. `data` are the images that the latents' statistics are taken of."""

    model: str = model_option()
    out: Path = option(..., "Folder to write to.", OUTPUT, metavar="DIR")
    format: str = option(
        ..., "diffusers: of kl and vq, what AutoencoderKL and VQModel load; onnx (extra: onnx): encoder.onnx and "
        "decoder.onnx; torch: encoder.pt2 and decoder.pt2, of torch.export.", OUTPUT, choices=checks.EXPORT_FORMATS,
    )  # fmt: skip
    data: str | None = option(
        None, f"Images for the latents' mean and standard deviation, at most 1,000. {SOURCE_HELP}", DATA,
        metavar="SOURCE", completes="source", shown_default="the run's training images",
    )  # fmt: skip
    license: str | None = option(
        None, "The licence that the model card states, as Hugging Face names it, such as mit.", OUTPUT, metavar="ID",
        pattern=r"[a-z0-9][a-z0-9.+-]{0,63}", expected="an identifier such as mit or apache-2.0",
    )  # fmt: skip
    push: str | None = option(
        None, "Upload what was written to this repository of the Hugging Face Hub (extra: hub); it is made if it is "
        "not there.", OUTPUT, metavar="hf:ORG/NAME", pattern=r"hf:[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}",
        expected="hf:ORG/NAME",
    )  # fmt: skip
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    device: str = device_option()


@dataclass(frozen=True)
class ModelsConfig(CheckedOptions):
    """`aecli models`: figures are those for images of side `image_size`."""

    runs: Path = runs_option()
    image_size: int = DataConfig.image_size
    device: str = device_option()
    precision: str = precision_option()

    def _check_together(self) -> None:
        side = next(each for each in option_fields(DataConfig) if each.name == "image_size")
        object.__setattr__(self, "image_size", check_value(side, self.image_size))
