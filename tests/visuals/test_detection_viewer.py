"""The detection viewer and the ASF explorer: what they answer, and what a real browser makes of it."""

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from pycocotools import mask as rle

from augfpn.analysis.level_ratios import level_ratios_of_run
from augfpn.analysis.mistakes import found_by_which, outcome_counts
from augfpn.data.loading import open_dataset
from augfpn.engine import Run, evaluate, train
from augfpn.engine.outcomes import Outcome
from augfpn.engine.outcomes_file import Outcomes
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json
from augfpn.ops.level_assignment import assigned_levels
from augfpn.ops.resize import resize
from augfpn.structures import Images
from augfpn.visuals.interactive import DetectionViewer
from augfpn.visuals.interactive.server import ViewServer
from augfpn.visuals.interactive.view import module
from augfpn.visuals.report import write_report
from tests.visuals.made_up import make_up_detections

CPU = torch.device("cpu")
EVIL = "<img src=x onerror=alert(1)>"
KINDS = [str(kind) for kind in Outcome] + ["missed"]


def trained(path, experiment, **options):
    config = plan(experiment, "smoke", **options)
    if config.data.synthetic is not None:
        config = replace(config, data=replace(config.data, synthetic=replace(config.data.synthetic, num_val=10)))
    run = train(config, path, device=CPU)
    evaluate(run, CPU)
    return run


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """FPN and AugFPN on synthetic images; a class has a name of HTML, the last image no objects."""
    folder = tmp_path_factory.mktemp("viewer")
    runs = [trained(folder / name, id) for name, id in (("fpn", "table2/baseline"), ("augfpn", "table2/cs+rfa+srs"))]
    for seed, run in enumerate(runs):
        make_up_detections(run, seed)
        path = run.path / "categories.json"
        categories = json.loads(path.read_text())
        write_json(
            path,
            [{**category, "name": EVIL if at == 1 else category["name"]} for at, category in enumerate(categories)],
        )
    return runs


@pytest.fixture(scope="module", params=["synthetic", "coco_tiny"])
def run(request, tmp_path_factory):
    """AugFPN on synthetic images, and on photographs with COCO's 80 classes."""
    if request.param == "synthetic":
        return request.getfixturevalue("pair")[1]
    root = request.getfixturevalue("real_images") / "coco_tiny"
    made = trained(tmp_path_factory.mktemp("viewer") / "coco_tiny", "table2/cs+rfa+srs", data=str(root), steps=2)
    make_up_detections(made, 2)
    return made


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(DetectionViewer(run, device=CPU, ratio_images=3).to_html(6), encoding="utf-8")
    return path


def counts(run, threshold, images, label=None):
    """How often there is each kind, counted from the detections one by one."""
    outcomes, found = Outcomes(run), dict.fromkeys(KINDS, 0)
    for position in images:
        image = outcomes.image(position)
        for score, kind, of_label in zip(image.found.scores, image.found.outcomes, image.found.labels, strict=True):
            if score >= threshold * 100_000 and label in (None, of_label):
                found[KINDS[kind]] += 1
        for by, crowd, of_label in zip(image.objects.found_by, image.objects.crowd, image.objects.labels, strict=True):
            is_found = by >= 0 and image.found.scores[by] >= threshold * 100_000
            if not crowd and not is_found and label in (None, of_label):
                found["missed"] += 1
    return found


def legend(page, column, kind="here"):
    rows = page.locator(".legend tbody tr")
    return {
        rows.nth(at).get_attribute("data-outcome"): int(
            rows.nth(at).locator(f"td.{kind}").nth(column).inner_text().replace(",", "")
        )
        for at in range(rows.count())
    }


def set_slider(page, percent):
    page.locator(".threshold").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", percent
    )


def weights_of(run, position):
    """The fusion weights of an image's detections ``(D, 4, 7, 7)`` and FPN's levels, computed here step by step."""
    model, sample = run.load_model(CPU), open_dataset(run.config.data, "val")[position]
    images = Images.pad([resize(sample.image, *run.config.data.resized_sides)])
    factor = images.sizes[0] / torch.tensor(sample.image.shape[1:])
    rois = torch.tensor([one["roi"] for one in ranked(run, sample.image_id)])
    rois = torch.cat([rois[:, :2], rois[:, :2] + rois[:, 2:]], dim=1) * factor.flip(0).repeat(2)
    with torch.no_grad():
        weights = model.roi_pooling(model.features(images), rois[None]).weights
    return weights, assigned_levels(rois, model.finest_side)


