"""Each of the four detectors from training to the report, at the smoke scale."""

import json

import pytest
import torch

from augfpn.data.loading import open_dataset
from augfpn.engine import evaluate, predict, train
from augfpn.engine.evaluate import FIGURES, MASK_FIGURES
from augfpn.engine.predict import as_coco
from augfpn.experiments import plan
from augfpn.visuals.report import write_report

CPU = torch.device("cpu")


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_a_run_is_trained_evaluated_used_and_reported(tmp_path, detector):
    has_masks = detector == "mask_rcnn"
    runs = []
    for neck in ("fpn", "augfpn"):
        run = train(plan(f"table1/{detector}_r50_{neck}_1x", "smoke"), tmp_path / neck, device=CPU)
        metrics = evaluate(run, CPU)
        assert set(FIGURES) <= metrics.keys()
        assert (set(MASK_FIGURES) <= metrics.keys()) == has_masks
        assert run.history()[-1]["step"] == run.config.training.steps
        runs.append(run)

    open_dataset(plan("table2/baseline", "smoke").data, "val").write(tmp_path / "pictures", "val")
    pictures = sorted((tmp_path / "pictures" / "val2017").iterdir())
    predictions = predict(runs[-1], pictures[:2], CPU)
    content = json.loads(json.dumps(as_coco(predictions, runs[-1])))
    assert len(content["images"]) == 2
    assert all(("segmentation" in annotation) == has_masks for annotation in content["annotations"])

    page = write_report([tmp_path], tmp_path / "report", CPU).read_text(encoding="utf-8")
    assert "mask AP" in page
    assert ("Which levels RoIs are made of" in page) == (detector in ("faster_rcnn", "mask_rcnn"))
