"""Files of other projects' test suites beside other readers: Pillow's test images, PngSuite, bmpsuite, libtiff's.

    AECLI_IMAGE_FILES=DIR pytest -m soak -s tests/soak/test_readers.py

Every file below DIR that aecli reads is read by tifffile, torchvision or Pillow as well, and compared at full depth.
Files that aecli refuses are listed with their reasons.
"""

import os
import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from aecli.data.decoding.decode import DecodeError, decode
from aecli.data.image_ref import ImageRef
from tests.soak.image_seeds import image_seeds


def by_tifffile(content: bytes) -> np.ndarray | None:
    """The samples of the first page, of kinds whose meaning takes no conversion; None for others."""
    try:
        page = tifffile.TiffFile(BytesIO(content)).pages[0]
        values = page.asarray()
    except Exception:  # whatever it doesn't read can't be compared
        return None
    tags = page.tags
    if tags.get(274) is not None and tags[274].value != 1:
        return None
    if page.dtype not in (np.uint8, np.uint16) or page.photometric not in (0, 1, 2) or page.extrasamples:
        return None
    if page.bitspersample not in (8, 16) or values.ndim not in (2, 3):
        return None
    if values.ndim == 3 and page.planarconfig == 2:
        values = values.transpose(1, 2, 0)
    return np.iinfo(values.dtype).max - values if page.photometric == 0 else values


def by_torchvision(content: bytes) -> np.ndarray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        except RuntimeError:
            return None
    return values.permute(1, 2, 0).numpy() if values.shape[0] in (1, 3) else None


def by_pillow(content: bytes) -> np.ndarray | None:
    try:
        image = ImageOps.exif_transpose(Image.open(BytesIO(content)))
        is_plain = image.mode in ("1", "L", "RGB", "P", "CMYK", "YCbCr") and not image.has_transparency_data
        return np.asarray(image.convert("RGB")) if is_plain else None
    except Exception:  # as for tifffile
        return None


def reader_of(content: bytes):
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0")):
        return by_tifffile
    if content.startswith(b"\x89PNG") and content[24:25] == b"\x10":  # 16 bits, which Pillow cuts
        return by_torchvision
    return by_pillow


def files() -> dict[str, bytes]:
    folder = os.environ.get("AECLI_IMAGE_FILES")
    if folder is None:  # those that the campaign of hostile images begins with
        return image_seeds()
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


@pytest.mark.soak
def test_every_file_that_is_read_is_read_as_by_another_reader():
    compared, refused = Counter(), Counter()
    wrong = []
    for name, content in files().items():
        try:
            ours = decode(ImageRef(name, name, f"{len(content)}:", lambda content=content: content), full_depth=True)
        except DecodeError as error:
            refused[f"{error.reason} ({Path(name).suffix or name})"] += 1
            continue
        reader = reader_of(content)
        theirs = reader(content)
        if theirs is None or ours.pixels.dtype == np.float32:
            compared["not comparable"] += 1
            continue
        compared[reader.__name__] += 1
        theirs = theirs[..., None] if theirs.ndim == 2 else theirs
        if theirs.dtype == np.uint8 and ours.pixels.dtype == np.uint16:
            theirs = theirs.astype(np.uint16) * 257
        if not np.array_equal(ours.pixels, np.broadcast_to(theirs, ours.pixels.shape)):
            wrong.append(f"{name}: {ours.pixels.shape} {ours.pixels.dtype}, {theirs.shape} {theirs.dtype}")
    print(f"\n{dict(compared)}; refused: {dict(refused.most_common(40))}")
    assert not wrong, "\n".join(wrong[:40])
    assert sum(compared.values()) > compared["not comparable"]