def ranked(run, image_id):
    return sorted((one for one in run.detections if one["image_id"] == image_id), key=lambda one: -one["score"])


def test_threshold_class_and_counts_are_those_of_the_detections(run, html, offline, keep):
    page = offline(html)
    assert legend(page, 0) == counts(run, 0.3, [0])
    assert legend(page, 0, "all") == counts(run, 0.3, range(6))
    set_slider(page, 65)
    assert page.locator(".threshold-text").inner_text() == "0.65"
    assert legend(page, 0) == counts(run, 0.65, [0])
    assert legend(page, 0, "all") == counts(run, 0.65, range(6))
    drawn = page.locator(".box.detection").count()
    assert drawn == sum(one["score"] >= 0.65 for one in ranked(run, Outcomes(run).ids[0]))
    set_slider(page, 0)
    outcomes = Outcomes(run)
    label = int(outcomes.image(0).found.labels[0])
    page.locator("details.classes summary").click()
    page.get_by_role("button", name="none").click()
    assert page.locator(".box.detection").count() == 0
    page.locator(f".classes input[value='{label}']").check()
    assert legend(page, 0) == counts(run, 0, [0], label)
    assert legend(page, 0, "all") == counts(run, 0, range(6), label)
    keep(f"class_{outcomes.ids[0]}")


def test_a_clicked_detection_shows_the_weights_that_python_computes(run, html, offline, keep):
    page = offline(html)
    set_slider(page, 0)
    page.locator(".view").focus()
    weights, levels = weights_of(run, 0)
    means = weights.mean(dim=(2, 3))
    ratios = level_ratios_of_run(run, CPU, num_images=3)
    for index in (0, 1):
        page.locator(f".box.detection[data-index='{index}'] .line").dispatch_event("click")
        page.wait_for_selector(".fusion[data-state=complete]")
        shown = [float(text) for text in page.locator(".fusion .maps .mean").all_inner_texts()]
        np.testing.assert_allclose(shown, means[index], atol=2e-3)
        level = int(levels[index])
        assert page.locator(".fusion .heuristic").inner_text() == f"FPN would take it from P{level + 2} alone"
        assert page.locator(".fusion figure:has(.note)").get_attribute("data-level") == f"P{level + 2}"
        rows = page.locator(".shares tbody tr").all()
        table = [
            [float(text) for text in row.locator(".number").all_inner_texts()] for row in rows if ratios.counts[level]
        ]
        if table:
            np.testing.assert_allclose([row[0] for row in table], means[index] / means[index].sum(), atol=2e-3)
            np.testing.assert_allclose([row[1] for row in table], ratios.shares[level], atol=1e-3)
    # The cell in the second row and the last column of P3.
    crop = page.locator(".fusion figure[data-level=P3] svg")
    size = crop.bounding_box()
    crop.hover(position={"x": size["width"] * 6.5 / 7, "y": size["height"] * 1.5 / 7})
    said = page.locator(".fusion .readout").inner_text()
    assert said.startswith("P3, row 2, column 7: ")
    assert float(said.split()[-1]) == pytest.approx(float(weights[1, 1, 1, 6]), abs=0.006)
    keep(f"asf_{Outcomes(run).ids[0]}")
    # The weights of the contexts over C5.
    page.locator("summary", has_text="Contexts").click()
    page.wait_for_selector(".contexts figure")
    sample = open_dataset(run.config.data, "val")[0]
    images = Images.pad([resize(sample.image, *run.config.data.resized_sides)])
    model = run.load_model(CPU)
    with torch.no_grad():
        c5 = model.backbone(model.preprocessing.normalise(images))[-1]
        contexts = model.pyramid.residual_feature_augmentation(c5).weights[0]
    height, width = (-(-int(side) // 32) for side in images.sizes[0])
    shown = [float(text) for text in page.locator(".contexts .mean").all_inner_texts()]
    np.testing.assert_allclose(shown, contexts[:, :height, :width].mean(dim=(1, 2)), atol=2e-3)


def test_what_is_pointed_at_says_what_it_is(run, html, offline):
    page = offline(html)
    set_slider(page, 0)
    outcomes = Outcomes(run)
    image, names = outcomes.image(0), [category.name for category in run.categories]
    index = int(np.argmax(image.found.outcomes == Outcome.CORRECT))
    page.locator(f".box.detection[data-index='{index}']").dispatch_event("pointerenter")
    of_object = int(image.found.of_object[index])
    label = names[image.found.labels[index] - 1]
    score, iou = image.found.scores[index] / 100_000, image.found.ious[index]
    said = page.locator("p.readout").first.inner_text()
    assert said.startswith(f"✓ {label} {score:.3f}: correct, matched with an object of its class, ")
    assert said.endswith(f", IoU {iou:.2f} with {label} ({of_object + 1})")
    assert page.locator(".over .matched").count() == 1


def test_the_keyboard_reaches_images_detections_and_the_threshold(run, html, offline):
    page = offline(html)
    outcomes = Outcomes(run)
    page.locator(".view").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f".view[data-image='{outcomes.names[1]}']")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f".view[data-image='{outcomes.names[0]}']")
    page.keyboard.press("+")
    assert page.locator(".threshold-text").inner_text() == "0.35"
    for _ in range(7):
        page.keyboard.press("-")
    assert page.locator(".threshold-text").inner_text() == "0.00"
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".fusion[data-state=complete]")
    assert page.locator(".box.selected").get_attribute("data-index") == "0"
    page.keyboard.press("Escape")
    assert page.locator(".box.selected").count() == 0
    # A control has its own keys.
    page.locator(".threshold").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".threshold-text").inner_text() == "0.01"
    assert page.locator(".goto").input_value() == "1"


