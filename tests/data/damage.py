"""A small data set in COCO's layout with two splits and nothing wrong, for tests that damage it."""

import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}]
WIDTH, HEIGHT = 40, 30
# Whole run lengths of the image's size: the first 100 pixels are not the object's.
MASK = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}


def write(root, splits=("train", "val"), num_images=3):
    """Writes the data set, and returns the content of its annotation files by split."""
    (root / "annotations").mkdir(parents=True)
    contents = {}
    for number, split in enumerate(splits):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for image in range(num_images):
            pixels = np.random.default_rng((number, image)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            name = f"{image}.jpg"
            Image.fromarray(pixels).save(root / f"{split}2017" / name, quality=95)
            images.append({"id": 10 + image, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1})
            for box in ([1, 2, 10, 12], [20, 2, 15, 12]):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 + image,
                        "category_id": CATEGORIES[len(annotations) % 2]["id"],
                        "bbox": box,
                        "segmentation": MASK,
                    }
                )
        contents[split] = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        save(root, split, contents[split])
    return contents


def save(root, split, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / f"instances_{split}2017.json").write_text(text)
