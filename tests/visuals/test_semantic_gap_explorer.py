"""The semantic-gap explorer: its answers beside the analyses they come from, and what a reader sees in a browser."""

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from augfpn.analysis.gap_in_image import gap_in_image, predictions_of_objects
from augfpn.analysis.semantic_gap import MeasuredGap, measure_gaps
from augfpn.data.loading import FIRST_SYNTHETIC_VAL, evaluation_batches, open_dataset
from augfpn.data.synthetic import SyntheticDataset
from augfpn.engine import Execution, Run, train
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json
from augfpn.visuals.interactive import SemanticGapExplorer

CPU = torch.device("cpu")
EVIL = "<img src=x onerror=alert(1)>"
PAIR = (1, 3)  # M3 and M5, in the place of the first pair, which is shown at first
NUM_IMAGES = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Without and with Consistent Supervision; the names of the classes in the first one are HTML."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        train(plan(id, "smoke"), folder / name, execution=Execution(keep_checkpoints=True), device=CPU)
        for name, id in (("fpn", "table2/baseline"), ("cs", "table2/cs"))
    ]
    categories = [{**vars(category), "name": f"{EVIL} {category.name}"} for category in runs[0].categories]
    write_json(runs[0].path / "categories.json", categories)
    return runs


@pytest.fixture(scope="module")
def measured(runs):
    return list(measure_gaps(runs, CPU, along=True))


@pytest.fixture(scope="module")
def explorer(measured):
    return SemanticGapExplorer(measured, device=CPU)


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory):
    config = plan("table1/retinanet_r50_fpn_1x", "smoke")
    # From P3 on, as in the paper and not as at the small scales.
    config = replace(config, model=replace(config.model, finest_level=3))
    run = train(config, tmp_path_factory.mktemp("one") / "run", device=CPU)
    return list(measure_gaps([run], CPU))


def ask(explorer, what, **more):
    # What the module reads is JSON.
    answer = explorer.answer({"what": what, **more})
    return json.loads(json.dumps(answer, allow_nan=False))


def decoded(text, kind, *shape):
    return np.frombuffer(base64.b64decode(text), dtype=kind).reshape(shape)


def seen(run, image):
    """An image and its boxes as the model of the run sees them, by the evaluation's own way."""
    config = run.config.data
    batch = list(evaluation_batches(open_dataset(config, "val"), config, batch_size=1))[image]
    return batch.images, batch.targets.boxes[0][batch.targets.valid[0]], batch.targets.labels[0]


def last_of(measured, run, classifier="probe"):
    [gap] = [one.gap for one in measured if (one.run, one.step, one.gap.classifier) == (run, None, classifier)]
    return gap


def test_the_header_has_every_gap_that_was_measured_once(explorer, measured, runs):
    header = ask(explorer, "header")
    assert [run["name"] for run in header["runs"]] == ["FPN", "CS"]
    assert header["images"]["total"] == len(header["images"]["names"]) == 4
    kept, num_steps = runs[0].checkpoint_steps, int(runs[0].history()[-1]["step"])
    # The last checkpoint is the end.
    expected = {(run, step, step == num_steps) for run in (0, 1) for step in {*kept, num_steps}}
    assert {(gap["run"], gap["step"], gap["end"]) for gap in header["gaps"]} == expected
    for run, classifier in ((0, "probe"), (1, "probe"), (1, "auxiliary head")):
        [found] = [gap for gap in header["gaps"] if gap["end"] and (gap["run"], gap["classifier"]) == (run, classifier)]
        gap = last_of(measured, runs[run], classifier)
        for name in ("cka", "cosine", "disagreement", "accuracy"):
            assert found[name] == getattr(gap, name).tolist()
        assert found["levels"] == ["M2", "M3", "M4", "M5"]


def test_a_matrix_without_a_value_is_null_in_json(measured):
    gap = measured[0].gap
    nan = replace(gap, cka=torch.full_like(gap.cka, torch.nan))
    [found] = ask(SemanticGapExplorer([replace(measured[0], gap=nan)], device=CPU), "header")["gaps"]
    assert found["cka"][0] == [None] * 4


