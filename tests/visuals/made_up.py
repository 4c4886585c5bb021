"""Detections made up from the truth, so that a run of a few steps has some of every kind."""

import numpy as np

from augfpn.data.loading import open_dataset
from augfpn.engine.outcomes_file import write_outcomes
from augfpn.files import write_json


def make_up_detections(run, seed):
    """Gives an evaluated run other detections: right, doubled, of another class, badly placed, in the background."""
    random = np.random.default_rng(seed)
    truth = open_dataset(run.config.data, "val").ground_truth()
    size = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    results = []

    def add(image, category, box, score):
        x, y, width, height = (float(side) for side in box)
        most_x, most_y = size[image]
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, most_x), min(y + height, most_y)
        box = [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)]
        roi = [round(side, 3) for side in (x1 / 2, y1 / 2, x2 - x1 / 2, y2 - y1 / 2)]
        if box[2] > 0 and box[3] > 0:
            result = {"image_id": image, "category_id": category, "bbox": box, "score": round(float(score), 5)}
            results.append({**result, "roi": roi})

    for annotation in truth["annotations"]:
        image, category, box = annotation["image_id"], annotation["category_id"], np.array(annotation["bbox"])
        kind = random.random()
        if kind < 0.7:
            add(image, category, box * (1, 1, 0.95, 0.97), 0.5 + random.random() / 2)
        if kind < 0.2:
            add(image, category, box * (1, 1, 0.9, 0.9), random.random() / 2)
        elif kind < 0.4:
            add(image, categories[categories.index(category) - 1], box, random.random())
        elif kind < 0.6:
            add(image, category, box + np.array([box[2] / 2, box[3] / 4, 0, 0]), random.random())
    for image, (width, height) in size.items():
        box = 3 + random.random(4) * (width, height, width, height) / 2
        add(image, categories[random.integers(len(categories))], box, random.random())
    write_json(run.path / "detections.json", results)
    write_outcomes(run, truth, results)
