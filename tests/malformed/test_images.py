"""Image files that are none, end too early, or say of themselves what is not so."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from augfpn.data.images import ImageError, check_image, read_image
from tests.malformed.generation import repeatable

SIZE = HEIGHT, WIDTH = 30, 40
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def encoded(format, picture=PICTURE, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width=WIDTH, height=HEIGHT, header=b"\x08\x02\0\0\0", pixels=b"\0", end=True):
    """A PNG of which the header and the pixels need not fit."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II", width, height) + header)
    return start + chunk(b"IDAT", zlib.compress(pixels)) + (chunk(b"IEND", b"") if end else b"")


def bmp(width, height):
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def with_exif(payload, picture=PICTURE):
    """A picture as a JPEG with these bytes for EXIF data."""
    jpeg = encoded("JPEG", picture)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 8) + b"Exif\0\0" + payload + jpeg[2:]


# To be shown turned by 90 degrees.
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"

WHOLE = {
    "JPEG": encoded("JPEG"),
    "progressive JPEG": encoded("JPEG", progressive=True, quality=90),
    "PNG": encoded("PNG"),
    "PNG of a palette": encoded("PNG", PICTURE.convert("P")),
    "WebP": encoded("WEBP"),
    "lossless WebP": encoded("WEBP", lossless=True),
    "TIFF": encoded("TIFF"),
    "packed TIFF": encoded("TIFF", compression="tiff_lzw"),
    "BMP": encoded("BMP"),
    "GIF": encoded("GIF"),
    "PPM": encoded("PPM"),
}
# Of each format at ten places up to the last pixels; behind them some have bytes to spare.
CUT = {
    f"{format} cut off at {tenths * 10} %": content[: (len(content) - 30) * tenths // 10]
    for format, content in WHOLE.items()
    for tenths in range(1, 11)
}
NO_IMAGE = {
    "an empty file": b"",
    "a text": b"a picture of a cat",
    "zeros": bytes(1000),
    "a page": b"<!doctype html><title>404</title>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>',
    "PDF": encoded("PDF"),
    # Ghostscript would run it.
    "PostScript": encoded("EPS"),
    "PostScript that deletes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(a.jpg) deletefile\n",
    "JPEG 2000": encoded("JPEG2000"),
    "an archive": b"PK\x03\x04" + bytes(100),
    "half of another file": WHOLE["PNG"][500:],
    "the mark of a JPEG": b"\xff\xd8\xff",
    "start and end of a JPEG": b"\xff\xd8\xff\xd9",
    "the mark of a PNG": b"\x89PNG\r\n\x1a\n",
    "the mark of a GIF": b"GIF89a",
    "the mark of a WebP": b"RIFF\x10\0\0\0WEBPVP8 ",
    "the mark of a TIFF": b"II*\0",
    "a TIFF that points into nothing": b"II*\0\xff\xff\xff\xff",
    "a TIFF that points at itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a line for a line": WHOLE["PNG"].replace(b"\n", b"\r\n"),
    "text for bytes": WHOLE["JPEG"].decode("latin-1").encode("utf-8"),
}
LYING = {
    "a PNG of no pixels": png(0, 0),
    "a PNG without its pixels": png(),
    "a PNG without its pixels and end": png(end=False),
    "a PNG of a depth that there is not": png(header=b"\x03\x02\0\0\0"),
    "a PNG of 10,000,000,000 pixels": png(100_000, 100_000),
    "a PNG of the most pixels": png(2**31 - 1, 2**31 - 1),
    "a PNG of more pixels than there can be": png(2**32 - 1, 2**32 - 1),
    "a BMP of 10,000,000,000 pixels": bmp(100_000, 100_000),
    "a BMP of a negative width": bmp(-WIDTH, HEIGHT),
    "a BMP without its pixels": bmp(WIDTH, HEIGHT),
    "a PPM of 10,000,000,000 pixels": b"P6 100000 100000 255\n",
    "a PPM of a negative width": b"P6 -40 30 255\n" + bytes(3600),
    "a PPM without a width": b"P6 30 255\n",
    "a PPM with letters for numbers": b"P6 forty thirty 255\n" + bytes(3600),
    "a GIF of no pixels": b"GIF89a" + bytes(7) + b";",
    "a PNG with a wrong check sum": WHOLE["PNG"].replace(b"IDAT", b"IDAU"),
    "a JPEG without its frame": WHOLE["JPEG"].replace(b"\xff\xc0", b"\xff\xfe"),
    "a TIFF of real numbers": encoded("TIFF", Image.fromarray(np.full(SIZE, 0.5, dtype=np.float32))),
    "a TIFF of 32 bits": encoded("TIFF", Image.fromarray(np.full(SIZE, 70_000, dtype=np.int32))),
    "a TIFF of negative numbers": encoded("TIFF", Image.fromarray(np.full(SIZE, -1, dtype=np.int32))),
}
REFUSED = CUT | NO_IMAGE | LYING

# Header and end are as they should be; what is between them is looked at when the image is read.
BROKEN_INSIDE = {
    "a PNG with zeros in its pixels": WHOLE["PNG"][:500] + bytes(500) + WHOLE["PNG"][1000:],
    "a PNG without its middle": WHOLE["PNG"][:500] + WHOLE["PNG"][1000:],
    "a JPEG without its tables": WHOLE["JPEG"].replace(b"\xff\xdb", b"\xff\xfe"),
}

OTHER_SIZES = {
    "width and height changed": encoded("PNG", PICTURE.rotate(90, expand=True)),
    "half as large": encoded("PNG", PICTURE.resize((20, 15))),
    "a pixel wider": encoded("PNG", PICTURE.resize((WIDTH + 1, HEIGHT))),
    "a single pixel": encoded("PNG", PICTURE.resize((1, 1))),
    "a single line": encoded("PNG", PICTURE.resize((WIDTH * HEIGHT, 1))),
    "turned, and other sides all the same": with_exif(TURNED, PICTURE.resize((50, 20))),
}

# What is unusual, and read as an image of the annotated size all the same.
HANDLED = {
    "a grey JPEG": encoded("JPEG", PICTURE.convert("L")),
    "a JPEG for print": encoded("JPEG", PICTURE.convert("CMYK")),
    "a PNG of two colours": encoded("PNG", PICTURE.convert("1")),
    "a PNG of 16 bits": encoded("PNG", Image.fromarray(np.full(SIZE, 40_000, dtype=np.uint16))),
    "a transparent PNG": encoded("PNG", PICTURE.convert("RGBA")),
    "a transparent palette": encoded("PNG", PICTURE.convert("P"), transparency=0),
    "a TIFF of 16 bits": encoded("TIFF", Image.fromarray(np.full(SIZE, 40_000, dtype=np.uint16))),
    "an animated GIF": encoded("GIF", save_all=True, append_images=[PICTURE.rotate(90)]),
    "an animated PNG": encoded("PNG", save_all=True, append_images=[PICTURE.rotate(90)]),
    "an animated WebP": encoded("WEBP", save_all=True, append_images=[PICTURE.rotate(90)]),
    "two pictures in a JPEG": encoded("MPO", save_all=True, append_images=[PICTURE.rotate(90)]),
    "two pages in a TIFF": encoded("TIFF", save_all=True, append_images=[PICTURE.rotate(90)]),
    "a JPEG with bytes behind it": WHOLE["JPEG"] + b"<!-- an advertisement -->" * 10,
    "a PNG with bytes behind it": WHOLE["PNG"] + bytes(1000),
    "a colour profile that is none": encoded("JPEG", icc_profile=b"no profile" * 20),
    "a colour profile that is none in a PNG": encoded("PNG", icc_profile=b"no profile" * 20),
    "empty EXIF data": with_exif(b""),
    "EXIF data that is a text": with_exif(b"no EXIF data at all"),
    "EXIF data that ends": with_exif(b"II*\0"),
    "EXIF data that points into nothing": with_exif(b"II*\0\xff\xff\xff\xff"),
    "EXIF data that points at itself": with_exif(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "EXIF data of 65,535 entries": with_exif(b"II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "a rotation that there is not": with_exif(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x0f\x27\0\0\0\0\0\0"),
    "a rotation that is a text": with_exif(b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0"),
    "a rotation of 4,294,967,295 values": with_exif(
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0\0\0\0\0"
    ),
    "a rotation divided by zero": with_exif(
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0"
    ),
}

# Pillow says what it skips of EXIF data.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Tag data larger", "ignore:Truncated File")


@pytest.fixture
def file(tmp_path):
    """Writes an image file; its suffix says nothing."""

    def write(content):
        path = tmp_path / "image.jpg"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_image_is_refused(file, name):
    path = file(REFUSED[name])
    with pytest.raises(ImageError):
        check_image(path, SIZE)
    with pytest.raises(ImageError):
        read_image(path)


@pytest.mark.parametrize("name", BROKEN_INSIDE)
def test_pixels_that_are_broken_are_refused_when_they_are_read(file, name):
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(file(BROKEN_INSIDE[name]), SIZE)


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_an_image_of_another_size_than_annotated_is_refused(file, name):
    path = file(OTHER_SIZES[name])
    for read in (check_image, read_image):
        with pytest.raises(ImageError, match="pixels, but annotated as 40 × 30"):
            read(path, SIZE)


@pytest.mark.parametrize("name", HANDLED)
def test_an_unusual_image_is_read(file, name):
    path = file(HANDLED[name])
    check_image(path, SIZE)
    assert read_image(path, SIZE).shape == (3, *SIZE)


NO_FILES = {
    "a folder": (lambda path: path.mkdir(), "a folder"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a device without an end": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "nothing": (lambda path: None, "no such file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "no such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "a link to a folder": (lambda path: path.symlink_to("."), "a folder"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_refused_at_once(tmp_path, name):
    make, expected = NO_FILES[name]
    path = tmp_path / "image.jpg"
    make(path)
    for read in (check_image, read_image):
        with pytest.raises(ImageError, match=expected):
            read(path, SIZE)


def test_a_file_that_may_not_be_read_is_refused(file):
    path = file(WHOLE["JPEG"])
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        # Root may read all; nobody in particular may not.
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match="Permission denied"):
            check_image(path, SIZE)
    finally:
        os.seteuid(user)


NUM_DAMAGED = 150
DAMAGE = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)


@repeatable(NUM_DAMAGED)
@given(st.sampled_from(sorted(WHOLE)), DAMAGE)
def damaged(file, seen, format, changes):
    content = bytearray(WHOLE[format])
    for place, byte in changes:
        content[place % len(content)] = byte
    seen.add(bytes(content))
    path = file(content)
    try:
        check_image(path, SIZE)
        pixels = read_image(path, SIZE)
    except ImageError:
        return
    assert pixels.shape == (3, *SIZE)


def test_whatever_bytes_are_changed_it_is_an_image_of_the_size_or_refused(file):
    seen = set()
    damaged(file, seen)
    assert len(seen - set(WHOLE.values())) >= NUM_DAMAGED // 2