@pytest.mark.parametrize("image", [0, 2])
@pytest.mark.parametrize("run", [0, 1])
def test_maps_and_predictions_are_those_of_the_analyses(explorer, runs, run, image):
    explored = explorer.explored[run]
    images, boxes, labels = seen(runs[run], image)
    gap = gap_in_image(explored.model, images, explored.probe)
    found = ask(explorer, "gap", image=image, run=run)
    rows, columns = gap.classes.shape[1:]
    assert (found["levels"], found["rows"], found["columns"]) == (list(gap.levels), rows, columns)
    pairs = [(one, other) for one in range(4) for other in range(one + 1, 4)]
    similarity = decoded(found["similarity"], "int8", 6, rows, columns) / 127
    overlap = decoded(found["overlap"], "uint8", 6, rows, columns) / 255
    for place, (one, other) in enumerate(pairs):
        np.testing.assert_allclose(similarity[place], gap.similarity[one, other], atol=0.5 / 127 + 1e-5)
        np.testing.assert_allclose(overlap[place], gap.overlap[one, other], atol=0.5 / 255 + 1e-5)
    classes = found["classes"]
    np.testing.assert_array_equal(decoded(classes["values"], classes["kind"], 4, rows, columns), gap.classes)

    objects = predictions_of_objects(explored.model, images, boxes, explored.probe)
    assert found["predictions"].keys() == objects.probabilities.keys()
    assert ("auxiliary head" in found["predictions"]) == (run == 1)
    for classifier, probabilities in objects.probabilities.items():
        for at, of_levels in enumerate(probabilities):
            for level, of_level in enumerate(of_levels):
                shown = found["predictions"][classifier][at][level]
                assert shown["true"] == pytest.approx(of_level[labels[at]].item(), abs=1e-4)
                best = [probability for _, probability in shown["top"]]
                assert best == pytest.approx(of_level.topk(3).values.tolist(), abs=1e-4)
                assert best == pytest.approx([of_level[label].item() for label, _ in shown["top"]], abs=1e-4)


# The second image is empty.
@pytest.mark.parametrize(("image", "num"), [(0, 4), (1, 0)])
def test_an_image_comes_with_the_objects_that_the_gap_is_measured_on(explorer, runs, image, num):
    sample = open_dataset(runs[0].config.data, "val")[image]
    found = ask(explorer, "image", image=image)
    assert len(found["objects"]) == num
    assert found["picture"].startswith("data:image/jpeg;base64,")
    assert [one["label"] for one in found["objects"]] == sample.labels.tolist()
    torch.testing.assert_close(
        torch.tensor([one["box"] for one in found["objects"]]).view(-1, 4), sample.boxes, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"what": "fusion", "image": 0}, "does not know 'fusion'"),
        ({"what": "image", "image": 4}, "no image 4: they are counted from 0 to 3"),
        ({"what": "image", "image": -1}, "no image -1"),
        ({"what": "image"}, "no image None"),
        ({"what": "gap", "image": 0, "run": 2}, "no run 2: they are counted from 0 to 1"),
        ({"what": "gap", "image": "0", "run": 0}, "no image '0'"),
    ],
)
def test_a_request_that_cannot_be_answered_is_a_clear_error(explorer, request_, expected):
    with pytest.raises(UserError, match=expected):
        explorer.answer(request_)


def test_nothing_measured_and_runs_of_different_data_are_refused(measured, runs, tmp_path):
    with pytest.raises(UserError, match="no gap to explore"):
        SemanticGapExplorer([])
    shutil.copytree(runs[1].path, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "run.json").read_text())
    content["data"]["synthetic"]["seed"] = 7
    write_json(tmp_path / "other" / "run.json", content)
    with pytest.raises(UserError, match="cannot be compared"):
        SemanticGapExplorer([measured[0], MeasuredGap(Run(tmp_path / "other"), None, measured[0].gap)])


def test_a_one_stage_detector_has_three_levels(one_stage):
    explorer = SemanticGapExplorer(one_stage, device=CPU)
    [gap] = ask(explorer, "header")["gaps"]
    assert gap["levels"] == ["M3", "M4", "M5"]
    found = ask(explorer, "gap", image=0, run=0)
    assert len(decoded(found["similarity"], "int8", -1)) == 3 * found["rows"] * found["columns"]
    assert found["predictions"].keys() == {"probe"}


