"""Segmentations that are none: broken polygons, and run lengths that pycocotools would read beyond their end."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augfpn.data.segmentations import SegmentationError, compress, decode
from tests.malformed.generation import repeatable

HEIGHT, WIDTH = 30, 40
SIZE, AREA = [HEIGHT, WIDTH], HEIGHT * WIDTH
SQUARE = [1, 1, 20, 1, 20, 20, 1, 20]
# 500 pixels of background, 20 of the object, the rest background; and the same packed.
LENGTHS = [500, 20, 680]
PACKED = compress({"size": SIZE, "counts": LENGTHS}, HEIGHT, WIDTH)["counts"]
NAN, INFINITY = math.nan, math.inf


def lengths(counts, size=SIZE):
    return {"size": size, "counts": counts}


NO_SEGMENTATION = {
    "null": (None, "is missing"),
    "true": (True, "neither polygons nor run lengths"),
    "a number": (3, "neither polygons nor run lengths"),
    "a number that is none": (NAN, "neither polygons nor run lengths"),
    "a text": (PACKED, "neither polygons nor run lengths"),
    "no polygon": ([], "is empty"),
    "an empty object": ({}, "is of size None"),
}
NO_POLYGONS = {
    "a polygon that is not in a list": (SQUARE, "no list of numbers"),
    "an empty polygon": ([[]], "no list of numbers|of 0 coordinates"),
    "one coordinate": ([[1]], "of 1 coordinates"),
    "one point": ([[1, 1]], "of 2 coordinates"),
    "two points": ([[1, 1, 20, 20]], "of 4 coordinates"),
    "half a point": ([[*SQUARE, 1]], "of 9 coordinates"),
    "points as pairs": ([[[1, 1], [20, 1], [20, 20]]], "no list of numbers"),
    "points as objects": ([[{"x": 1, "y": 1}] * 3], "no list of numbers"),
    "coordinates as texts": ([["1", "1", "20", "1", "20", "20"]], "no list of numbers"),
    "a coordinate as a text": ([[1, 1, 20, 1, 20, "20"]], "no list of numbers"),
    "a coordinate that is null": ([[1, 1, 20, 1, 20, None]], "no list of numbers"),
    "truths": ([[True, False, True, True, False, True]], "no list of numbers"),
    "not a number": ([[1, 1, 20, 1, 20, NAN]], "not finite"),
    "infinity": ([[1, 1, 20, 1, 20, INFINITY]], "not finite"),
    "beyond 64 bits": ([[1, 1, 20, 1, 20, 2**70]], "no list of numbers"),
    "beyond the floats": ([[1, 1, 20, 1, 20, 10**400]], "no list of numbers"),
    "far right": ([[1, 1, 1e9, 1, 20, 20]], "far outside"),
    "far above": ([[1, -1e300, 20, 1, 20, 20]], "far outside"),
    "just too far": ([[1, 1, 2 * WIDTH + 1, 1, 20, 20]], "far outside"),
    "outside": ([[-20, -20, -5, -20, -5, -5]], "covers no pixel"),
    "a line": ([[1.5, 1.5, 1.5, 1.5, 1.5, 1.5]], "covers no pixel"),
    "back and forth": ([[0, 0, 40, 0, 40, 30, 0, 30] * 1000], "back and forth"),
    "a good one and a broken one": ([SQUARE, [1, 1]], "of 2 coordinates"),
    "a good one and none": ([SQUARE, None], "no list of numbers"),
    "a good one and run lengths": ([SQUARE, lengths(LENGTHS)], "no list of numbers"),
    "a text in a list": ([PACKED], "no list of numbers"),
    "lists in one another": ([[[[[[[[[[1]]]]]]]]]], "no list of numbers"),
}
NO_RUN_LENGTHS = {
    "no size": ({"counts": LENGTHS}, "is of size None"),
    "width before height": (lengths(LENGTHS, [WIDTH, HEIGHT]), r"is of size \[40, 30\]"),
    "another size": (lengths(LENGTHS, [60, 80]), "its image is of"),
    "one side": (lengths(LENGTHS, [AREA]), "is of size"),
    "three sides": (lengths(LENGTHS, [HEIGHT, WIDTH, 3]), "is of size"),
    "sides as texts": (lengths(LENGTHS, ["30", "40"]), "is of size"),
    "a size that is a number": (lengths(LENGTHS, AREA), "is of size"),
    "negative sides": (lengths(LENGTHS, [-30, -40]), "is of size"),
    "no counts": ({"size": SIZE}, "must be a text or a list"),
    "counts that are null": (lengths(None), "must be a text or a list"),
    "counts that are a number": (lengths(AREA), "must be a text or a list"),
    "counts that are an object": (lengths({}), "must be a text or a list"),
    "an empty list": (lengths([]), "no list of numbers|add up"),
    "too few pixels": (lengths([500, 20, 679]), "add up to"),
    "too many pixels": (lengths([500, 20, 681]), "add up to"),
    "a negative length": (lengths([500, -20, 720]), "add up to"),
    "half a pixel": (lengths([500.5, 20, 679.5]), "add up to"),
    "not a number in it": (lengths([500, NAN, 680]), "not finite"),
    "infinitely many": (lengths([500, INFINITY]), "not finite"),
    "a text in it": (lengths([500, "20", 680]), "no list of numbers"),
    "a null in it": (lengths([500, None, 680]), "no list of numbers"),
    "a list in it": (lengths([500, [20], 680]), "no list of numbers"),
    "truths in it": (lengths([True, False]), "no list of numbers"),
    "lengths beyond 32 bits": (lengths([2**32, AREA]), "add up to"),
    "lengths beyond 64 bits": (lengths([2**64, AREA]), "add up to|no list of numbers"),
    "lengths that come round in 32 bits": (lengths([2**32 + 500, 20, 680]), "add up to"),
    "all background": (lengths([AREA]), "covers no pixel"),
    "an object of no pixels": (lengths([600, 0, 600]), "covers no pixel"),
    "an empty text": (lengths(""), "no packed RLE"),
    **{f"a text cut off after {n}": (lengths(PACKED[:n]), "broken run lengths") for n in range(1, len(PACKED))},
    "a text and more": (lengths(f"{PACKED}1"), "add up to"),
    "a text that goes on": (lengths(f"{PACKED}o"), "cut off"),
    "a text of spaces": (lengths("    "), "no packed RLE"),
    "a text of other letters": (lengths("длины"), "no packed RLE"),
    "a text of half a character": (lengths("\ud800"), "broken run lengths"),
    "a text with a NUL": (lengths(f"{PACKED[:2]}\0{PACKED[2:]}"), "no packed RLE"),
    "a text with a line": (lengths(f"{PACKED}\n"), "no packed RLE"),
    "a text in base64": (lengths("eJzLz0vKz0sFAAw+Ayk="), "no packed RLE"),
    "a number without an end": (lengths("o" * 1000), "cut off"),
    "a number of 50 letters": (lengths("o" * 50 + "0"), "too long"),
    "a packed negative length": (lengths("N"), "add up to"),
    "packed differences below zero": (lengths("1111N"), "add up to"),
}
BROKEN = NO_SEGMENTATION | NO_POLYGONS | NO_RUN_LENGTHS

# What is unusual and a mask all the same, and its pixels.
HANDLED = {
    "a polygon that leaves its image": ([[-20, -20, 60, -20, 60, 50, -20, 50]], AREA),
    "a polygon that crosses itself": ([[0, 0, 20, 20, 20, 0, 0, 20]], None),
    "the same polygon twice": ([SQUARE, SQUARE], 19 * 19),
    "coordinates as floats": ([[1.0, 1.0, 20.0, 1.0, 20.0, 20.0, 1.0, 20.0]], 19 * 19),
    "lengths as floats": (lengths([500.0, 20.0, 680.0]), 20),
    "lengths of zero": (lengths([0, AREA, 0, 0]), AREA),
    "unknown fields": ({**lengths(PACKED), "score": NAN}, 20),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_segmentation_is_refused_with_what_is_wrong(name):
    segmentation, expected = BROKEN[name]
    with pytest.raises(SegmentationError, match=expected):
        compress(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", HANDLED)
def test_an_unusual_segmentation_is_a_mask(name):
    segmentation, num_pixels = HANDLED[name]
    mask = decode([compress(segmentation, HEIGHT, WIDTH)], HEIGHT, WIDTH)
    assert mask.shape == (1, HEIGHT, WIDTH)
    assert num_pixels in (None, int(mask.sum()))


@pytest.mark.parametrize("segmentation", [[SQUARE], lengths([2**32], [2**16, 2**16])], ids=["polygon", "run lengths"])
def test_masks_of_images_beyond_32_bits_of_pixels_are_refused(segmentation):
    with pytest.raises(SegmentationError, match="65535 pixels at most"):
        compress(segmentation, 2**16, 2**16)


NUM_GENERATED = 100
NUMBER = st.integers(-5, AREA) | st.floats() | st.integers() | st.none() | st.text(max_size=2)
CHARACTERS = st.characters(min_codepoint=48, max_codepoint=111)
GENERATED = (
    st.lists(st.lists(st.floats(-50, 90) | NUMBER, max_size=9), max_size=3)
    | st.fixed_dictionaries({"size": st.just(SIZE), "counts": st.lists(st.integers(0, AREA), max_size=5)})
    | st.fixed_dictionaries({"size": st.just(SIZE), "counts": st.lists(NUMBER, max_size=5)})
    | st.fixed_dictionaries({"size": st.just(SIZE), "counts": st.text(CHARACTERS, max_size=9)})
)  # fmt: skip


@repeatable(NUM_GENERATED)
@given(GENERATED)
def generated(seen, segmentation):
    seen.add(json.dumps(segmentation))
    try:
        packed = compress(segmentation, HEIGHT, WIDTH)
    except SegmentationError:
        return
    assert decode([packed], HEIGHT, WIDTH).any()


def test_whatever_is_given_is_refused_or_a_mask_with_pixels():
    seen = set()
    generated(seen)
    assert len(seen) >= NUM_GENERATED // 2
