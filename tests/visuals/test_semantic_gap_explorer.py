"""The semantic-gap explorer: what it answers, and what a real browser makes of it."""

import base64
import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from augfpn.analysis.gap_in_image import gap_in_image, predictions_of_objects
from augfpn.analysis.probe import probe_of
from augfpn.analysis.semantic_gap import MEASURES, measure_gaps
from augfpn.data.loading import open_dataset
from augfpn.engine import train
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json
from augfpn.ops.boxes import rescale
from augfpn.ops.resize import resize
from augfpn.structures import Images
from augfpn.visuals.interactive import SemanticGapExplorer
from augfpn.visuals.interactive import semantic_gap as explorer_module

CPU = torch.device("cpu")
EVIL = "<img src=x onerror=alert(1)>"
LEVELS = ("M2", "M3", "M4", "M5")
PAIRS = [(one, other) for one in range(4) for other in range(one + 1, 4)]


def trained(path, experiment):
    """At smoke, whose first object is of a class with a name of HTML."""
    run = train(plan(experiment, "smoke"), path, keep_checkpoints=True, device=CPU)
    label = int(open_dataset(run.config.data, "val")[0].labels[0])
    file = path / "categories.json"
    categories = json.loads(file.read_text())
    write_json(
        file,
        [{**one, "name": EVIL if at == label - 1 else one["name"]} for at, one in enumerate(categories)],
    )
    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Of FPN and of Consistent Supervision, after two steps and at the end, which is after four."""
    folder = tmp_path_factory.mktemp("gap")
    runs = [trained(folder / name, f"table2/{name}") for name in ("baseline", "cs")]
    return list(measure_gaps(runs, CPU, along=True))


@pytest.fixture(scope="module")
def explorer(measured):
    return SemanticGapExplorer(measured, device=CPU)


@pytest.fixture(scope="module")
def html(explorer, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer.to_html(2), encoding="utf-8")
    return path


def gap_of(measured, run, step, classifier="probe"):
    runs = list(dict.fromkeys(one.run for one in measured))
    [gap] = [
        one.gap for one in measured if one.run == runs[run] and one.step == step and one.gap.classifier == classifier
    ]
    return gap


@cache
def in_image(run, position, step=None):
    """The gap in an image, and what is predicted of its objects, computed here step by step."""
    model, sample = run.load_model(CPU, step), open_dataset(run.config.data, "val")[position]
    probe = probe_of(run, model, CPU)
    images = Images.pad([resize(sample.image, *run.config.data.resized_sides)])
    boxes = rescale(sample.boxes, torch.tensor(sample.image.shape[1:]), images.sizes[0])
    return gap_in_image(model, images, probe), predictions_of_objects(model, images, boxes, probe)


def decoded(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(kind).newbyteorder("<"))


def number(text):
    return float(text.replace("−", "-"))


# What it answers.


def test_the_header_has_all_that_was_measured(measured, explorer):
    header = explorer.answer({"what": "header"})
    json.dumps(header, allow_nan=False)
    assert header["view"] == "semantic-gap"
    assert header["scale"] == "smoke"
    assert header["measures"] == MEASURES
    assert [run["step"] for run in header["runs"]] == [None, None]
    assert header["classes"] == [category.name for category in explorer.runs[0].categories]
    assert header["images"]["total"] == len(header["images"]["names"]) == 4
    found = [(one["run"], one["step"], one["end"], one["classifier"]) for one in header["gaps"]]
    head = "auxiliary head"
    assert found[:2] == [(0, 2, False, "probe"), (0, 4, True, "probe")]
    assert found[2:] == [(1, step, end, by) for step, end in ((2, False), (4, True)) for by in ("probe", head)]
    for one, shown in zip(measured, header["gaps"], strict=True):
        for name in (*MEASURES, "accuracy"):
            np.testing.assert_array_equal(np.array(shown[name], dtype=float), getattr(one.gap, name))


def test_the_checkpoint_of_the_last_step_is_the_end_of_training(measured, explorer):
    again = [replace(one, step=one.num_steps) for one in measured if one.step is None]
    gaps = SemanticGapExplorer([*again, *measured], device=CPU).answer({"what": "header"})["gaps"]
    assert gaps == explorer.answer({"what": "header"})["gaps"]


@pytest.mark.parametrize("run", [0, 1], ids=["fpn", "cs"])
def test_a_gap_in_an_image_is_the_one_that_the_analysis_finds(explorer, run):
    answer = explorer.answer({"what": "gap", "image": 1, "run": run})
    json.dumps(answer, allow_nan=False)
    gap, predictions = in_image(explorer.runs[run], 1)
    first, second = zip(*PAIRS, strict=True)
    assert tuple(answer["levels"]) == gap.levels == LEVELS
    shape = (len(PAIRS), answer["rows"], answer["columns"])
    assert shape[1:] == gap.classes.shape[1:]
    similarity = decoded(answer["similarity"], "int8").reshape(shape) / 127
    np.testing.assert_allclose(similarity, gap.similarity[first, second], atol=0.51 / 127)
    overlap = decoded(answer["overlap"], "uint8").reshape(shape) / 255
    np.testing.assert_allclose(overlap, gap.overlap[first, second], atol=0.51 / 255)
    classes = decoded(answer["classes"]["values"], answer["classes"]["kind"])
    np.testing.assert_array_equal(classes.reshape(gap.classes.shape), gap.classes)
    labels = explorer.dataset[1].labels.tolist()
    assert answer["predictions"].keys() == predictions.probabilities.keys()
    assert ("auxiliary head" in predictions.probabilities) == (run == 1)
    for classifier, expected in predictions.probabilities.items():
        found = answer["predictions"][classifier]
        assert [len(levels) for levels in found] == [4] * len(labels)
        for of_object, probabilities, label in zip(found, expected, labels, strict=True):
            for of_level, values in zip(of_object, probabilities.tolist(), strict=True):
                assert of_level["true"] == pytest.approx(values[label], abs=1e-4)
                shares = [share for _, share in of_level["top"]]
                assert shares == pytest.approx(sorted(values, reverse=True)[:3], abs=1e-4)
                assert shares == pytest.approx([values[one] for one, _ in of_level["top"]], abs=1e-4)


def test_an_image_is_answered_with_its_objects(explorer):
    answer, sample = explorer.answer({"what": "image", "image": 2}), explorer.dataset[2]
    picture = Image.open(io.BytesIO(base64.b64decode(answer["picture"].partition(",")[2])))
    assert (answer["height"], answer["width"]) == picture.size[::-1] == sample.image.shape[1:]
    np.testing.assert_allclose([one["box"] for one in answer["objects"]], sample.boxes, atol=0.006)
    assert [one["label"] for one in answer["objects"]] == sample.labels.tolist()


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"what": "weights"}, "does not know 'weights'"),
        ({"what": "image", "image": 4}, "no image 4: they are counted from 0 to 3"),
        ({"what": "image", "image": -1}, "no image -1"),
        ({"what": "image", "image": "0"}, "no image '0'"),
        ({"what": "image"}, "no image None"),
        ({"what": "gap", "image": 0, "run": 2}, "no run 2: they are counted from 0 to 1"),
        ({"what": "gap", "image": 1.5, "run": 0}, "no image 1.5"),
    ],
    ids=str,
)
def test_what_there_is_not_is_said_so(explorer, request_, expected):
    with pytest.raises(UserError, match=expected):
        explorer.answer(request_)


def test_without_a_measured_gap_there_is_nothing_to_explore():
    with pytest.raises(UserError, match="measure_gaps"):
        SemanticGapExplorer([])


def test_a_page_holds_what_its_images_need(explorer, monkeypatch):
    held = list(explorer.held_requests(2))
    assert held == [
        request
        for image in (0, 1)
        for request in (
            {"what": "image", "image": image},
            *({"what": "gap", "image": image, "run": run} for run in (0, 1)),
        )
    ]
    images = explorer.held_header(2)["images"]
    assert images == {"names": explorer.dataset.file_names[:2], "total": 4}
    # Of many runs it has fewer images, so that it does not grow with them.
    monkeypatch.setattr(explorer_module, "HELD_MAPS", 2)
    assert len(list(explorer.held_requests(50))) == 3
    assert len(explorer.held_header(50)["images"]["names"]) == 1


def test_before_the_end_of_training_it_shows_the_last_checkpoint(measured):
    explorer = SemanticGapExplorer([one for one in measured if one.step == 2], device=CPU)
    assert [run["step"] for run in explorer.answer({"what": "header"})["runs"]] == [2, 2]
    answer = explorer.answer({"what": "gap", "image": 0, "run": 0})
    gap, _ = in_image(explorer.runs[0], 0, step=2)
    similarity = decoded(answer["similarity"], "int8").reshape(len(PAIRS), answer["rows"], answer["columns"]) / 127
    np.testing.assert_allclose(similarity[0], gap.similarity[0, 1], atol=0.51 / 127)
    assert explorer.picture().width > 100


def test_a_one_stage_detector_has_its_own_levels(tmp_path):
    # From a stride of 8 on, as at the paper's scale.
    config = plan("table1/fcos_r50_augfpn_1x", "smoke")
    run = train(replace(config, model=replace(config.model, finest_level=3)), tmp_path / "fcos", device=CPU)
    explorer = SemanticGapExplorer(list(measure_gaps([run], CPU)), device=CPU)
    assert {tuple(one["levels"]) for one in explorer.answer({"what": "header"})["gaps"]} == {LEVELS[1:]}
    answer = explorer.answer({"what": "gap", "image": 0, "run": 0})
    assert answer["levels"] == LEVELS[1:]
    assert (answer["rows"], answer["columns"]) == (8, 8)
    assert len(decoded(answer["similarity"], "int8")) == 3 * 8 * 8
    assert answer["predictions"].keys() == {"probe", "auxiliary head"}


# What the browser shows.


@pytest.fixture
def opened(html, offline):
    page = offline(html)
    page.wait_for_selector(".view[data-maps=ready]")
    return page


def click_pair(page, pair):
    page.locator(f".matrix[data-run='0'] button[data-pair='{pair}']").first.click()


def cells(page, run):
    """The numbers of a matrix; nan where there is a dash."""
    texts = page.locator(f".matrix[data-run='{run}'] .cell").all_inner_texts()
    return np.array([np.nan if text == "–" else number(text) for text in texts]).reshape(4, 4)


def row(page, run):
    texts = page.locator(f".values tr[data-run='{run}'] td").all_inner_texts()
    return [np.nan if text == "–" else number(text) for text in texts]


@pytest.mark.parametrize("measure", ["cka", "disagreement"])
def test_matrices_and_numbers_are_those_of_python(measured, opened, measure):
    page = opened
    page.locator(".measure").select_option(measure)
    click_pair(page, "M3–M5")
    of = " of the probe" if measure == "disagreement" else ""
    assert page.locator(".gaps h3").inner_text() == f"M3–M5 along training: {MEASURES[measure]}{of}"
    assert page.locator(".gap-in-image h3").first.inner_text() == "M3–M5 in an image"
    assert page.locator(".values thead th").all_inner_texts() == ["steps", "2", "end"]
    for run in (0, 1):
        gaps = [gap_of(measured, run, step) for step in (2, None)]
        np.testing.assert_allclose(cells(page, run), getattr(gaps[1], measure), atol=0.0051)
        np.testing.assert_allclose(row(page, run), [getattr(gap, measure)[1, 3] for gap in gaps], atol=0.00051)
        right = page.locator(f".matrix[data-run='{run}'] tfoot td").all_inner_texts()
        np.testing.assert_allclose([number(text) for text in right], gaps[1].accuracy, atol=0.0051)
        pressed = page.locator(f".matrix[data-run='{run}'] button[aria-pressed=true]")
        assert {one.get_attribute("data-pair") for one in pressed.all()} == {"M3–M5"}
        assert pressed.count() == 2
    titles = page.locator(".lines .sign title").all_text_contents()
    assert len(titles) == 4
    last = float(getattr(gap_of(measured, 1, None), measure)[1, 3])
    assert number(titles[3].rpartition(" ")[2]) == pytest.approx(last, abs=0.00051)


def test_the_slider_goes_along_training_and_a_head_that_is_missing_is_said_so(measured, opened):
    page = opened
    assert page.locator(".step-text").inner_text() == "at the end of training"
    page.locator(".step").evaluate("(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
    assert page.locator(".step-text").inner_text() == "after 2 steps"
    for run in (0, 1):
        np.testing.assert_allclose(cells(page, run), gap_of(measured, run, 2).cka, atol=0.0051)
    assert page.locator(".values th[data-now]").all_inner_texts() == ["2"]
    page.locator(".classifier").select_option("auxiliary head")
    page.locator(".measure").select_option("disagreement")
    assert np.isnan(cells(page, 0)).all()
    assert "no auxiliary head" in page.locator(".matrix[data-run='0'] .missing").inner_text()
    expected = gap_of(measured, 1, 2, "auxiliary head").disagreement
    np.testing.assert_allclose(cells(page, 1), expected, atol=0.0051)
    # Features do not depend on who classifies them.
    page.locator(".measure").select_option("cka")
    np.testing.assert_allclose(cells(page, 0), gap_of(measured, 0, 2).cka, atol=0.0051)


def test_the_place_that_is_pointed_at_has_the_value_of_python(explorer, opened, keep):
    page = opened
    names = [category.name for category in explorer.runs[0].categories]
    click_pair(page, "M2–M4")
    found = [in_image(run, 0)[0] for run in explorer.runs]
    rows, columns = found[0].classes.shape[1:]
    for choice, place in (("similarity", (2, 11)), ("overlap", (9, 4))):
        page.locator(".map-of").select_option(choice)
        stage = page.locator("svg.stage").nth(1)
        size = stage.bounding_box()
        stage.hover(
            position={
                "x": size["width"] * (place[1] + 0.5) / columns,
                "y": size["height"] * (place[0] + 0.5) / rows,
            }
        )
        said = page.locator(".gap-in-image .readout").inner_text()
        assert said.startswith(f"M2–M4 {choice}. ")
        for name, gap in zip(("FPN", "CS"), found, strict=True):
            where = f"row {place[0] + 1}, column {place[1] + 1}: "
            [of_run] = [part for part in said.split(f"{name}, ")[1:] if part.startswith(where)]
            value, _, seen = of_run.removeprefix(where).partition("; the probe sees ")
            assert number(value) == pytest.approx(float(getattr(gap, choice)[0, 2][place]), abs=0.0095)
            one, other = (names[gap.classes[level][place] - 1] for level in (0, 2))
            assert seen.startswith(f"{one} in both" if one == other else f"{one} in M2 and {other} in M4")
        assert page.locator(".pointed .line").count() == 4  # on the image and on the map, of each run
    keep("semantic_gap_pointed")


def test_an_object_has_the_predictions_of_python(explorer, opened, keep):
    page = opened
    names = [category.name for category in explorer.runs[0].categories]
    num = len(explorer.dataset[0].labels)
    assert page.locator(".objects button").count() == page.locator("svg.stage").first.locator(".object").count() == num
    page.locator(".objects button").nth(num - 1).click()
    label = int(explorer.dataset[0].labels[-1])
    for classifier in ("probe", "auxiliary head"):
        page.locator(".classifier").select_option(classifier)
        said = page.locator(".predictions h3").inner_text()
        assert said == f"What the {classifier} makes of {names[label - 1]} ({num}) in each level"
        for run, of_run in enumerate(explorer.runs):
            table = page.locator(f".of-run[data-run='{run}']")
            expected = in_image(of_run, 0)[1].probabilities.get(classifier)
            if expected is None:
                assert "no auxiliary head" in table.inner_text()
                continue
            for level, probabilities in zip(LEVELS, expected[num - 1], strict=True):
                it_is, *top, true = table.locator(f"tr[data-level={level}] td").all_inner_texts()
                likeliest = int(probabilities.argmax())
                assert it_is == ("✓ right" if likeliest == label else "✗ wrong")
                assert number(true) == pytest.approx(float(probabilities[label]), abs=0.0051)
                shown = [text.removeprefix("✓ ").rpartition(" ") for text in top]
                assert shown[0][0] == ["background", *names][likeliest]
                values = [number(value) for _, _, value in shown]
                assert values == pytest.approx(probabilities.sort(descending=True).values[:3].tolist(), abs=0.0051)
    keep("semantic_gap")


def test_the_keyboard_reaches_images_objects_and_cells(explorer, opened):
    page, names = opened, explorer.dataset.file_names
    page.locator(".view").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f".view[data-image='{names[1]}'][data-maps=ready]")
    assert page.locator(".place").inner_text() == f"of 2 (4 in the data): {names[1]}"
    page.keyboard.press("ArrowRight")  # there is none behind the last one
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f".view[data-image='{names[0]}'][data-maps=ready]")
    page.keyboard.press("ArrowDown")
    pressed = page.locator(".objects button[aria-pressed=true]")
    assert pressed.get_attribute("data-index") == "0"
    assert page.locator(".predictions table").count() == 2
    page.keyboard.press("Escape")
    assert pressed.count() == 0
    assert page.locator(".predictions table").count() == 0
    page.locator(".matrix[data-run='1'] button[data-pair='M4–M5']").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".gap-in-image h3").first.inner_text() == "M4–M5 in an image"


def test_names_are_text_and_never_markup(opened):
    page = opened
    assert page.locator(".objects button").first.inner_text() == f"{EVIL} (1)"
    page.locator(".objects button").first.click()
    assert EVIL in page.locator(".predictions h3").inner_text()
    assert EVIL in page.locator(".predictions thead").first.inner_text()
    assert EVIL in page.locator("svg.stage .texts").first.text_content()
    assert page.locator(".view img").count() == 0
