"""Streams: one sequence for every number of processes, shuffled in bounded memory, resumed at the image."""

import json
import threading
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from aecli.data import streams
from aecli.data.sources import shards as shards_module
from aecli.data.sources.shards import Encoded, Shards, is_stream
from aecli.data.streams import Stream
from aecli.errors import DataError
from tests.support.images import encoded, picture, truncate
from tests.support.shards import write_parquet, write_tar, write_tars

COUNTS = (7, 5, 1, 6, 4)


@pytest.fixture
def tars(tmp_path):
    write_tars(tmp_path, COUNTS)
    return str(tmp_path / "*.tar")


def open_stream(source, batch_size=6, buffer=9, seed=0, flip=False, **augmentation):
    return Stream(source, 16, "squash", seed, batch_size, buffer, workers=2, flip=flip, **augmentation)


AUGMENTED = {"flip": True, "turns": True, "resized_crops": True}


def take(stream, count, part=(0, 6), positions=None):
    """The first batches, and the position of each group of shards after the last."""
    found, reached = [], {}
    batches = stream.batches(part, positions)
    for _ in range(count):
        batch = next(batches)
        found.append(batch.pixels.clone())
        reached |= batch.positions
    batches.close()
    return found, reached


def listed(positions):
    """Positions as they are in a checkpoint."""
    return json.loads(json.dumps([positions[group] for group in sorted(positions)]))


class TestOneSequence:
    @pytest.mark.parametrize("cuts", [(3,), (1, 5), (1, 2, 3, 4, 5)])
    def test_whatever_the_number_of_processes(self, tars, cuts):
        whole, positions = take(open_stream(tars, **AUGMENTED), 9)
        parts = list(zip((0, *cuts), (*cuts, 6), strict=True))
        found = [take(open_stream(tars, **AUGMENTED), 9, part) for part in parts]
        for number, batch in enumerate(whole):
            assert torch.equal(batch, torch.cat([pixels[number] for pixels, _ in found]))
        reached = [item for _, each in found for item in each.items()]
        assert sorted(reached) == sorted(positions.items())  # each group once
        assert sorted(positions) == list(range(len(positions)))

    @pytest.mark.parametrize("stop", [1, 5, 12])
    def test_gone_on_with_where_it_stood(self, tars, stop):
        """Across blocks of 5, shards of one to seven images, and passes."""
        whole, _ = take(open_stream(tars, **AUGMENTED), 16)
        _, positions = take(open_stream(tars, **AUGMENTED), stop)
        again = open_stream(tars, **AUGMENTED)
        again.require_positions(listed(positions))
        rest, _ = take(again, 16 - stop, positions=listed(positions))
        assert all(torch.equal(one, other) for one, other in zip(whole[stop:], rest, strict=True))

    def test_of_another_seed_is_another(self, tars):
        one, other = (take(open_stream(tars, seed=seed), 2)[0] for seed in (0, 1))
        assert not torch.equal(torch.cat(one), torch.cat(other))

    def test_is_not_moved_by_where_the_shards_lie(self, tmp_path, tars):
        (tmp_path / "copy").mkdir()
        write_tars(tmp_path / "copy", COUNTS)
        one, other = open_stream(tars), open_stream(str(tmp_path / "copy" / "*.tar"))
        assert torch.equal(torch.cat(take(one, 3)[0]), torch.cat(take(other, 3)[0]))
        assert one.fingerprint == other.fingerprint
        write_tars(tmp_path / "copy", (*COUNTS[:-1], 30))
        assert open_stream(str(tmp_path / "copy" / "*.tar")).fingerprint != one.fingerprint


