import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from augfpn.data.segmentations import SegmentationError, compress, decode, encode

HEIGHT, WIDTH = 30, 40


def blobs(seed, num=3, height=HEIGHT, width=WIDTH):
    """Masks with many short and long runs."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((num, height // 5 + 1, width // 5 + 1)) < 0.5
    return coarse.repeat(5, axis=1).repeat(5, axis=2)[:, :height, :width] ^ (rng.random((num, height, width)) < 0.05)


def run_lengths(mask):
    """COCO's run lengths of a mask, counted one pixel after the other, column by column."""
    lengths, now = [0], 0
    for pixel in mask.T.ravel():
        if pixel != now:
            lengths.append(0)
            now = pixel
        lengths[-1] += 1
    return [int(length) for length in lengths]


def pixels_of(segmentation, height=HEIGHT, width=WIDTH):
    return decode([compress(segmentation, height, width)], height, width)[0].numpy()


def by_pycocotools(segmentation):
    coco = COCO()
    coco.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_give_back_their_mask_as_a_list_and_as_a_text(seed):
    for mask in blobs(seed):
        listed = {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask)}
        packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
        assert np.array_equal(pixels_of(listed), mask)
        assert np.array_equal(pixels_of(text), mask)
        assert compress(listed, HEIGHT, WIDTH) == compress(text, HEIGHT, WIDTH) == text


def test_run_lengths_of_a_large_image_need_several_characters_a_number():
    mask = np.zeros((2000, 3000), dtype=np.uint8)
    mask[700:900, 1000:1003] = mask[5, 2999] = 1
    packed = rle.encode(np.asfortranarray(mask))
    assert np.array_equal(pixels_of({**packed, "counts": packed["counts"].decode()}, 2000, 3000), mask)


@pytest.mark.parametrize(
    "polygons",
    [
        [[2, 3, 12, 3, 12, 9, 2, 9]],
        [[2.5, 3.25, 30.5, 4, 12, 25.75]],
        [[1, 1, 9, 1, 9, 9, 1, 9], [20, 10, 35, 12, 28, 29.5], [0, 20, 5, 20, 5, 25]],  # in several parts
        [[-3, -2, 20, 5, 45, 28]],  # leaves the image
    ],
)
def test_polygons_are_drawn_as_pycocotools_does(polygons):
    assert np.array_equal(pixels_of(polygons), by_pycocotools(polygons))


def test_a_rectangle_covers_the_pixels_within_it():
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[3:9, 2:12] = 1
    assert np.array_equal(pixels_of([[2, 3, 12, 3, 12, 9, 2, 9]]), expected)


SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]
WHOLE = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
PACKED = rle.frPyObjects(WHOLE, HEIGHT, WIDTH)["counts"].decode()


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (None, "is missing"),
        ("text", "neither polygons nor run lengths"),
        ([], "is empty"),
        ([[]], "list of numbers|0 coordinates"),
        ([SQUARE, [1, 2, 3, 4]], "4 coordinates; expected x, y of three points"),
        ([SQUARE[:-1]], "7 coordinates"),
        ([[*SQUARE[:-1], float("nan")]], "not finite"),
        ([[*SQUARE[:-1], float("inf")]], "not finite"),
        ([[*SQUARE[:-1], "9"]], "no list of numbers"),
        ([[*SQUARE[:-1], None]], "no list of numbers"),
        ([[*SQUARE[:-1], [9]]], "no list of numbers"),
        ([[True] * 8], "no list of numbers"),
        (SQUARE, "no list of numbers"),
        ([{"a": 1}], "no list of numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside its image of 40 × 30"),
        ([[41, 31, 50, 31, 50, 40]], "covers no pixel"),
        ([[5, 5, 5, 5, 5, 5]], "covers no pixel"),
        ({}, "of size None"),
        ({**WHOLE, "size": [WIDTH, HEIGHT]}, r"of size \[40, 30\]; its image is of \[30, 40\]"),
        ({"size": [HEIGHT, WIDTH]}, "'counts' must be a text or a list"),
        ({**WHOLE, "counts": []}, "add up to 30 × 40"),
        ({**WHOLE, "counts": [100, 50]}, "add up to 30 × 40"),
        ({**WHOLE, "counts": [100, -50, HEIGHT * WIDTH - 50]}, "add up to 30 × 40"),
        ({**WHOLE, "counts": [100.5, 49.5, HEIGHT * WIDTH - 150]}, "must be whole"),
        ({**WHOLE, "counts": [2**63, 50]}, "add up to 30 × 40|no list"),
        ({**WHOLE, "counts": [100, "50"]}, "no list of numbers"),
        ({**WHOLE, "counts": [HEIGHT * WIDTH]}, "covers no pixel"),
        ({**WHOLE, "counts": ""}, "no packed RLE, or cut off"),
        ({**WHOLE, "counts": PACKED[:-1]}, "cut off|add up"),
        ({**WHOLE, "counts": PACKED[:1]}, "cut off|add up"),
        ({**WHOLE, "counts": PACKED + "1"}, "add up to 30 × 40"),
        ({**WHOLE, "counts": "é" + PACKED}, "no packed RLE"),
        ({**WHOLE, "counts": "~" + PACKED}, "no packed RLE"),
        ({**WHOLE, "counts": "o" * 20 + "0"}, "a number is too long"),
    ],
)  # fmt: skip
def test_what_is_no_mask_of_the_image_is_said(segmentation, expected):
    with pytest.raises(SegmentationError, match=expected):
        compress(segmentation, HEIGHT, WIDTH)


def test_texts_of_any_kind_are_read_or_refused_but_never_trusted():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = bytearray(PACKED.encode())
        text[rng.integers(len(text))] = rng.integers(48, 112)
        try:
            mask = pixels_of({**WHOLE, "counts": text.decode()})
        except SegmentationError:
            continue
        assert mask.sum() == rle.area({"size": [HEIGHT, WIDTH], "counts": bytes(text)})


def test_encoded_masks_are_decoded_to_the_same():
    masks = torch.from_numpy(blobs(0)).to(torch.uint8)
    assert torch.equal(decode(encode(masks), HEIGHT, WIDTH), masks)
    assert decode(encode(masks[:0]), HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)


def test_probabilities_belong_to_the_object_from_one_half_on():
    masks = torch.tensor([[[[0.2, 0.5], [0.49, 0.9]]], [[[0.1, 0.1], [0.1, 0.1]]]])
    assert decode(encode(masks), 2, 2).tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 0]]]