def test_images_in_order_of_what_went_wrong_and_only_those_with_something(run, html, offline):
    page = offline(html)
    outcomes = Outcomes(run)
    missed = [counts(run, 0.3, [image])["missed"] for image in range(6)]
    page.locator(".order").select_option("missed 0")
    first = outcomes.names[int(np.argmax(missed))]
    page.wait_for_selector(f".view[data-image='{first}']")
    for name in KINDS:
        if name != "duplicate":
            page.locator(f".legend input[name='{name}']").uncheck()
    page.locator("input[name=only-with]").check()
    num = sum(counts(run, 0.3, [image])["duplicate"] > 0 for image in range(6))
    text = page.locator(".place").inner_text()
    assert text.startswith(f"of {num} (") if num else text == "no image has any of these"


def test_zooming_keeps_labels_readable(run, html, offline):
    page = offline(html)
    set_slider(page, 0)
    size = "text => text.getBoundingClientRect().height"
    before = page.locator(".texts text").first.evaluate(size)
    page.get_by_role("button", name="zoom in").click()
    assert page.locator(".texts text").first.evaluate(size) == pytest.approx(before, rel=0.05)
    whole = page.locator("svg.stage").get_attribute("viewBox")
    page.keyboard.press("0")
    assert page.locator("svg.stage").get_attribute("viewBox") != whole