class TestShuffling:
    def pictures(self, batches):
        return [pixels.numpy().tobytes() for batch in batches for pixels in batch]

    def expected(self, contents):
        """By Pillow alone."""
        images = [Image.open(BytesIO(content)).resize((16, 16), Image.Resampling.BILINEAR) for content in contents]
        return [np.asarray(image).transpose(2, 0, 1).tobytes() for image in images]

    def test_one_lane_passes_over_all_images_again_and_again(self, tmp_path):
        contents = write_tars(tmp_path, [12])
        passes = self.pictures(take(open_stream(str(tmp_path / "0.tar"), batch_size=6, buffer=4), 6)[0])
        expected = Counter(self.expected(contents))
        assert [Counter(passes[start : start + 12]) for start in (0, 12, 24)] == [expected] * 3
        assert passes[:12] != passes[12:24] != self.expected(contents)

    def test_no_image_moves_further_than_the_buffer(self, tmp_path):
        contents = write_tars(tmp_path, [24])
        seen = self.pictures(take(open_stream(str(tmp_path / "0.tar"), batch_size=6, buffer=4), 4)[0])
        order = [self.expected(contents).index(image) for image in seen]
        assert all(abs(place - index) < 4 for place, index in enumerate(order)) and order != sorted(order)

    def test_flips_mirror_some_images_and_change_no_other(self, tmp_path):
        write_tars(tmp_path, [24])
        plain, flipped = (take(open_stream(str(tmp_path / "0.tar"), flip=flip), 4)[0] for flip in (False, True))
        is_mirrored = [
            torch.equal(one, other.flip(-1)) for one, other in zip(torch.cat(plain), torch.cat(flipped), strict=True)
        ]
        is_same = [torch.equal(one, other) for one, other in zip(torch.cat(plain), torch.cat(flipped), strict=True)]
        assert all(one != other for one, other in zip(is_mirrored, is_same, strict=True))
        assert 4 < sum(is_mirrored) < 20

    @pytest.mark.parametrize(("batch_size", "shard_groups"), [(6, 3), (10, 5), (7, 1), (4, 4)])
    def test_shard_groups_divide_the_batch(self, tars, batch_size, shard_groups):
        assert open_stream(tars, batch_size=batch_size).shard_groups == shard_groups

    def test_holds_no_more_than_a_few_blocks(self, tmp_path, monkeypatch):
        """Two blocks a lane are in memory, and one is being read."""
        write_tars(tmp_path, [60, 60])
        alive = Counter()

        class Counted(Encoded):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                alive["now"] += 1
                alive["most"] = max(alive.values())

            def __del__(self):
                alive["now"] -= 1

        monkeypatch.setattr(shards_module, "Encoded", Counted)
        take(open_stream(str(tmp_path / "*.tar"), batch_size=6, buffer=10), 15)
        assert 10 <= alive["most"] <= 2 * 10 + 2 * 5 + 2


class TestPositions:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda each: each[:-1], lambda each: [*each, each[0]], lambda each: "positions",
            lambda each: [*each[:-1], None], lambda each: [*each[:-1], [0, 0, 0, 0]],
            lambda each: [*each[:-1], [0, 0, 0, 0, -1]], lambda each: [*each[:-1], [0, 0, 0, 0, 10**6]],
            lambda each: [*each[:-1], [0, 0, 99, 0, 0]], lambda each: [*each[:-1], [0, 0.5, 0, 0, 0]],
        ],
    )  # fmt: skip
    def test_invalid_positions_are_refused(self, tars, spoil):
        stream = open_stream(tars)
        _, positions = take(stream, 2)
        stream.require_positions(listed(positions))
        with pytest.raises(ValueError):
            stream.require_positions(spoil(listed(positions)))


