"""Pictures are held to geometry worked out by hand and to the pixels that went in."""

import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from skimage import data

from aecli.figures.curves import draw_curves
from aecli.figures.grid import draw_rows, draw_sheet
from aecli.figures.png import png_bytes
from tests.support.images import enlarged, find

WHITE = 255


def pixels(picture):
    return np.asarray(picture)


def noise(height, width, seed=0):
    """No white pixel and in practice no two equal neighbours, so that a tile can be found."""
    return np.random.default_rng(seed).integers(0, 250, (height, width, 3), dtype=np.uint8)


def is_clear(picture, border=4):
    """Nothing but paper along the four edges: nothing is clipped there."""
    inside = np.zeros(pixels(picture).shape[:2], bool)
    inside[border:-border, border:-border] = True
    return bool((pixels(picture)[~inside] == WHITE).all())


@pytest.mark.parametrize(("side", "factor"), [(32, 4), (64, 2), (96, 2), (128, 1), (160, 1)])
def test_rows_show_every_pixel_at_a_whole_factor(side, factor):
    images = [[noise(side, side, 10 * row + column) for column in range(3)] for row in range(2)]
    picture = draw_rows([("Ground Truth", images[0]), ("VAE", images[1])])
    places = [[find(picture, enlarged(image, factor)) for image in row] for row in images]
    assert all(len(found) == 1 for row in places for found in row)
    tops = [[found[0][0] for found in row] for row in places]
    lefts = [[found[0][1] for found in row] for row in places]
    assert all(len(set(row)) == 1 for row in tops) and lefts[0] == lefts[1]  # rows and columns are straight
    gaps = {b - a - factor * side for a, b in zip(lefts[0], lefts[0][1:], strict=False)} | {
        tops[1][0] - tops[0][0] - factor * side
    }
    assert len(gaps) == 1 and 2 <= gaps.pop() <= 6  # even and thin


def test_labels_stand_left_of_their_rows_at_half_height():
    picture = draw_rows([("Ground Truth", [noise(128, 128, 1)] * 2), ("AE", [noise(128, 128, 2)] * 2)])
    for seed in (1, 2):
        top, left = find(picture, noise(128, 128, seed))[0]
        ink = np.argwhere(pixels(picture.convert("L"))[top : top + 128, : left - 4] < 128)
        assert len(ink) > 50
        assert abs(ink[:, 0].min() + ink[:, 0].max() - 127) / 2 <= 4
        assert 10 <= np.ptp(ink[:, 0]) + 1 <= 30  # one line, large enough to be read
    assert is_clear(picture)


LABELS = [
    "a run whose name is nearly forty letters", "W" * 40, "runs/vae-width16-latent256-beta2.5e-5-seed0/" * 9,
    "a\nb\tc\x00d\x1b[31m", "[bold]brackets[/bold]", "β-VAE µ é Привет", "日本語 🙂 \u202eabc",
    "\ud800 lone surrogate", "x" * 3_000_000, "   ", "",
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS, ids=range(len(LABELS)))
def test_any_label_is_bounded_and_never_clipped(label):
    image = noise(128, 128)
    picture = draw_rows([("AE", [image]), (label, [image])])
    places = find(picture, image)
    assert len(places) == 2  # no label runs into a tile
    left = places[0][1]
    assert left <= 2 * 128 and is_clear(picture)
    column = pixels(picture)[places[1][0] : places[1][0] + 128, :left].copy()
    assert (column < 128).any() == bool(label.strip())
    # The picture has the height of two rows: a long label never makes its row higher.
    assert picture.height == draw_rows([("AE", [image]), ("VAE", [image])]).height


@pytest.mark.parametrize("control", "\n\t\0\x1b\u202e\ud800")
def test_control_characters_count_as_blanks(control):
    images = [noise(64, 64)]
    assert draw_rows([(f"{control}a{control}b é", images)]) == draw_rows([("a b é", images)])


