import pytest

from aecli.configs import TrainConfig


@pytest.fixture
def photographs(image_folder):
    return image_folder(*(f"{seed:02d}.png" for seed in range(15)), folder="photographs", height=40, width=40)


@pytest.fixture
def config(tmp_path, photographs):
    return TrainConfig(
        model="vae", data=str(photographs), val_fraction=0.25, epochs=3, image_size=32, batch_size=3, lr=1e-3,
        options={"width": 4}, device="cpu", precision="fp32", runs=tmp_path / "runs",
    )  # fmt: skip
