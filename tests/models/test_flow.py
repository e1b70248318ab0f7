"""A prior that is trained: the flow itself, and `aecli train prior` through the engine, to samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aecli.configs import TrainConfig
from aecli.data.decoding.decode import decode_fitted
from aecli.data.sources.registry import list_images
from aecli.errors import CheckpointError, ConfigError, DataError, ModelError
from aecli.inference.loaded_model import load_model as load_autoencoder
from aecli.models import registry
from aecli.progress import Notice, ignore
from aecli.runs.checkpoints import fingerprint, load, load_model, read_document
from aecli.sampling.prior_choice import choose_prior, sample_noise
from aecli.training.events import EpochReport, Finished, Interrupted
from aecli.training.inputs.latent_sets import as_places
from aecli.training.loop import train
from tests.support.ranks import run_ranks
from tests.support.shards import write_tars
from tests.support.trained import NAMES, SIZE, TRAIN, VAL, assert_same_run, fails, invoke, ok, ok_json, png, pngs, rows

ROOT = Path(__file__).parent.parent.parent
SMALL = {"channels": 4, "width": 32, "depth": 2, "heads": 2}
OPTIONS = [part for key, value in SMALL.items() if key != "width" for part in ("-o", f"{key}={value}")]
PRIOR = ["train", "prior", "--model", "vae", "--width", "32", *OPTIONS, "--epochs", "3", "--batch-size", "4",
         "--device", "cpu", "--quiet"]  # fmt: skip


def build(**options):
    torch.manual_seed(0)
    return registry.build("prior", registry.resolve_options("prior", {**SMALL, **options}))


def latents(count=400, channels=6, side=2):
    """Latents in two clusters of colour, with a pattern over the places, far from standard."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
    direction = torch.linspace(1, 2, channels)[None, :, None, None]
    places = torch.tensor([[1.0, -1.0], [0.5, 2.0]])[:side, :side]
    return 5 + 3 * sign * direction * places + 0.2 * torch.randn(count, channels, side, side, generator=generator)


# The flow


def test_principal_channels_are_those_of_the_covariance_over_all_places():
    model, data = build(latent_channels=6, side=2), latents()
    for batch in data.split(70):
        model.partial_fit(batch)
    model.fit()
    by_hand = data.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(by_hand.T, ddof=0))
    assert model.mean.numpy() == pytest.approx(by_hand.mean(axis=0), abs=1e-4)
    for row, vector in zip(model.basis.numpy(), vectors.T[::-1], strict=False):
        assert abs(row @ vector) == pytest.approx(1, abs=1e-3)
    examples = model.whiten(data)
    assert examples.shape == (400, 4, 2, 2) == (400, *model.example_shape(64))
    lost = 1 - values[::-1][:4].sum() / values.sum()
    error = ((model.unwhiten(examples) - data) ** 2).mean() / data.var()
    assert float(error) == pytest.approx(lost, rel=0.2)
    assert float(examples.var()) == pytest.approx(1, abs=0.05)


def test_with_all_channels_nothing_is_lost():
    model, data = build(latent_channels=4, side=2), latents(channels=4)
    model.partial_fit(data)
    model.fit()
    torch.testing.assert_close(model.unwhiten(model.whiten(data)), data, rtol=1e-4, atol=1e-4)


def test_latents_that_are_all_the_same_are_told():
    model = build(latent_channels=4, side=1)
    model.partial_fit(torch.ones(10, 4, 1, 1))
    with pytest.raises(ModelError, match="the same"):
        model.fit()


def test_at_first_it_does_not_move_and_the_loss_is_that_of_standing_still():
    model, examples = build(latent_channels=4, side=2), torch.randn(64, 4, 2, 2)
    noise = model.draw_noise(64, 64)
    assert model.sample(noise[:, 1:].reshape(64, 4, 2, 2), 5).equal(noise[:, 1:].reshape(64, 4, 2, 2))
    by_hand = ((examples - noise[:, 1:].reshape(64, 4, 2, 2)) ** 2).mean()
    torch.testing.assert_close(model.loss(examples, noise).total, by_hand)