class TestWhatIsBroken:
    def members(self, broken=()):
        whole = {f"{seed:03d}.png": encoded(picture(24, 32, seed)) for seed in range(12)}
        return whole | dict.fromkeys(broken, b"no picture")

    def test_an_image_leaves_its_place_to_the_next(self, tmp_path):
        write_tar(tmp_path / "a.tar", self.members(["003.png"]))
        stream = open_stream(str(tmp_path / "a.tar"), buffer=4)
        whole, _ = take(stream, 4)
        assert list(stream.skipped) == [f"{tmp_path / 'a.tar'}#003"]
        halves = [take(open_stream(str(tmp_path / "a.tar"), buffer=4), 4, part)[0] for part in ((0, 3), (3, 6))]
        assert all(torch.equal(batch, torch.cat(each)) for batch, *each in zip(whole, *halves, strict=True))

    def test_many_images_are_too_many(self, tmp_path, monkeypatch):
        monkeypatch.setattr(streams, "_MIN_DECODED", 5)
        write_tar(tmp_path / "a.tar", self.members(["003.png", "007.png"]))
        with pytest.raises(DataError, match=r"images can't be decoded, more than 1%.*#00[37]"):
            take(open_stream(str(tmp_path / "a.tar")), 9)

    def test_a_block_without_any_is_an_error(self, tmp_path):
        write_tar(tmp_path / "a.tar", self.members([f"{seed:03d}.png" for seed in range(12)]))
        with pytest.raises(DataError, match="none of 9 neighbouring images can be decoded"):
            take(open_stream(str(tmp_path / "a.tar")), 1)

    def test_a_source_without_images_is_an_error(self, tmp_path):
        write_tar(tmp_path / "a.tar", {"a.txt": b"words", "b.json": b"{}"})
        with pytest.raises(DataError, match="holds no images"):
            take(open_stream(str(tmp_path / "a.tar")), 1)

    def test_a_shard_is_named(self, tmp_path):
        write_tars(tmp_path, [6, 6])
        truncate(tmp_path / "1.tar")
        with pytest.raises(DataError, match=r"1\.tar can't be read: "):
            take(open_stream(str(tmp_path / "*.tar")), 9)

    @pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
    def test_the_first_shard_is_read_on_opening(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"x" * 5000)
        with pytest.raises(DataError, match=rf"{name} can't be read: "):
            open_stream(str(tmp_path / name))

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("http://127.0.0.1:1/{0..9999}/{0..9999}.tar", "more than"),
            ("nothing*.tar", "no such file"), ("hf:", "no dataset is named"), ("hf:./nowhere", "can't be read"),
            ("http://127.0.0.1:1/{5..2}.tar", "not a range"),
        ],
    )  # fmt: skip
    def test_an_invalid_source_is_refused(self, source, said):
        with pytest.raises(DataError, match=said) as caught:
            Shards(source)
        assert "\n" not in str(caught.value).partition("\nhint: ")[2]

    def test_without_the_extra_it_is_named(self, tars, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(DataError, match=r'pip install "aecli\[hf\]"'):
            Shards(tars)


class TestKinds:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [("a/*.tar", True), ("x.parquet", True), ("hf:NAME", True), ("https://host/{0..9}.tar?key=1", True),
         ("photos", False), ("photos.zip", False), ("demo", False), ("torchvision:CIFAR10", False)],
    )  # fmt: skip
    def test_of_sources(self, source, expected):
        assert is_stream(source) == expected

    def test_a_folder_of_that_name_is_a_folder(self, tmp_path):
        (tmp_path / "x.tar").mkdir()
        assert not is_stream(str(tmp_path / "x.tar"))

    def contents(self, source):
        shards = Shards(str(source))
        return [encoded.content for shard in range(len(shards.names)) for _, encoded in shards.read(shard)]

    def test_a_tar_may_mix_formats_and_hold_other_files(self, tmp_path):
        picture_ = Image.fromarray(picture())
        files = {f"{kind}/a.{kind}": encoded(picture_, kind) for kind in ("png", "jpeg", "webp", "bmp", "tiff")}
        write_tar(tmp_path / "a.tar", {"first.txt": b"words", **files, "last.json": b"{}"})
        assert sorted(self.contents(tmp_path / "a.tar")) == sorted(files.values())

    @pytest.mark.parametrize("others", [{}, {"label": [1, 2, 3, 4]}, {"mask": [b"1", b"2", b"3", b"4"]}])
    def test_parquet(self, tmp_path, others):
        pictures = [encoded(picture(seed=seed)) for seed in range(4)]
        assert self.contents(write_parquet(tmp_path / "a.parquet", pictures, **others)) == pictures

    def test_parquet_in_which_the_images_could_be_anywhere(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", [b"1"], "left", right=[{"bytes": b"2", "path": None}])
        with pytest.raises(
            DataError, match=r"several columns may hold the images \(left, right\)\nhint: call the column `image`"
        ):
            Shards(str(tmp_path / "a.parquet"))
        with pytest.raises(DataError, match=r"no column of images \(number\)"):
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table({"number": [1]}), tmp_path / "b.parquet")
            Shards(str(tmp_path / "b.parquet"))

    def test_a_data_set_by_its_name_or_folder(self, tmp_path):
        pictures = [encoded(picture(seed=seed)) for seed in range(5)]
        (tmp_path / "set").mkdir()
        write_parquet(tmp_path / "set" / "train.parquet", pictures)
        assert self.contents(f"hf:{tmp_path / 'set'}") == self.contents(f"hf:{tmp_path / 'set'}:train") == pictures
        with pytest.raises(DataError, match="test"):
            Shards(f"hf:{tmp_path / 'set'}:test")

    def test_remote_shards(self, tmp_path):
        contents = write_tars(tmp_path, [3, 3, 3])
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        handler.func.log_message = lambda *_arguments: None
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            source = f"http://127.0.0.1:{server.server_port}/{{0..2}}.tar"
            assert self.contents(source) == contents
            remote, local = open_stream(source), open_stream(str(tmp_path / "*.tar"))
            assert torch.equal(torch.cat(take(remote, 3)[0]), torch.cat(take(local, 3)[0]))
            server.shutdown()


def test_nothing_is_printed_and_no_thread_is_left(tars, capfd):
    before = threading.active_count()
    take(open_stream(tars), 3)
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before
    assert capfd.readouterr() == ("", "")