@pytest.fixture(scope="module")
def compared(pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "compared.html"
    path.write_text(DetectionViewer(*pair, device=CPU, ratio_images=2).to_html(4), encoding="utf-8")
    return path


def test_two_runs_side_by_side_with_their_differences(pair, compared, offline, keep):
    page = offline(compared)
    assert [legend(page, run) for run in (0, 1)] == [counts(run, 0.3, [0]) for run in pair]
    one, other = (Outcomes(run).image(0) for run in pair)
    found = [
        (image.objects.found_by >= 0) & (image.found.scores[image.objects.found_by] >= 30_000) for image in (one, other)
    ]
    only = [int((mine & ~others & ~one.objects.crowd).sum()) for mine, others in (found, found[::-1])]
    for run in (0, 1):
        marked = page.locator(f".detection.different[data-run='{run}'][data-outcome=correct]").count()
        assert marked == only[run]
        assert page.locator(f".missed.different[data-run='{run}']").count() == only[1 - run]
    keep("compared")
    page.locator("input[name=only-different]").check()
    assert page.locator(".detection").count() == page.locator(".detection.different").count()
    page.locator(".order").select_option("different")
    page.wait_for_selector(".view[data-image]")


def test_names_are_text_and_never_markup(pair, compared, offline):
    page = offline(compared)
    set_slider(page, 0)
    page.locator("details.classes summary").click()
    assert page.locator(".classes").get_by_text(EVIL, exact=True).count() == 1
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.locator(".view").focus()
    texts = []
    for _ in range(4):
        texts += page.locator(".texts text").all_text_contents() + page.locator(".list td").all_inner_texts()
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(50)
    assert any(EVIL in text for text in texts)
    assert page.locator("img").count() == 0


def test_masks_are_drawn_as_they_are(tmp_path, offline):
    run = trained(tmp_path / "mask", "table1/mask_rcnn_r50_fpn_1x")
    truth = open_dataset(run.config.data, "val").ground_truth()
    results = [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": one["bbox"],
            "score": 0.9,
            "roi": one["bbox"],
        }
        | {"segmentation": one["segmentation"]}
        for one in truth["annotations"]
    ]
    write_json(run.path / "detections.json", results)
    position = max(range(len(truth["images"])), key=lambda at: sum(one["image_id"] == at + 1 for one in results))
    (tmp_path / "page.html").write_text(DetectionViewer(run, device=CPU).to_html(position + 1), encoding="utf-8")
    page = offline(tmp_path / "page.html")
    page.locator(".goto").fill(str(position + 1))
    page.locator(".goto").press("Enter")
    page.wait_for_selector(f".view[data-image='{truth['images'][position]['file_name']}']")
    covered = page.locator("image.masks").evaluate(
        """async (image) => {
          const picture = new Image();
          picture.src = image.getAttribute("href");
          await picture.decode();
          const canvas = document.createElement("canvas");
          Object.assign(canvas, { width: picture.width, height: picture.height });
          const context = canvas.getContext("2d");
          context.drawImage(picture, 0, 0);
          const { data } = context.getImageData(0, 0, picture.width, picture.height);
          return Array.from(data).filter((_, at) => at % 4 === 3).map((value) => value > 0);
        }"""
    )
    masks = [one["segmentation"] for one in results if one["image_id"] == position + 1]
    np.testing.assert_array_equal(np.array(covered), rle.decode(rle.merge(masks)).astype(bool).flatten())


def test_a_notebook_without_scripts_shows_a_picture_and_the_page_loads_nothing(pair):
    forms = DetectionViewer(pair[0], device=CPU, ratio_images=1)._repr_mimebundle_()
    assert forms.keys() == {"application/vnd.jupyter.widget-view+json", "text/html", "image/jpeg", "text/plain"}
    picture = '<div class="augfpn-view"><img src="data:image/jpeg;base64,[^"]+" alt="DetectionViewer of FPN'
    assert re.search(picture, forms["text/html"])
    text = module()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in text
    assert "</script" not in text


def test_in_the_exported_report_the_view_stays_interactive(pair, offline, keep):
    folder = pair[0].path.parent
    forms = DetectionViewer(*pair, device=CPU, ratio_images=1)._repr_mimebundle_()
    shown = new_output("display_data", {kind: form for kind, form in forms.items() if "widget" not in kind})
    notebook = new_notebook(cells=[new_code_cell("DetectionViewer(*runs)", outputs=[shown])])
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "detection_viewer.ipynb")
    write_report([folder], folder.parent / "report", CPU)
    page = offline(folder.parent / "report" / "notebooks" / "detection_viewer.html")
    # Eight of the ten images are kept.
    assert page.locator(".place").inner_text().startswith("of 8 (10 in the data)")
    set_slider(page, 0)
    assert legend(page, 1) == counts(pair[1], 0, [0])
    page.locator(".box.detection[data-run='1'][data-index='0'] .line").dispatch_event("click")
    page.wait_for_selector(".fusion[data-state=complete]")
    shown = [float(text) for text in page.locator(".fusion .maps .mean").all_inner_texts()]
    np.testing.assert_allclose(shown, weights_of(pair[1], 0)[0].mean(dim=(2, 3))[0], atol=2e-3)
    keep("report")


