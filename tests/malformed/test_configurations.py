"""Descriptions of runs, requests of the workflow and parameters of notebooks that say what cannot be."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.experiments.config import RunConfig
from augfpn.parameters import (
    ExperimentParameters,
    RunParameters,
    RuntimeParameters,
    SemanticGapParameters,
    TableParameters,
    TourParameters,
    ViewerParameters,
    read_parameters,
)
from augfpn.reproduction import Request, jobs_of
from augfpn.reproduction.progress import headline, progress_of
from augfpn.reproduction.record import record_path
from augfpn.reproduction.workflow import last_request
from tests.malformed.generation import JSON, MISSING, changed, places, repeatable

NAN, INFINITY = math.nan, math.inf
CONTENT = json.loads(plan("table2/cs+rfa+srs", "micro").to_json())
FCOS, RETINANET = (
    json.loads(plan(f"table1/{id}", "micro").to_json()) for id in ("fcos_r50_fpn_1x", "retinanet_r50_fpn_1x")
)

# What each field of a description cannot be.
NO_COUNT = (None, "12", 1.5, True, 0, -1, 2**31, 10**400, NAN, INFINITY, [], {})
NO_FRACTION = (None, "0.5", True, -0.1, 1.1, NAN, INFINITY, [], {})
NO_NUMBER = (None, "1", True, -1.0, NAN, INFINITY, [], {})
NO_CHOICE = (None, "", "other", 3, True, [], {})
NO_TRUTH = (None, "true", 0, 1, NAN, [], {})
WRONG = {
    ("experiment",): (None, 3, True, [], {}, MISSING),
    ("scale",): (None, 3, True, [], {}, MISSING),
    ("seed",): (None, "0", 0.5, True, -1, 2**63, 10**400, NAN, MISSING),
    ("model",): (None, 3, "faster_rcnn", [], {}, MISSING),
    ("model", "architecture"): (*NO_CHOICE, MISSING, "fcos", "retinanet"),
    ("model", "channels"): (*NO_COUNT, 16_385),
    ("model", "backbone"): (None, "resnet50", [], 3),
    ("model", "backbone", "name"): (None, 3, []),
    ("model", "backbone", "weights"): (3, True, [], {}),
    ("model", "backbone", "frozen_stages"): (None, "1", 1.5, True, -1, 5, NAN),
    ("model", "backbone", "style"): NO_CHOICE,
    ("model", "backbone", "pretrained"): (True,),
    ("model", "consistent_supervision", "weight"): (*NO_NUMBER, 0.0),
    ("model", "consistent_supervision", "levels"): NO_CHOICE,
    ("model", "residual_feature_augmentation", "pooling"): (*NO_CHOICE, "gap"),
    ("model", "residual_feature_augmentation", "ratios"): ([], [0.0], [-0.1], [1.1], [NAN], ["0.1"], None),
    ("model", "residual_feature_augmentation", "fusion"): NO_CHOICE,
    ("model", "soft_roi_selection"): (True, "asf", []),
    ("model", "soft_roi_selection", "fusion"): NO_CHOICE,
    ("model", "adaptive_feature_pooling"): (*NO_TRUTH, True),
    ("model", "finest_side"): (*NO_NUMBER, 0.0),
    ("model", "proposals", "anchor_ratios"): ([], [0.0], [-1.0], [NAN], [INFINITY], ["1"], None, 1.0),
    ("model", "proposals", "num"): NO_COUNT,
    ("model", "proposals", "num_at_inference"): NO_COUNT[1:],
    ("model", "box", "width"): (*NO_COUNT, 16_385),
    ("model", "box", "score_threshold"): NO_FRACTION,
    ("model", "box", "nms_iou"): NO_FRACTION,
    ("model", "conventions", "anchor_centre"): NO_FRACTION,
    ("model", "conventions", "box_smooth_l1_beta"): (*NO_NUMBER, 0.0),
    ("model", "conventions", "retinanet_smooth_l1_beta"): NO_NUMBER,
    ("model", "conventions", "best_anchor_of"): NO_CHOICE,
    ("model", "mask"): (True, 256, []),
    ("model", "anchors"): (8,),
    ("data",): (None, "data/coco", [], MISSING),
    ("data", "root"): (3, True, []),
    ("data", "synthetic"): (True, 128, {}),
    ("data", "synthetic", "size"): (*NO_COUNT, 65_536),
    ("data", "synthetic", "num_train"): NO_COUNT,
    ("data", "short_side"): (*NO_COUNT, 65_536),
    ("data", "flip_probability"): NO_FRACTION,
    ("data", "overfit"): NO_COUNT[1:],
    ("data", "strict"): NO_TRUTH,
    ("data", "masks"): (*NO_TRUTH, True),
    ("training",): (None, 600, [], MISSING),
    ("training", "optimizer"): NO_CHOICE,
    ("training", "learning_rate"): (*NO_NUMBER, 0.0),
    ("training", "batch_size"): NO_COUNT,
    ("training", "momentum"): NO_FRACTION,
    ("training", "epochs"): (12, "12", 1.5, -1),
    ("training", "steps"): NO_COUNT,
    ("training", "warmup_steps"): (None, "50", 1.5, True, -1, NAN),
    ("training", "milestones"): ([-0.1], [1.1], [NAN], ["0.5"], None, 0.5),
    ("training", "num_workers"): (None, "2", 1.5, True, -1, 1025, 10**9),
    ("comment",): ("a good run",),
}  # fmt: skip


def shown(value):
    return "is missing" if value is MISSING else f"is {value!r:.12}"


WRONG_PLACES = {
    f"{'.'.join(place)} {shown(value)}": (place, value) for place, values in WRONG.items() for value in values
}
NO_JSON = [
    "",
    "{",
    "null",
    "3",
    '"run"',
    "[]",
    "[{}]",
    "{}",
    "{'experiment': 1}",
    "[" * 100_000,
    '{"seed": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("name", WRONG_PLACES)
def test_a_wrong_field_of_a_description_is_named(name):
    place, value = WRONG_PLACES[name]
    with pytest.raises(UserError) as error:
        RunConfig.from_json(json.dumps(changed(CONTENT, (place, value))))
    # Of parts that only fit together, the message is of what does not; of a part that is none, of the part.
    named = {
        *place,
        *(step.replace("_", " ") for step in place),
        "architecture",
        "pooling",
        "epochs",
        "Soft RoI",
        "expected a number",
    }
    assert any(step in str(error.value) for step in named)


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:30] or "nothing")
def test_what_is_no_description_is_refused(text):
    with pytest.raises(UserError, match="not the description of a run"):
        RunConfig.from_json(text)


NUM_GENERATED = 100


@repeatable(NUM_GENERATED)
@given(st.sampled_from([CONTENT, FCOS, RETINANET]), st.data())
def generated(seen, content, data):
    place, value = data.draw(st.sampled_from(list(places(content)))), data.draw(JSON | st.just(MISSING))
    text = json.dumps(changed(content, (place, value)))
    seen.add(text)
    try:
        config = RunConfig.from_json(text)
    except UserError:
        return
    # What is taken can be kept and read again, and says the same.
    assert RunConfig.from_json(config.to_json()) == config


def test_any_value_at_any_place_of_a_description_is_refused_or_kept():
    seen = set()
    generated(seen)
    assert len(seen) >= NUM_GENERATED // 2


EXPERIMENT = {"experiment": "table2/cs", "scale": "smoke"}
# What each parameter of a notebook cannot be.
PARAMETERS = {
    ExperimentParameters: (EXPERIMENT, {
        "experiment": (None, 3, True, [], "", "table2/nothing", "../table2/cs", MISSING),
        "scale": (None, 3, [], "", "tiny", "SMOKE", "paper", MISSING),
        "seed": (None, "0", 0.5, True, [0], -1, 2**63, NAN),
        "run": (3, True, [], {}),
        "data": (3, True, []),
        "steps": ("4", 4.0, True, 0, -1, 2**31, INFINITY),
        "devices": (None, "1", 1.0, True, 0, -1),
        "result": (3, True, []),
        "experimnet": ("table2/cs",),
        "Seed": (0,),
    }),
    TourParameters: ({"scale": "smoke"}, {
        "scale": (None, 3, "tiny", MISSING), "seed": ("0", -1, True), "images": (3,),
    }),
    TableParameters: ({"runs": "runs"}, {
        "runs": (None, 3, ["runs"], MISSING), "scale": (3, "", "tiny", []), "result": (3,), "table": ("table2",),
    }),
    SemanticGapParameters: ({"runs": "runs"}, {
        "table": (3, "", "table9", []), "images": ("3", 3.0, 0, -1, True), "along": (None, 0, 1, "true"),
    }),
    RuntimeParameters: ({"runs": "runs"}, {
        "rounds": (None, "5", 5.0, 0, -1, True), "steps": ("5", 0, 1.5), "images": ("5", 0, -3),
    }),
    RunParameters: ({"run": "runs/x"}, {"run": (None, 3, [], MISSING), "images": ("3", 0, -1, 1.5, True)}),
    ViewerParameters: ({"run": "runs/x"}, {
        "run": (None, 3, MISSING), "other": (3, [], True), "threshold": (None, "0.3", 1, -0.1, 1.1, NAN, INFINITY),
        "losses": (None, 0, "true"), "live_images": (None, "6", 0, -1, 6.0),
    }),
}  # fmt: skip
WRONG_PARAMETERS = {
    f"{kind.__name__.removesuffix('Parameters')}: {name} {shown(value)}": (kind, valid, name, value)
    for kind, (valid, wrong) in PARAMETERS.items()
    for name, values in wrong.items()
    for value in values
}


@pytest.mark.parametrize("name", WRONG_PARAMETERS)
def test_a_wrong_parameter_of_a_notebook_is_named(name):
    kind, valid, parameter, value = WRONG_PARAMETERS[name]
    given = {**valid, parameter: value}
    if value is MISSING:
        del given[parameter]
    assert read_parameters(kind, valid)
    with pytest.raises(UserError) as error:
        read_parameters(kind, given)
    assert parameter in str(error.value) or repr(value) in str(error.value) or "--data" in str(error.value)


REQUEST = {"targets": "table2", "scale": "smoke"}
WRONG_REQUESTS = {
    "targets": (None, 3, True, {}, [], "", " , ", "table9", ["table2", 3], [["table2"]], "table2;ls", "ALL"),
    "scale": (None, 3, True, [], "", "tiny", "paper"),
    "seeds": (None, "3", 1.5, True, [], 0, -1, 10_001, 10**400, NAN),
    "devices": (None, "1", 1.5, True, 0, -1, 10_001),
    "threads": (None, "1", 0),
    "at_once": (None, "1", 0, -1),
    "out": (3, True, [], "a/{b}", "{", "}"),
    "data": (3, True, []),
    "target": ("table2",),
    "jobs": (2,),
    3: ("table2",),
}  # fmt: skip
WRONG_CONFIGURATIONS = {
    f"{name} {shown(value)}": (name, value) for name, values in WRONG_REQUESTS.items() for value in values
}


@pytest.mark.parametrize("name", WRONG_CONFIGURATIONS)
def test_a_wrong_request_is_refused(name):
    field, value = WRONG_CONFIGURATIONS[name]
    with pytest.raises(UserError):
        Request.from_config({**REQUEST, field: value})


DAMAGED_REQUESTS = [
    "",
    "{",
    "null",
    "3",
    "[]",
    '"table2"',
    "[" * 100_000,
    '{"targets": 3}',
    '{"scale": "tiny"}',
    '{"other": 1}',
    "\xff",
]


@pytest.mark.parametrize("text", DAMAGED_REQUESTS, ids=lambda text: text[:20] or "nothing")
def test_a_damaged_request_is_named(tmp_path, text):
    (tmp_path / "reproduction.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"reproduction\.json is"):
        last_request(tmp_path)


# What jobs leave behind; damaged, it is as if it were not there.
LEFT = {
    "record": ["", "{", "null", "3", "[]", "{}", '{"status": 0}', '{"host": 3, "pid": 1, "started": ""}', "[" * 100_000,
               '{"host": null}',
               '{"host": "a", "pid": 1, "started": "", "status": "0"}',
               '{"host": "a", "pid": 1, "started": "", "when": 3}'],
    "provenance.json": ["", "{", "null", "3", "[]", "{}", '{"derived": null}', '{"derived": {"num_steps": 0}}',
                        '{"derived": {"num_steps": "4"}}', '{"derived": {"num_steps": -4}}', "\xff"],
    "metrics.jsonl": ["{\n", "null\n", "3\n", "[]\n", "{}\n",
                      '{"step": null}\n', '{"step": "two"}\n', '{"step": Infinity}\n',
                      '{"step": NaN}\n', "[" * 100_000 + "\n", "\xff\n"],
    "metrics.json": ["", "{", "null", "3", "[]", '{"training_seconds": "3", "seconds": 1}', '{"training_seconds": 3}'],
}  # fmt: skip
DAMAGED_LEFT = [(file, text) for file, texts in LEFT.items() for text in texts]


@pytest.mark.parametrize(("file", "text"), DAMAGED_LEFT, ids=lambda value: value.strip()[:40] or "nothing")
def test_damaged_records_are_as_if_they_were_not_there(tmp_path, file, text):
    request = Request(targets=("table2/cs",), scale="smoke", out=str(tmp_path))
    jobs = jobs_of(request)
    job = next(job for job in jobs.values() if job.run is not None)
    (job.run / "checkpoints").mkdir(parents=True)
    (job.run / "provenance.json").write_text('{"derived": {"num_steps": 4}}')
    (job.run / "metrics.jsonl").write_text('{"step": 2, "seconds": 1}\n')
    path = record_path(job.log) if file == "record" else job.run / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    progress = progress_of(jobs)
    assert progress[job.name].state == "waiting"
    assert "0 of 1 runs done" in headline(request, progress)