def test_a_run_without_an_end_is_explored_as_it_was_measured_last(measured, runs):
    [step, *_] = sorted({one.step for one in measured if one.step is not None})
    explorer = SemanticGapExplorer([one for one in measured if one.step == step], device=CPU)
    assert [run["step"] for run in ask(explorer, "header")["runs"]] == [step, step]
    assert not any(gap["end"] for gap in ask(explorer, "header")["gaps"])
    for mine, kept in zip(
        explorer.explored[0].model.state_dict().values(),
        runs[0].load_model(CPU, step).state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(mine, kept)


def test_a_page_holds_no_more_maps_than_it_should(measured, explorer, monkeypatch):
    assert len(list(explorer.held_requests(3))) == 3 * 3
    assert len(explorer.held_header(3)["images"]["names"]) == 3
    monkeypatch.setattr("augfpn.visuals.interactive.semantic_gap.HELD_MAPS", 4)
    assert len(explorer.held_header(50)["images"]["names"]) == 2
    assert explorer.held_header(50)["images"]["total"] == 4


def test_real_images_are_not_read_before_they_are_shown(measured, runs, tmp_path):
    for split, first in (("train", 0), ("val", FIRST_SYNTHETIC_VAL)):
        SyntheticDataset(64, 2, first=first).write(tmp_path / "data", split)
    shutil.copytree(runs[0].path, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["data"] |= {"synthetic": None, "root": str(tmp_path / "data")}
    write_json(tmp_path / "run" / "run.json", content)
    [image, missing] = sorted((tmp_path / "data" / "val2017").iterdir())
    missing.unlink()
    explorer = SemanticGapExplorer([replace(measured[0], run=Run(tmp_path / "run"))], device=CPU)
    assert ask(explorer, "header")["images"]["names"] == [image.name, missing.name]
    assert ask(explorer, "image", image=0)["width"] == 64
    with pytest.raises(UserError, match="no such file"):
        explorer.answer({"what": "image", "image": 1})


def test_where_no_script_runs_there_are_the_matrices(explorer):
    picture = explorer.picture()
    assert picture.mode == "RGB"
    assert picture.width > 400


# In the browser.


@pytest.fixture(scope="module")
def page(chromium, explorer, tmp_path_factory):
    """The page that needs nothing: a request to anywhere, a dialog or an error of the script is a failure."""
    yield from opened(chromium, explorer.to_html(NUM_IMAGES), tmp_path_factory.mktemp("page") / "page.html")


def opened(chromium, html, path):
    path.write_text(html, encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1350, "height": 1500})
    context.set_offline(True)
    page = context.new_page()
    trouble = []
    page.on(
        "request", lambda request: None if request.url.startswith(("data:", "file:")) else trouble.append(request.url)
    )
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("[data-maps=ready]", timeout=60_000)
    yield page
    context.close()
    assert trouble == []


@pytest.fixture
def fresh(page):
    """The page as it opens."""
    page.reload()
    page.wait_for_selector("[data-maps=ready]", timeout=60_000)
    return page


def shot(page, name):
    if folder := os.environ.get("AUGFPN_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"semantic_gap_{name}.png", full_page=True)


def cell(page, run, pair="M3–M5"):
    return page.locator(f'button.cell[data-run="{run}"][data-pair="{pair}"][tabindex="0"]')


def number(text):
    return float(text.replace("−", "-"))


def names_and_values(page, run):
    """The rows of a run's predictions: level, right or wrong, and the texts of its likeliest classes."""
    rows = page.locator(f'.of-run[data-run="{run}"] tbody tr').all()
    return [[one.inner_text() for one in row.locator("th, td").all()] for row in rows]


@pytest.mark.parametrize("measure", ["cka", "cosine", "disagreement"])
def test_a_cell_that_is_clicked_shows_its_value_and_its_course(fresh, measured, runs, measure):
    fresh.locator("select.measure").select_option(measure)
    cell(fresh, 1).click()
    for run in (0, 1):
        expected = getattr(last_of(measured, runs[run]), measure)[PAIR].item()
        assert number(cell(fresh, run).inner_text()) == pytest.approx(expected, abs=0.00501)
        assert cell(fresh, run).get_attribute("aria-pressed") == "true"
        label = cell(fresh, run).get_attribute("aria-label")
        assert label.startswith(f"{('FPN', 'CS')[run]}: M3–M5, ")
        assert number(label.split()[-1]) == pytest.approx(expected, abs=0.00501)
        row = fresh.locator(f'.values tr[data-run="{run}"]')
        assert number(row.locator('[data-step="end"]').inner_text()) == pytest.approx(expected, abs=0.000501)
        for one in measured:
            if one.run == runs[run] and one.step not in (None, int(runs[0].history()[-1]["step"])):
                shown = row.locator(f'[data-step="{one.step}"]').inner_text()
                if one.gap.classifier == "probe":
                    assert number(shown) == pytest.approx(getattr(one.gap, measure)[PAIR].item(), abs=0.000501)
    headings = fresh.locator("h3").all_inner_texts()
    assert headings[0].startswith("M3–M5 along training")
    assert headings[1] == "M3–M5 in an image"
    assert fresh.locator(".lines polyline").count() == 2
    shot(fresh, measure)


def test_the_slider_goes_along_the_steps(fresh, measured, runs):
    steps = [step for step in runs[0].checkpoint_steps if step != int(runs[0].history()[-1]["step"])]
    assert fresh.locator(".step-text").inner_text() == "at the end of training"
    fresh.locator("input.step").focus()
    fresh.keyboard.press("Home")
    assert fresh.locator(".step-text").inner_text() == f"after {steps[0]} steps"
    [gap] = [one.gap for one in measured if (one.run, one.step, one.gap.classifier) == (runs[1], steps[0], "probe")]
    assert number(cell(fresh, 1).inner_text()) == pytest.approx(gap.cka[PAIR].item(), abs=0.00501)


def test_one_classifier_is_asked_at_a_time_and_runs_without_an_auxiliary_head_say_so(fresh, measured, runs):
    fresh.locator("select.measure").select_option("disagreement")
    fresh.locator("select.classifier").select_option("auxiliary head")
    expected = last_of(measured, runs[1], "auxiliary head").disagreement[PAIR].item()
    assert number(cell(fresh, 1).inner_text()) == pytest.approx(expected, abs=0.00501)
    assert cell(fresh, 0).inner_text() == "–"
    assert "no auxiliary head" in fresh.locator('.matrix[data-run="0"] .missing').inner_text()
    fresh.locator(".objects button").first.click()
    assert "no auxiliary head" in fresh.locator('.of-run[data-run="0"]').inner_text()
    assert len(names_and_values(fresh, 1)) == 4
    # How alike features are is no matter of the classifier.
    fresh.locator("select.measure").select_option("cka")
    assert number(cell(fresh, 0).inner_text()) == pytest.approx(
        last_of(measured, runs[0]).cka[PAIR].item(), abs=0.00501
    )


@pytest.mark.parametrize("map", ["similarity", "overlap"])
def test_the_value_at_a_place_of_the_map_is_that_of_the_analysis(fresh, explorer, runs, map):
    cell(fresh, 0).click()
    fresh.locator("select.map-of").select_option(map)
    stage = fresh.locator(".gap-stages svg.stage").nth(2)
    box = stage.bounding_box()
    # Shares of the image: in the middle of a cell or so, where rounding is no matter.
    stage.hover(position={"x": 0.4 * box["width"], "y": 0.78 * box["height"]}, force=True)
    said = fresh.locator(".gap-in-image .readout").inner_text()
    for run, name in ((0, "FPN"), (1, "CS")):
        explored = explorer.explored[run]
        gap = gap_in_image(explored.model, seen(runs[run], 0)[0], explored.probe)
        rows, columns = gap.classes.shape[1:]
        row, column = int(0.78 * rows), int(0.4 * columns)
        place = f"{name}, row {row + 1}, column {column + 1}: "
        assert place in said
        shown, what = said.split(place)[1].split(";")[:2]
        expected = getattr(gap, map)[*PAIR, row, column].item()
        assert number(shown) == pytest.approx(expected, abs=0.5 / 127 + 0.00501)
        labels = [gap.classes[level, row, column].item() for level in PAIR]
        for label in labels:
            assert explorer.runs[0].categories[label - 1].name in what
        assert ("in both" in what) == (labels[0] == labels[1])
    descriptions = [one.get_attribute("aria-label") for one in fresh.locator("svg .map[role=img]").all()]
    assert [text.split(":")[0] for text in descriptions] == ["FPN", "CS"]
    assert all(f"{map} of M3 and M5 over" in text for text in descriptions)
    hint = fresh.locator(".gap-in-image .hint").inner_text()
    assert ("can be compared between models" in hint) == (map == "similarity")
    assert ("not models with one another" in hint) == (map == "overlap")


def test_an_object_that_is_clicked_shows_what_is_predicted_from_each_level(fresh, explorer):
    fresh.locator('.gap-stages figure:nth-child(2) [data-index="0"] rect.line').dispatch_event("click")
    assert fresh.locator('.objects [data-index="0"]').get_attribute("aria-pressed") == "true"
    label = ask(explorer, "image", image=0)["objects"][0]["label"]
    names = ["background", *(category.name for category in explorer.runs[0].categories)]
    for run in (0, 1):
        of_levels = ask(explorer, "gap", image=0, run=run)["predictions"]["probe"][0]
        for shown, level, of_level in zip(
            names_and_values(fresh, run), ("M2", "M3", "M4", "M5"), of_levels, strict=True
        ):
            name, verdict, *classes, true = shown
            is_right = of_level["top"][0][0] == label
            assert (name, verdict) == (level, "✓ right" if is_right else "✗ wrong")
            for text, (one, probability) in zip(classes, of_level["top"], strict=True):
                is_true = "✓ " if one == label else ""
                said, value = text.rsplit(" ", 1)
                assert said == f"{is_true}{names[one]}"
                assert float(value) == pytest.approx(probability, abs=0.00501)
            assert float(true) == pytest.approx(of_level["true"], abs=0.00501)
    shot(fresh, "object")


def test_names_of_classes_are_text(fresh):
    fresh.locator(".objects button").first.click()
    assert EVIL in fresh.locator(".predictions").inner_text()
    assert EVIL in fresh.locator(".objects").inner_text()
    assert EVIL in "".join(fresh.locator("svg text").all_text_contents())
    assert fresh.locator("img[src=x]").count() == 0


def test_all_of_it_can_be_reached_by_the_keyboard(fresh, explorer):
    fresh.locator("input.step").focus()
    fresh.keyboard.press("Tab")
    # The first pair of the first run; each pair is met once.
    pairs = []
    for _ in range(12):
        focused = "document.querySelector('.augfpn-view').shadowRoot.activeElement.dataset"
        pairs.append(fresh.evaluate(f"{focused}.run + {focused}.pair"))
        fresh.keyboard.press("Tab")
    assert len(set(pairs)) == 12
    assert pairs[0] == "0M2–M3"
    cell(fresh, 1, "M2–M4").focus()
    fresh.keyboard.press("Enter")
    assert fresh.locator("h3").all_inner_texts()[1] == "M2–M4 in an image"
    # The focus stays where it was, and keys of the view are heard there.
    assert cell(fresh, 1, "M2–M4").evaluate("one => one === one.getRootNode().activeElement")
    names = ask(explorer, "header")["images"]["names"]
    fresh.keyboard.press("ArrowRight")
    fresh.wait_for_selector(f'[data-image="{names[1]}"][data-maps=ready]')
    fresh.keyboard.press("ArrowLeft")
    fresh.wait_for_selector(f'[data-image="{names[0]}"][data-maps=ready]')
    fresh.keyboard.press("ArrowDown")
    assert fresh.locator('.objects [data-index="0"]').get_attribute("aria-pressed") == "true"
    assert fresh.locator(".predictions h3").is_visible()
    fresh.keyboard.press("Escape")
    assert fresh.locator(".predictions h3").count() == 0


def test_another_run_can_be_shown_beside_the_first_or_none(fresh):
    fresh.locator('select.run-of[data-side="1"]').select_option("")
    assert fresh.locator(".gap-stages figure:visible").count() == 2
    fresh.locator('select.run-of[data-side="0"]').select_option("1")
    fresh.wait_for_selector("[data-maps=ready]")
    [description] = [one.get_attribute("aria-label") for one in fresh.locator("svg .map[role=img]").all()]
    assert description.startswith("CS: ")


def test_without_checkpoints_there_is_no_slider_and_a_single_run_needs_no_choice(chromium, one_stage, tmp_path):
    explorer = SemanticGapExplorer(one_stage, device=CPU)
    for page in opened(chromium, explorer.to_html(1), tmp_path / "page.html"):
        assert page.locator("input.step").count() == 0
        assert page.locator(".lines").count() == 0
        assert page.locator("select.run-of, select.classifier").count() == 0
        assert page.locator(".gap-stages figure").count() == 2
        shown = page.locator('.values [data-step="end"]').inner_text()
        assert number(shown) == pytest.approx(one_stage[0].gap.cka[0, 1].item(), abs=0.000501)
        shot(page, "one_stage")


def test_a_level_that_a_run_has_not_is_named(chromium, measured, runs, one_stage, tmp_path):
    explorer = SemanticGapExplorer([one for one in measured if one.run == runs[0]] + one_stage, device=CPU)
    for page in opened(chromium, explorer.to_html(1), tmp_path / "page.html"):
        assert page.locator('.values tr[data-run="1"] [data-step="end"]').inner_text() == "–"
        assert "has no M2" in page.locator(".gap-stages figure").nth(2).inner_text()
        cell(page, 1, "M3–M5").click()
        assert "has no" not in page.locator(".gap-stages figure").nth(2).inner_text()
        assert page.locator("svg .map[role=img]").count() == 2
        # The checkpoints of one run are no reason to show the other one's end.
        page.locator("input.step").focus()
        page.keyboard.press("Home")
        assert "no checkpoint of this step" in page.locator('.matrix[data-run="1"]').inner_text()