def test_mistakes_of_a_run_and_objects_that_only_one_finds(pair):
    for run in pair:
        assert outcome_counts(run, 0.3).to_dict() == counts(run, 0.3, range(10))
    found = found_by_which(*pair, 0.3)
    outcomes = [Outcomes(run) for run in pair]
    expected = dict.fromkeys(found.index, 0)
    for position in range(10):
        one, other = (of_run.image(position) for of_run in outcomes)
        for at in np.flatnonzero(~one.objects.crowd):
            by = [image.objects.found_by[at] for image in (one, other)]
            has = [b >= 0 and image.found.scores[b] >= 30_000 for b, image in zip(by, (one, other), strict=True)]
            expected[
                {(1, 1): "both", (1, 0): "only the first", (0, 1): "only the second", (0, 0): "neither"}[
                    (*map(int, has),)
                ]
            ] += 1
    assert found.to_dict() == expected
    assert min(expected.values()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: shutil.copytree(run.path, run.path.parent / "a"), "shows one run, or two side by side, not 3"),
        (lambda run: None, "has no detections.json yet"),
    ],
)
def test_runs_that_cannot_be_shown_are_refused(pair, tmp_path, change, message):
    if change(pair[0]) is None:
        other = Run(shutil.copytree(pair[0].path, tmp_path / "run"))
        for name in ("detections.json", "outcomes.safetensors"):
            (other.path / name).unlink()
        runs = [other]
    else:
        runs = [pair[0]] * 3
    with pytest.raises(UserError, match=message):
        DetectionViewer(*runs, device=CPU)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"what": "image", "image": 10}, "no image 10: they are counted from 0 to 9"),
        ({"what": "image"}, "no image None"),
        ({"what": "fusion", "image": 0, "run": -1}, "no run -1"),
        ({"what": "files"}, "does not know 'files'"),
    ],
)
def test_requests_for_what_is_not_there_are_refused(pair, request_, message):
    with pytest.raises(UserError, match=message):
        DetectionViewer(pair[0], device=CPU).answer(request_)


def test_runs_of_other_images_are_not_compared(pair, tmp_path):
    other = train(plan("table2/baseline", "smoke"), tmp_path / "other", device=CPU)
    evaluate(other, CPU)
    write_json(other.path / "categories.json", json.loads((pair[0].path / "categories.json").read_text()))
    with pytest.raises(UserError, match="were evaluated on different images"):
        DetectionViewer(pair[0], other, device=CPU)


def test_one_stage_detectors_and_older_evaluations_say_why_there_are_no_weights(tmp_path, pair):
    run = trained(tmp_path / "fcos", "table1/fcos_r50_augfpn_1x")
    answer = DetectionViewer(run, device=CPU).answer({"what": "fusion", "image": 0, "run": 0})
    assert "no RoIs" in answer["why"]
    assert answer["contexts"]["names"] == ["α 0.1: 1 × 1", "α 0.2: 1 × 1", "α 0.3: 1 × 1"]
    older = Run(shutil.copytree(pair[1].path, tmp_path / "older"))
    write_json(
        older.path / "detections.json", [{k: v for k, v in one.items() if k != "roi"} for one in older.detections]
    )
    answer = DetectionViewer(older, device=CPU).answer({"what": "fusion", "image": 0, "run": 0})
    assert "evaluate it again" in answer["why"]