def test_greek_is_written_and_not_boxed():
    alpha, beta = (pixels(draw_rows([(label, [noise(64, 64)])])) for label in ("α", "β"))
    assert alpha.shape != beta.shape or (alpha != beta).any()


def test_a_long_label_ends_in_an_ellipsis_and_shows_its_beginning():
    a, b = ("vae-" * 100 + end for end in ("one", "two"))
    image = noise(64, 64)
    assert draw_rows([(a, [image])]) == draw_rows([(b, [image])])
    assert draw_rows([("one" + a, [image])]) != draw_rows([("two" + a, [image])])


def test_no_label_no_column():
    picture = draw_rows([("", [noise(128, 128)])])
    top, left = find(picture, noise(128, 128))[0]
    assert (top, left) == (13, 13) and picture.size == (128 + 26, 128 + 26)


def test_sizes_in_common_are_drawn_alike():
    large, small = noise(128, 128, 1), noise(32, 32, 2)
    picture = draw_rows([("Ground Truth", [large]), ("AE", [small])])
    assert find(picture, large)[0][1] == find(picture, enlarged(small, 4))[0][1]


def test_a_factor_that_is_not_whole_keeps_pixels_exact():
    small = noise(2, 2)
    drawn = pixels(draw_rows([("", [small])], tile=5))[6:11, 6:11]
    assert (drawn[:2, :2] == small[0, 0]).all() and (drawn[3:, 3:] == small[1, 1]).all()
    mean = small[:, :1].astype(float).mean(0)  # the pixel between the two is half of each
    assert np.abs(drawn[2, :2] - mean).max() <= 1


def test_large_and_oblong_images_are_reduced_in_proportion():
    photo = data.astronaut()[:, :256]
    huge = enlarged(photo, 2)  # 1024 x 512
    picture = draw_rows([("", [huge])])
    assert picture.size == (256 + 2 * 51, 512 + 2 * 51)
    error = pixels(picture)[51:-51, 51:-51].astype(float) - photo
    assert np.abs(error).mean() < 3


