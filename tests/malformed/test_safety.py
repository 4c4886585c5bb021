"""What the package never does with what others hand in; inputs of each kind are in the other modules."""

import ast
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import augfpn
from augfpn.data.coco_format import DataError
from augfpn.experiments.config import DataConfig
from augfpn.visuals.drawing import draw_detections
from augfpn.visuals.interactive.pictures import Pictures
from augfpn.visuals.interactive.server import ViewServer

ROOT = Path(__file__).parents[2]
MODULES = sorted([*Path(augfpn.__file__).parent.rglob("*.py"), *(ROOT / "pipelines").glob("*.py")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Calls that run what is in a file or a name, or that write where an archive says.
FORBIDDEN = re.compile(
    r"(^|\.)(eval|exec|compile|system|popen|getoutput|extractall|unpack_archive)$"
    r"|^(c?[pP]ickle|dill|joblib|shelve|marshal|cloudpickle)\.|^yaml\.(load|unsafe_load|full_load)"
)
# Methods of models, and patterns, are called likewise.
HARMLESS = {"model.eval", "re.compile", "torch.compile"}


def calls(source):
    """The calls in a source, by the names that they are written with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}, node


def sources():
    for path in MODULES:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def faults(source):
    for name, options, node in calls(source):
        # Of a method, the object may be anything.
        is_model = name.endswith(".eval") and not node.args
        if FORBIDDEN.search(name) and not is_model and name not in HARMLESS:
            yield f"{name} runs or unpacks what it is given"
        if name.endswith("torch.load") and options.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name.startswith(("np.load", "numpy.load")) and options.get("allow_pickle", "False") != "False":
            yield "numpy.load of pickles"
        if options.get("shell", "False") != "False":
            yield f"{name} gives words to a shell"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*one, id=one[0]) for one in sources()])
def test_no_source_runs_or_unpacks_what_others_made(name, source):
    assert list(faults(source)) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)", "pickle.loads(text)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)", "os.system(name)", "os.popen(name)", "eval(text)", "exec(text)",
        "subprocess.run(name, shell=True)", "subprocess.Popen(f'ls {name}', shell=True)", "archive.extractall(folder)",
        "shutil.unpack_archive(path)", "yaml.load(text)", "joblib.load(path)",
    ],
)  # fmt: skip
def test_what_is_looked_for_would_be_found(line):
    assert len(list(faults(line))) == 1


def test_the_server_is_for_this_machine_and_whoever_has_the_token():
    assert '"127.0.0.1"' in inspect.getsource(ViewServer.__init__)
    with ViewServer(SimpleNamespace()) as one, ViewServer(SimpleNamespace()) as other:
        assert one.server_address[0] == "127.0.0.1"
        assert len(one.token) >= 20
        assert one.token != other.token


OUTSIDE = ["../secret.png", "/etc/hostname", "below/../../secret.png", "{root}/secret.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_viewer_shows_no_file_outside_the_images(tmp_path, name):
    (tmp_path / "images" / "below").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    outcomes = SimpleNamespace(folder=tmp_path / "images", names=[name.format(root=tmp_path)], sizes=[(30, 40)])
    with pytest.raises(DataError, match="leads out of the folder of the images"):
        Pictures(DataConfig(root=str(tmp_path)), outcomes)[0]


def test_a_line_of_pixels_is_not_enlarged_beyond_the_memory():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    line, small = (torch.zeros(3, *size, dtype=torch.uint8) for size in ((1, 60_000), (30, 40)))
    assert draw_detections(line, nothing, ["train"]).size == (60_000, 1)
    assert min(draw_detections(small, nothing, ["train"]).size) >= 384
