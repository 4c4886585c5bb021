"""How many broken or unusual inputs the tables have; generated ones come on top, and count themselves where they are
made."""

import json

import pytest

import tests.malformed.test_annotations as annotations
import tests.malformed.test_command_line as command_line
import tests.malformed.test_configurations as configurations
import tests.malformed.test_images as images
import tests.malformed.test_runs as runs
import tests.malformed.test_segmentations as segmentations
import tests.malformed.test_weights as weights
from tests.malformed.generation import changed

# Tables have each input once: they are dictionaries, and these are their keys.
INPUTS = {
    "annotation files": [
        *annotations.NO_JSON,
        *annotations.OTHER_JSON,
        *annotations.WRONG_PLACES,
        *annotations.FAULTY_BOXES,
        *annotations.HANDLED,
        *annotations.FILE_NAMES,
    ],
    "segmentations": [*segmentations.BROKEN, *segmentations.HANDLED],
    "image files": [
        *images.REFUSED,
        *images.BROKEN_INSIDE,
        *images.OTHER_SIZES,
        *images.HANDLED,
        *images.NO_FILES,
    ],
    "configurations": [
        *configurations.WRONG_PLACES,
        *configurations.NO_JSON,
        *configurations.WRONG_PARAMETERS,
        *(f"request: {name}" for name in configurations.WRONG_CONFIGURATIONS),
        *(f"request: {text}" for text in configurations.DAMAGED_REQUESTS),
        *configurations.DAMAGED_LEFT,
    ],
    "weights and URLs": [
        *weights.NO_WEIGHTS,
        *weights.CHANGED,
        *weights.MALICIOUS,
        *weights.ANSWERS,
        *weights.PROMISES,
        *weights.NO_URLS,
        *weights.OUTWARD,
    ],
    "files of runs": [
        *runs.DAMAGED,
        *(f"weights: {name}" for name in runs.WEIGHTS),
        *(f"outcomes: {name}" for name in runs.OUTCOMES),
        *runs.LOSSES,
        *(f"checkpoint: {name}" for name in runs.CHECKPOINTS),
    ],
    "command lines": [*command_line.MISTAKES, *command_line.PICTURES, *command_line.UNUSUAL],
}


@pytest.mark.parametrize("kind", INPUTS)
def test_no_input_is_there_twice(kind):
    assert len(INPUTS[kind]) == len(set(INPUTS[kind]))


def test_there_are_several_hundred_inputs():
    numbers = {kind: len(inputs) for kind, inputs in INPUTS.items()}
    assert min(numbers.values()) >= 50
    assert sum(numbers.values()) >= 1000


def test_what_differs_in_its_name_differs_in_its_content():
    for table in (images.REFUSED, images.HANDLED, annotations.NO_JSON, weights.MALICIOUS):
        assert len({bytes(content) for content in table.values()}) == len(table)
    for content in (
        [changed(annotations.CONTENT, change) for change in annotations.WRONG_PLACES.values()],
        [changed(configurations.CONTENT, change) for change in configurations.WRONG_PLACES.values()],
    ):
        assert len(set(map(json.dumps, content))) == len(content)