def test_an_image_that_cannot_be_read_is_said_so_and_the_others_are_shown(tmp_path, page):
    folder = tmp_path / "data"
    synthetic = plan("table2/baseline", "smoke").data.synthetic
    for split in ("train", "val"):
        open_dataset(replace(plan("table2/baseline", "smoke").data, synthetic=synthetic), split).write(folder, split)
    run = trained(tmp_path / "run", "table2/baseline", data=str(folder))
    files = sorted((folder / "val2017").iterdir())
    Image.new("RGB", (5, 5)).save(files[0])
    files[0].write_bytes(files[0].read_bytes()[:20])
    with ViewServer(DetectionViewer(run, device=CPU)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.link)
        page.wait_for_selector(".fault:not([hidden])")
        assert files[0].name in page.locator(".fault").first.inner_text()
        page.locator(".next").click()
        page.wait_for_selector(f".view[data-image='{files[1].name}']")
        assert page.locator(".fault:not([hidden])").count() == 0
        server.shutdown()
    Image.new("RGB", (5, 7)).save(files[2])
    with pytest.raises(UserError, match="the image is 5 × 7 pixels, but annotated as 64 × 64"):
        DetectionViewer(run, device=CPU).answer({"what": "image", "image": 2})
    # The same in a page that holds the answers.
    (tmp_path / "page.html").write_text(DetectionViewer(run, device=CPU).to_html(2), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".fault:not([hidden])")
    assert files[0].name in page.locator(".fault").first.inner_text()


def test_the_command_serves_the_same_view_to_who_has_its_token(pair, page):
    with ViewServer(DetectionViewer(*pair, device=CPU, ratio_images=1)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.link)
        page.wait_for_selector(".view[data-image]")
        set_slider(page, 0)
        page.locator(".view").focus()
        page.keyboard.press("ArrowDown")
        page.wait_for_selector(".fusion[data-state=complete]")
        assert {url.split("?")[0] for url in page.requests if not url.startswith("data:")} <= {
            f"http://127.0.0.1:{server.server_port}{path}" for path in ("/", "/answer", "/favicon.ico")
        }
        for address, body in (
            (f"http://127.0.0.1:{server.server_port}/", None),
            (f"http://127.0.0.1:{server.server_port}/answer", b"{}"),
        ):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(address, data=body))
        server.shutdown()


@pytest.mark.slow
def test_many_images_open_at_once_and_change_at_once(pair, tmp_path, page):
    """5,000 images with 100 detections each: opened in less than 2 s, an image changed in less than 200 ms."""
    run = Run(shutil.copytree(pair[1].path, tmp_path / "large"))
    config = replace(run.config.data, synthetic=replace(run.config.data.synthetic, num_val=5000))
    (run.path / "run.json").write_text(replace(run.config, data=config).to_json())
    random = np.random.default_rng(0)
    truth = open_dataset(config, "val")
    categories = [category.id for category in truth.categories]
    boxes = random.uniform(2, 30, (5000, 100, 4)).round(2)
    scores = np.sort(random.random((5000, 100)).round(5), axis=1)[:, ::-1]
    write_json(
        run.path / "detections.json",
        [
            {"image_id": i + 1, "category_id": categories[j % 6], "bbox": box, "score": score, "roi": box}
            for i, (of_image, with_scores) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True))
            for j, (box, score) in enumerate(zip(of_image, with_scores, strict=True))
        ],
    )
    DetectionViewer(run, device=CPU)  # makes the file, as the evaluation does
    started = time.perf_counter()
    view = DetectionViewer(run, device=CPU)
    with ViewServer(view) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.link)
        page.wait_for_selector(".view[data-image]")
        assert time.perf_counter() - started < 2
        assert page.locator(".place").inner_text().startswith("of 5000: ")
        times = []
        page.locator(".view").focus()
        for number in (2000, 17, 4999):
            page.locator(".goto").fill(str(number))
            started = time.perf_counter()
            page.locator(".goto").press("Enter")
            page.wait_for_selector(f".view[data-image='{number:012d}.png']")
            times.append(time.perf_counter() - started)
        assert sorted(times)[1] < 0.2, times
        asked = len([url for url in page.requests if url.endswith("/answer")])
        set_slider(page, 80)
        assert page.locator(".threshold-text").inner_text() == "0.80"
        assert len([url for url in page.requests if url.endswith("/answer")]) == asked
        server.shutdown()


def test_a_page_of_fifty_photographs_is_smaller_than_15_megabytes(real_images, tmp_path):
    run = trained(tmp_path / "run", "table2/cs+rfa+srs", data=str(real_images / "coco_tiny"), steps=1)
    make_up_detections(run, 0)
    assert len(DetectionViewer(run, device=CPU, ratio_images=1).to_html(50).encode()) < 15e6
