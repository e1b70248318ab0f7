"""Whole pictures and the pieces of them: where they come from, and that none is preferred."""

import json
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from aecli.data.batches import evenly_spaced, iterate, normalise
from aecli.data.decoding.decode import whole_limit, whole_size
from aecli.data.packs import pack as pack_module
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.packs.pack import pack_images, pack_key
from aecli.data.packs.whole import Pieces, WholeImages, cut_piece, epoch_places, epoch_scales, side_of
from aecli.data.sources.registry import list_images
from aecli.data.streams import Stream
from tests.support.data import finish
from tests.support.images import encoded, find, picture
from tests.support.shards import write_tar

SIZES = {"a.png": (24, 40), "b.png": (33, 17), "c.png": (16, 16), "d.png": (9, 30)}


@pytest.fixture
def folder(tmp_path):
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encoded(picture(height, width, seed)))
    return tmp_path / "images"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def pack(folder, cache="off", size=16):
    return finish(pack_images(list_images(str(folder)), size, "random-crop", str(cache), 2))[0]


def test_pictures_keep_their_sizes_in_memory_on_disk_and_read_again(folder, cache_folder):
    for cache in ("off", cache_folder, cache_folder):
        packed = pack(folder, cache)
        assert packed.names == list(SIZES) and (packed.small, packed.reduced) == (1, 0)
        for name, row in zip(packed.names, packed.images.pictures, strict=True):
            np.testing.assert_array_equal(row.transpose(1, 2, 0), pixels(folder / name))
            assert not row.flags.writeable
    assert pack(folder, cache_folder, 32).small == 4  # the same pack serves pieces of another size
    (key,) = cache_folder.iterdir()
    index = json.loads((key / "index.json").read_text())
    (key / "index.json").write_text(json.dumps(index | {"shapes": index["shapes"][:-1]}))
    np.testing.assert_array_equal(pack(folder, cache_folder).images[3].transpose(1, 2, 0), pixels(folder / "d.png"))


def test_very_large_pictures_are_reduced(tmp_path):
    assert whole_size(1024, 3000, 64) == (1024, 3000) and whole_limit(600) == 1200
    assert whole_size(2048, 3072, 64) == (1024, 1536)
    height, width = whole_size(1000, 16000, 64)  # elongated: 4 x 1024² pixels
    assert height * width == pytest.approx(4 * 1024**2, rel=0.01) and width / height == pytest.approx(16, rel=0.01)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1300, 1100), "red").save(tmp_path / "images" / "a.png")
    packed = pack(tmp_path / "images")
    assert packed.images[0].shape == (3, 1024, 1210) and packed.reduced == 1
    images = list_images(str(tmp_path / "images"))
    keys = {pack_key(images, size, "random-crop") for size in (16, 512, 513)}
    assert len(keys | {pack_key(images, 1024, "crop")}) == 3


def test_an_epoch_takes_a_piece_of_each_picture_and_another_one_in_the_next(folder):
    images = pack(folder).images
    epochs = [Pieces(images, 16, epoch_places(4, 0, epoch)) for epoch in range(2)]
    for pieces in epochs:
        for index, name in enumerate(SIZES):
            piece = pieces[index].transpose(1, 2, 0)
            assert piece.shape == (16, 16, 3)
            if name != "d.png":
                assert find(pixels(folder / name), piece)
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    order = np.array([2, 0, 3, 1])
    batches = list(iterate(epochs[0], order, 3, "cpu", start=0))
    expected = [normalise(batch) for batch in map(_tensor, ([epochs[0][i] for i in order[:3]], [epochs[0][1]]))]
    assert all((one == other).all() for one, other in zip(batches, expected, strict=True))
    second = next(iterate(epochs[0], order, 3, "cpu", start=1, orientations=np.array([False, True, False, False])))
    assert (second.flip(-1) == expected[1]).all()


def _tensor(pieces):
    import torch

    return torch.from_numpy(np.stack(pieces))


