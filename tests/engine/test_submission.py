import contextlib
import io
import json
import zipfile

import pytest
import torch
from pycocotools.coco import COCO

from augfpn.data.loading import open_dataset
from augfpn.engine import evaluate, train
from augfpn.engine.submission import write_submission
from augfpn.errors import UserError
from augfpn.experiments import plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """The smoke scale's validation images as a folder, and a list of them without annotations."""
    root = tmp_path_factory.mktemp("coco")
    open_dataset(plan("table2/baseline", "smoke").data, "val").write(root, "val")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    info = root / "image_info_test-dev2017.json"
    info.write_text(json.dumps({name: content[name] for name in ("images", "categories")}))
    return root / "val2017", info, content


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    run = train(plan("table1/mask_rcnn_r50_fpn_1x", "smoke"), tmp_path_factory.mktemp("run") / "m", device=CPU)
    evaluate(run, CPU)
    return run


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_archive_holds_what_the_evaluation_found_in_the_servers_format(coco, mask_rcnn, tmp_path, kind):
    images, info, content = coco
    archive = write_submission(mask_rcnn, images, info, "ours-1", tmp_path / "new", CPU, kind=kind)
    assert archive.name == "detections_test-dev2017_ours-1_results.zip"
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == ["detections_test-dev2017_ours-1_results.json"]
        results = json.loads(file.read(file.namelist()[0]))
    fields = {"image_id", "category_id", "score", {"bbox": "bbox", "segm": "segmentation"}[kind]}
    assert results
    assert all(result.keys() == fields for result in results)
    # The same images are found under the ids that the folder gives them.
    expected = [result["score"] for result in mask_rcnn.detections]
    assert sorted(result["score"] for result in results) == pytest.approx(sorted(expected), abs=2e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        assert len(truth.loadRes(results).anns) == len(results)


def test_what_the_server_would_refuse_is_refused(coco, mask_rcnn, tmp_path):
    images, info, content = coco
    with pytest.raises(UserError, match="letters, digits"):
        write_submission(mask_rcnn, images, info, "../x", tmp_path, CPU)
    boxes_only = train(plan("table2/baseline", "smoke"), tmp_path / "boxes", device=CPU)
    with pytest.raises(UserError, match="detects boxes only"):
        write_submission(boxes_only, images, info, "x", tmp_path, CPU, kind="segm")
    other = tmp_path / "other.json"
    categories = [{**category, "id": category["id"] + 1} for category in content["categories"]]
    other.write_text(json.dumps({"images": content["images"], "categories": categories}))
    with pytest.raises(UserError, match=r"classes are not those of .*other\.json: 1 disk"):
        write_submission(mask_rcnn, images, other, "x", tmp_path, CPU)
    assert not list(tmp_path.glob("*.zip"))