def test_without_noise_the_loss_is_the_same_every_time():
    model, examples = build(latent_channels=4, side=2).eval(), torch.randn(8, 4, 2, 2)
    state = torch.random.get_rng_state()
    assert model.loss(examples).total.equal(model.loss(examples).total)
    assert torch.random.get_rng_state().equal(state)


def test_a_field_that_is_known_is_followed(monkeypatch):
    # dx/dt = x from x(0): after n of Euler's steps of 1/n, (1 + 1/n)^n times that.
    model = build(latent_channels=4, side=1)
    monkeypatch.setattr(type(model), "forward", lambda self, mixed, time: mixed)
    start = torch.randn(3, 4, 1, 1)
    for steps in (1, 8):
        torch.testing.assert_close(model.sample(start, steps), start * (1 + 1 / steps) ** steps)


def test_it_learns_a_distribution_of_two_clusters():
    model = build(latent_channels=4, side=1)
    generator = torch.Generator().manual_seed(1)

    def draw(count):
        sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
        return sign * torch.tensor([2.0, -1.0, 0.5, 0.0])[None, :, None, None] + 0.1 * torch.randn(
            count, 4, 1, 1, generator=generator
        )

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=model.betas)
    for _ in range(400):
        examples = draw(256)
        loss = model.loss(examples, model.draw_noise(256, 32)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.eval().sample(torch.randn(600, 4, 1, 1, generator=generator), 50)[:, :, 0, 0]
    first = drawn[:, 0]
    assert 0.4 < float((first > 0).float().mean()) < 0.6
    assert float((first.abs() - 2).abs().median()) < 0.2
    assert float((drawn[:, 1] + 0.5 * first).abs().median()) < 0.2  # the two numbers belong together


def test_a_latent_without_places_is_one_of_side_1():
    assert as_places((7,)) == (7, 1, 1)
    assert as_places((7, 3, 3)) == (7, 3, 3)
    for shape in [(7, 3, 4), (7, 3), ()]:
        with pytest.raises(ModelError, match="latents of shape"):
            as_places(shape)


@pytest.mark.parametrize(
    "wrong, flag",
    [({"width": 30, "heads": 4}, "--width"), ({"channels": 0}, "--option channels"), ({"dropout": 1.0}, "dropout"),
     ({"channels": 9, "latent_channels": 8}, "--option channels")],
)  # fmt: skip
def test_options_that_cannot_be_meant(wrong, flag):
    with pytest.raises(ConfigError, match=flag):
        build(**wrong)


# aecli train prior


def config_of(run):
    return json.loads((run / "config.json").read_text())


@pytest.mark.draws
def test_a_prior_is_a_run_like_any_other(own):
    ok(*PRIOR)
    run = own / "runs/prior"
    assert {"config.json", "curves.png", "last.safetensors", "metrics.csv", "model.safetensors", "previews"} <= {
        path.name for path in run.iterdir()
    }
    config = config_of(run)
    weights = (own / "runs/vae/model.safetensors").resolve()
    assert config["options"]["autoencoder"] == {"path": str(weights), "sha256": fingerprint(weights)}
    assert config["split"]["train"] == len(NAMES) - len(VAL) and config["split"]["val"] == len(VAL)
    assert config["options"]["image_size"] == SIZE
    assert config["model"]["options"] == {**SMALL, "dropout": 0.0, "latent_channels": 64, "side": 1}
    table = rows(run)
    assert [row["val_psnr"] for row in table] == [""] * 3
    assert all(float(row["val_loss"]) > 0 for row in table)
    sheet = png(run / "previews/epoch-0003.png")
    assert sheet.std() > 0
    assert "was finished already" in ok(*PRIOR[:-1]).stdout


def test_stopped_anywhere_it_ends_as_if_never_stopped(own):
    config = TrainConfig(
        "prior", autoencoder="vae", data="images", val_fraction=0.3, image_size=SIZE, epochs=4, batch_size=3, lr=1e-3,
        ema=0.9, options=SMALL, device="cpu", out=own / "whole",
    )  # fmt: skip
    assert isinstance(list(train(config))[-1], Finished)

    micros = config.replace(out=own / "pieces", checkpoint_every=1e-9)
    calls = 0

    def stops():
        nonlocal calls
        calls += 1
        return calls % 7 == 0

    ends = []
    while not (ends and isinstance(ends[-1], Finished)):
        ends.append(list(train(micros, stops))[-1])
        assert len(ends) < 40
    assert sum(isinstance(end, Interrupted) for end in ends) >= 3
    assert_same_run(own / "whole", own / "pieces")


def test_two_processes_take_the_steps_of_one(own, monkeypatch):
    ok(*PRIOR, "--precision", "fp32", "--out", "one")
    monkeypatch.chdir(ROOT)
    statuses, _, said = run_ranks(own, [*PRIOR, "--precision", "fp32", "--out", "two"], 2)
    assert statuses == [0, 0], said
    one, two = (rows(own / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for key in ("train_loss", "val_loss"):
        assert [float(row[key]) for row in two] == pytest.approx([float(row[key]) for row in one], rel=1e-4)


def test_the_same_prior_repeated_from_its_folder(own):
    ok(*PRIOR)
    ok("train", "prior", "--config", "runs/prior", "--out", "again", "--quiet")
    assert_same_run(own / "runs/prior", own / "again")


OLD_NAMES = {
    "proj_in": "read", "proj_out": "write", "pos_embed": "places", "time_mlp": "time", "final_modulation": "shift",
    "modulation": "condition", "qkv": "attend", "attention_out": "mix", "mlp": "perceptron",
}  # fmt: skip


def with_old_names(path):
    """Write a checkpoint again with the parameters' first names."""
    tensors, document = load(path)
    old = {".".join(OLD_NAMES.get(part, part) for part in key.split(".")): value for key, value in tensors.items()}
    assert any("read.weight" in key for key in old) and not any("proj_in" in key for key in old)
    save_file(old, path, {"format": "pt", "aecli": json.dumps(document)})


def test_checkpoints_with_the_old_names_of_parameters_load_and_resume(own):
    ok(*PRIOR)
    ok(*PRIOR, "--epochs", "2", "--out", "old")
    weights = load_model(own / "old/model.safetensors")[0].state_dict()
    for name in ("model.safetensors", "last.safetensors"):
        with_old_names(own / "old" / name)
    again = load_model(own / "old/model.safetensors")[0].state_dict()
    assert all(torch.equal(again[key], value) for key, value in weights.items())
    ok(*PRIOR, "--out", "old")
    assert_same_run(own / "runs/prior", own / "old")


def test_its_images_are_those_of_the_autoencoders_run_unless_told_otherwise(own):
    from aecli.recipes.layering import layer

    recorded = config_of(own / "runs/vae")["options"]
    config = layer("prior", {"autoencoder": "vae"})
    assert (config.data, config.val_fraction, config.image_size) == (recorded["data"], 0.3, SIZE)
    assert (config.batch_size, config.ema) == (128, 0.999), "of the recipe that is called like the model"
    assert layer("prior", {"autoencoder": "vae", "val_fraction": 0.5}).val_fraction == 0.5
    validated = layer("prior", {"autoencoder": "vae", "val_data": "demo"})
    assert (validated.val_data, validated.val_fraction) == ("demo", TrainConfig.val_fraction)
    assert layer("prior", {"autoencoder": "vae", "data": "images"}).val_fraction == 0.3, "by another path the same"
    assert layer("prior", {"autoencoder": "vae", "data": "demo"}).val_fraction == TrainConfig.val_fraction
    assert layer("prior", {"autoencoder": "vae", "recipe": "quick"}).batch_size == 8


def test_mirror_images_double_the_set(own):
    reports = list(train(TrainConfig(
        "prior", autoencoder="vae", data="images", val_fraction=0.3, image_size=SIZE, epochs=1, batch_size=3, flip=True,
        options=SMALL, device="cpu", out=own / "flipped")))  # fmt: skip
    epoch = next(report for report in reports if isinstance(report, EpochReport))
    assert int(epoch.row["step"]) == 2 * (len(NAMES) - len(VAL)) // 3


def test_mirror_images_are_encoded_and_latents_never_mirrored(own):
    ok("train", "vae", *TRAIN, "--image-size", "64", "--epochs", "1", "--out", "larger", "--quiet")
    config = TrainConfig(
        "prior", autoencoder="larger", data="images", val_fraction=0.3, image_size=64, epochs=2, batch_size=4, lr=1e-9,
        flip=True, options=SMALL, device="cpu", precision="fp32", out=own / "flipped",
    )  # fmt: skip
    seen = []
    loss = registry.load("prior").loss

    def noting(self, examples, *noise):
        if self.training and noise:
            seen.extend(examples.clone())
        return loss(self, examples, *noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.load("prior"), "loss", noting)
        list(train(config))
    flow, _ = load_model(own / "flipped/model.safetensors")
    images = [image for image in list_images("images") if image.key not in VAL]
    pixels = np.stack([decode_fitted(image, 64, "squash") for image in images]).transpose(0, 3, 1, 2)
    loaded = load_autoencoder("larger", own / "runs")
    both = [loaded.latents(loaded.batch(np.ascontiguousarray(each)))[0] for each in (pixels, pixels[..., ::-1])]
    expected = flow.whiten(torch.from_numpy(np.concatenate(both))).flatten(1)
    taken = torch.stack(seen).flatten(1)
    assert taken.shape == (2 * len(expected), expected.shape[1]) and expected.shape[1] == 16
    distances = torch.cdist(taken.double(), expected.double())
    assert float(distances.min(dim=1).values.max()) < 1e-4
    assert sorted(distances.argmin(dim=1).tolist()) == sorted(2 * list(range(len(expected))))


def test_the_loss_falls(own):
    ok(*PRIOR, "--epochs", "200", "--lr", "0.003")
    table = rows(own / "runs/prior")
    first, last = (np.mean([float(row["train_loss"]) for row in part]) for part in (table[:10], table[-50:]))
    assert last < 0.9 * first


@pytest.mark.parametrize(
    "status, args, words",
    [
        (2, ["train", "prior"], ["--model", "aecli train prior --model vae"]),
        (2, ["train", "vae", "--model", "ae"], ["--model ae", "is no prior"]),
        (1, ["train", "prior", "--model", "nothing"], ["nothing"]),
        (2, [*PRIOR, "--image-size", "64"], ["--image-size 64", "32"]),
        (2, [*PRIOR, "--fit", "crop"], ["--fit crop"]),
        (2, [*PRIOR, "--option", "latent_channels=5"], ["latent_channels", "64"]),
        (2, [*PRIOR, "--beta", "1"], ["--beta"]),
        (2, ["train", "prior", "--model", "vae", "--option", "channels=65"], ["channels", "64"]),
        (1, ["reconstruct", "--model", "runs/prior"], ["a prior", "--prior flow"]),
        (1, ["sample", "--model", "runs/prior"], ["a prior", "--prior flow"]),
    ],
)
def test_wrong_use_is_told(own, status, args, words):
    if "runs/prior" in args:
        ok(*PRIOR)
    message = fails(status, *args)
    assert all(word in message for word in words), message


def test_a_stream_is_refused(own):
    write_tars(own, [3, 3])
    with pytest.raises((DataError, ConfigError), match="stream"):
        list(train(TrainConfig("prior", autoencoder="vae", data=str(next(own.glob("*.tar"))), image_size=SIZE, steps=2,
                               options=SMALL, device="cpu", out=own / "x")))  # fmt: skip


def test_other_weights_begin_another_run(own):
    ok(*PRIOR)
    document = read_document(own / "runs/vae/model.safetensors")
    model, _ = load_model(own / "runs/vae/model.safetensors")
    from aecli.runs.checkpoints import save

    tensors = {key: value + (0.01 if value.is_floating_point() else 0) for key, value in model.state_dict().items()}
    save(own / "runs/vae/model.safetensors", tensors, document)
    assert "--prior flow: none was trained" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    result = invoke(*PRIOR[:-1])
    assert result.exit_code == 0 and "--model" in result.stderr and "runs/prior-2" in result.stderr
    assert "--model" in fails(1, *PRIOR, "--out", "runs/prior")


def test_grid_and_models_know_what_a_prior_is(own):
    ok(*PRIOR)
    assert ok_json("grid", "--n", "2")["rows"] == ["Ground Truth", "AE", "VAE"]
    listed = ok_json("models")
    found = next(model for model in listed["models"] if model["name"] == "prior")
    assert found["latent_shape"] == [64, 8, 8] and found["gflop"] > 0.5
    assert any(run["model"] == "prior" and run["val_psnr"] is None for run in listed["runs"])
    dry = ok_json("train", "prior", "--model", "vae", "--epochs", "7", "--dry-run")
    assert dry["train_images"] == len(NAMES) - len(VAL) and dry["latent_shape"] == [64, 1, 1]


# aecli sample --prior flow


def test_samples_are_those_of_the_flow(own):
    ok(*PRIOR)
    ok("sample", "--model", "vae", "--prior", "flow", "--steps", "6", "--n", "3", "--seed", "2", "--out", "three")
    ok("sample", "--model", "vae", "--prior", "flow", "--steps", "6", "--n", "18", "--seed", "2", "--out", "many")
    for name in pngs(own / "three"):
        assert (own / f"three/{name}.png").read_bytes() == (own / f"many/{name}.png").read_bytes()
    flow, _ = load_model(own / "runs/prior/model.safetensors")
    loaded = load_autoencoder("vae", own / "runs")
    with torch.no_grad():
        noise = torch.stack([sample_noise((4, 1, 1), 2, index) for index in range(3)])
        by_hand = loaded.decode(flow.unwhiten(flow.sample(noise, 6))).permute(0, 2, 3, 1).numpy()
    for index in range(3):
        assert np.abs(png(own / f"three/{index:06d}.png").astype(int) - by_hand[index]).max() <= 1


def test_auto_takes_the_flow_where_there_is_one_and_says_so(own):
    ok(*PRIOR)
    reports = []
    loaded = load_autoencoder("vae", own / "runs")
    chosen = choose_prior(loaded, "auto", reports.append, runs=own / "runs")
    assert chosen.name == "flow" and chosen.flow_steps == 50
    assert [type(report) for report in reports] == [Notice] and "runs/prior" in reports[0].text
    other = choose_prior(load_autoencoder("ae", own / "runs"), "auto", reports.append, runs=own / "runs")
    assert other.name == "mixture"


def test_a_run_beside_the_model_is_found_wherever_runs_are(own):
    ok(*PRIOR)
    loaded = load_autoencoder("runs/vae", own / "runs")
    assert choose_prior(loaded, "flow", ignore, runs=own / "elsewhere").flow is not None


def test_temperature_scales_the_noise(own):
    ok(*PRIOR)
    loaded = load_autoencoder("vae", own / "runs")
    still = choose_prior(loaded, "flow", ignore, temperature=0.0, runs=own / "runs")
    drawn = still.draw(range(3))
    assert drawn[0].equal(drawn[1]) and drawn[1].equal(drawn[2])


def test_a_flow_whose_weights_are_damaged_is_told(own):
    ok(*PRIOR)
    (own / "runs/prior/model.safetensors").write_bytes(b"damaged")
    assert "runs/prior/model.safetensors" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    with pytest.raises(CheckpointError):
        load_model(own / "runs/prior/model.safetensors")