def test_pieces_cover_a_picture_evenly():
    rows, columns = np.mgrid[:21, :18]
    where = np.stack([rows, columns, rows * 0]).astype(np.uint8)
    corners = [cut_piece(where, 16, epoch_places(5, 3, epoch)[4])[:2, 0, 0] for epoch in range(3000)]
    counts = np.zeros((6, 3))
    for top, left in corners:
        counts[top, left] += 1
    expected = 3000 / 18
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi², 17 degrees of freedom: p = 0.001


def test_pieces_of_any_scale_are_uniform_in_the_logarithm_of_their_side():
    sides = np.array([side_of(scale, 16, 96) for scale in epoch_scales(4000, 3, 5)])
    assert sides.min() == 16 and sides.max() == 96
    where = np.sort(np.log(sides / 16) / np.log(6))
    distance = np.abs(where - np.linspace(0, 1, 4000)).max()  # Kolmogorov-Smirnov, p = 0.001: 1.95 / sqrt(n)
    assert distance < 1.95 / np.sqrt(4000) + np.log(16.5 / 16) / np.log(6)  # sides are whole numbers
    assert [side_of(scale, 16, 9) for scale in (0.0, 0.9)] == [9, 9]  # a small picture is taken as it is


def test_a_piece_shows_the_square_that_its_scale_and_place_say():
    rows, columns = np.mgrid[:90, :120]
    where = np.stack([rows * 2, columns * 2, rows * 0]).astype(np.uint8)
    pieces = Pieces(WholeImages([where] * 50), 16, epoch_places(50, 0, 1), epoch_scales(50, 0, 1))
    found = []
    for index in range(50):
        side = side_of(pieces.scales[index], 16, 90)
        top, left = np.floor(pieces.places[index] * (np.array([90, 120]) - side + 1))
        # The middle of pixel i of a square resized to 16 lies at (i + 1/2) side / 16.
        at = (np.arange(16) + 0.5) * side / 16 - 0.5
        inside = slice(2, 14)  # where the filter reaches no border
        np.testing.assert_allclose(pieces[index][0, :, 8][inside], 2 * (top + at)[inside], atol=1.5)
        np.testing.assert_allclose(pieces[index][1, 8, :][inside], 2 * (left + at)[inside], atol=1.5)
        found.append(side)
    assert min(found) < 25 and max(found) > 60


def test_of_a_small_picture_a_square_of_its_short_side_is_resized_up():
    small = picture(9, 30).transpose(2, 0, 1)
    piece = cut_piece(small, 16, np.array([0.9, 0.5])).transpose(1, 2, 0)
    square = Image.fromarray(np.ascontiguousarray(small[:, :, 11:20].transpose(1, 2, 0)))
    np.testing.assert_array_equal(piece, np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)))


def test_decoded_on_the_fly_they_are_the_same(folder, monkeypatch):
    kept = pack(folder).images
    monkeypatch.setattr(pack_module, "_available_memory", lambda: 100.0)
    found = pack(folder)
    assert isinstance(found.images, OnTheFly) and found.small == 1
    places = epoch_places(4, 1, 2)
    for index in evenly_spaced(4, 4):
        for scales in (None, epoch_scales(4, 1, 2)):
            one, other = (Pieces(images, 16, places, scales)[index] for images in (found.images, kept))
            np.testing.assert_array_equal(one, other)


def test_a_stream_has_pieces_too_the_same_after_a_break(tmp_path):
    pictures = [picture(20 + index, 40 - index, index) for index in range(8)]
    write_tar(tmp_path / "0.tar", {f"{index}.png": encoded(each) for index, each in enumerate(pictures)})

    def stream():
        return Stream(str(tmp_path / "*.tar"), 16, "random-crop", 0, 4, 4)

    batches = list(islice(stream().batches((0, 4)), 6))
    for batch in batches[:2]:
        for piece in batch.pixels.numpy():
            assert any(find(each, piece.transpose(1, 2, 0)) for each in pictures)
    assert not any((batches[0].pixels == other.pixels).all() for other in batches[1:])
    resumed = next(stream().batches((0, 4), [batches[2].positions[0]]))
    assert (resumed.pixels == batches[3].pixels).all()