def test_rows_may_differ_in_length_and_shape():
    tall, wide = noise(128, 64, 1), noise(64, 128, 2)
    picture = draw_rows([("Ground Truth", [tall, wide]), ("AE", [tall])])
    (top, left), (other_top, other_left) = find(picture, tall)[0], find(picture, wide)[0]
    assert other_top - top == 32 and other_left - (left - 32) == 128 + 3  # centred in cells of 128 x 128


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3)])
def test_sheet_is_nearly_square_and_in_reading_order(count, columns, rows):
    images = [noise(64, 64, i) for i in range(count)]
    sheet = draw_sheet(images)
    assert sheet.size == (26 + 131 * columns - 3, 26 + 131 * rows - 3)
    for i, image in enumerate(images):
        assert find(sheet, enlarged(image, 2)) == [(13 + 131 * (i // columns), 13 + 131 * (i % columns))]


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="expected images of uint8"):
        draw_sheet([image])


def test_nothing_to_draw_is_refused():
    for draw in (lambda: draw_rows([]), lambda: draw_rows([("AE", [])]), lambda: draw_sheet([])):
        with pytest.raises(ValueError, match="at least one image"):
            draw()


def test_inputs_are_left_alone_and_may_be_read_only_views():
    image = np.moveaxis(np.moveaxis(noise(64, 64), 2, 0).copy(), 0, 2)
    image.setflags(write=False)
    assert len(find(draw_rows([("", [image])]), enlarged(image, 2))) == 1


def test_png_holds_the_picture():
    picture = draw_sheet([noise(64, 64)])
    decoded = Image.open(BytesIO(png_bytes(picture)))
    assert decoded.format == "PNG" and decoded.mode == "RGB" and (pixels(decoded) == pixels(picture)).all()


ORANGE, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)
COLUMNS = ("lr", "train_loss", "train_kl", "val_loss", "val_psnr", "val_ssim")


def history(epochs, *columns):
    """Rows that hold the named columns and None in the others."""
    made = []
    for epoch in range(1, epochs + 1):
        values = {"lr": 1e-4, "train_loss": 1 / epoch, "train_kl": 0.5, "val_loss": 1.2 / epoch}
        values |= {"val_psnr": 20.0 + epoch / epochs, "val_ssim": 0.5}
        made.append({"epoch": epoch} | {name: values[name] if name in columns else None for name in COLUMNS})
    return made


def decoded(rows):
    return read(draw_curves(rows))


def read(drawn):
    return Image.open(BytesIO(drawn)).convert("RGB")


def count(picture, colour):
    return int((pixels(picture) == colour).all(-1).sum())


@pytest.mark.parametrize("epochs", [1, 1000])
def test_curves_of_a_vae(epochs):
    picture = decoded(history(epochs, *COLUMNS))
    assert picture.size == (1200, 1010)  # three lines of panels
    assert count(picture, ORANGE) > 20 and count(picture, BLUE) > 20
    assert is_clear(picture)


@pytest.mark.parametrize(
    ("columns", "height"),
    [
        (("lr", "train_loss", "val_loss", "val_psnr", "val_ssim"), 690),
        (("lr", "train_loss", "train_kl"), 690),
        (("train_loss",), 370),
    ],
)
def test_panels_without_numbers_are_left_out(columns, height):
    drawn = draw_curves(history(12, *columns))
    picture = read(drawn)
    assert picture.size == (1200, height)
    assert (count(picture, ORANGE) > 0) == ("val_loss" in columns)
    bare = [{name: value for name, value in row.items() if value is not None} for row in history(12, *columns)]
    assert draw_curves(bare) == drawn  # an absent column is one of None


def dashed_line(picture):
    """The place, in pixels from the left, of the grey line in the first panel."""
    columns = (pixels(picture) == (0x8A, 0x8A, 0x8A)).all(-1).sum(0)
    return int(columns.argmax()) if columns.max() > 50 else None


def test_the_best_epoch_is_marked_by_validation_loss_first():
    places = []
    for best in (2, 10):
        rows = history(11, "train_loss", "val_loss")
        for row in rows:
            row["val_loss"] = 0.1 if row["epoch"] == best else 0.9
        places.append(dashed_line(decoded(rows)))
    rows = history(11, "train_loss")  # without validation the lowest training loss, here the last epoch's
    places.append(dashed_line(decoded(rows)))
    early, late, last = places
    assert 0.05 * 1200 < early < 0.2 * 1200 and 0.85 * 1200 < late < last
    assert abs((late - early) / 8 - (last - late)) <= 3  # the scale of epochs is even and the same


def test_what_is_not_finite_is_skipped():
    rows = history(6, *COLUMNS)
    rows[2] |= {"val_psnr": float("inf"), "train_loss": float("nan"), "val_loss": float("nan")}
    assert count(decoded(rows), ORANGE) > 20
    lost = [{"epoch": 1, "lr": 1e-4, "train_loss": float("nan")}]
    assert dashed_line(decoded(lost)) is None


def test_values_that_no_log_scale_can_show():
    rows = [{"epoch": i, "train_loss": 1.0 - i, "train_kl": 0.0, "lr": 0.0} for i in range(3)]
    assert count(decoded(rows), BLUE) > 20


def test_curves_of_nothing_are_refused():
    for rows in ([], [{"epoch": 1, "train_loss": None}]):
        with pytest.raises(ValueError, match="at least one row"):
            draw_curves(rows)


SCRIPT = """
import sys
from aecli.figures.curves import draw_curves
assert "matplotlib" not in sys.modules
draw_curves([{"epoch": 1, "train_loss": 1.0}])
assert "matplotlib.pyplot" not in sys.modules
"""


def test_an_unwritable_home_and_an_odd_matplotlibrc_change_nothing(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    home = tmp_path / "a file, no folder"
    home.touch()
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.dpi: 7\nsavefig.bbox: tight\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "MATPLOTLIBRC")}
    odd = {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), "TMPDIR": str(temporary)}
    unset = {"XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=kept | odd | unset, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(temporary.iterdir()) == []
