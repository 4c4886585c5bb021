"""The views as widgets of a real JupyterLab, with a kernel that answers."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from augfpn.analysis.alterations import Alteration
from augfpn.engine import Run, evaluate, train
from augfpn.experiments import plan
from augfpn.visuals.interactive.controls import AlteredDetections
from tests.visuals.made_up import make_up_detections
from tests.visuals.test_detection_viewer import counts, legend, set_slider, weights_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
VIEWER = """import torch
from pathlib import Path
from augfpn.engine import Run
from augfpn.visuals.interactive import DetectionViewer
run = Run.open(Path("run"))
DetectionViewer(run, device=torch.device("cpu"), ratio_images=2)"""
CONTROLS = """from augfpn.visuals.interactive.controls import LiveControls
LiveControls(run, 2, device=torch.device("cpu"), ratio_images=2, threshold=0.0)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run and a notebook about it."""
    folder = tmp_path_factory.mktemp("lab")
    run = train(plan("table2/cs+rfa+srs", "smoke"), folder / "run", device=CPU)
    evaluate(run, CPU)
    make_up_detections(run, 0)
    notebook = new_notebook(cells=[new_code_cell(VIEWER), new_code_cell(CONTROLS)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "view.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """The address of a JupyterLab in the folder, with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += ["--expose-app-in-browser", "--ServerApp.port_retries=0"]
    home = folder / "home"
    environment = {**os.environ, "JUPYTER_TOKEN": token, "OMP_NUM_THREADS": "1"}
    environment |= {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.terminate()
        server.wait()


def test_the_widgets_react_to_the_kernel_and_to_the_reader(lab, folder, page, keep):
    address, token = lab
    run = Run(folder / "run")
    page.set_viewport_size({"width": 1400, "height": 1800})
    page.goto(f"{address}/doc/tree/view.ipynb?token={token}&reset")
    page.wait_for_function(
        "window.jupyterapp && window.jupyterapp.shell.currentWidget?.context?.isReady", timeout=60_000
    )
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel", timeout=60_000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        "document.querySelectorAll('.jp-OutputArea-output .jupyter-widgets').length > 2", timeout=120_000
    )
    viewer, live = page.locator(".view[data-image]").nth(0), page.locator(".view[data-image]").nth(1)
    viewer.wait_for(timeout=60_000)
    live.wait_for(timeout=60_000)

    # The viewer: its threshold moves without the kernel, a click asks it.
    assert legend(viewer, 0) == counts(run, 0.3, [0])
    set_slider(viewer, 70)
    assert legend(viewer, 0) == counts(run, 0.7, [0])
    set_slider(viewer, 0)
    viewer.locator(".box.detection[data-index='0'] .line").dispatch_event("click")
    viewer.locator(".fusion[data-state=complete]").wait_for(timeout=60_000)
    shown = [float(text) for text in viewer.locator(".fusion .maps .mean").all_inner_texts()]
    assert shown == pytest.approx(weights_of(run, 0)[0].mean(dim=(2, 3))[0].tolist(), abs=2e-3)
    # Its keys are its own, and not the notebook's: this one would go to another cell.
    viewer.focus()
    page.keyboard.press("ArrowDown")
    assert viewer.locator(".box.selected").get_attribute("data-index") == "1"

    # The controls: a slider that is moved changes the detections on the right, as Python says.
    altered = AlteredDetections(run, 2, device=CPU, threshold=0.0)
    before = legend(live, 1, "all")
    assert before == legend(live, 0, "all")
    altered.alter(Alteration(level_weights=(1.0, 1.0, 1.0, 0.0)))
    expected = total(altered)
    readout = page.locator(".widget-slider .widget-readout").nth(3)
    readout.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    wait_until(lambda: legend(live, 1, "all") == expected)
    assert legend(live, 0, "all") == before
    keep("jupyterlab")
    page.get_by_role("button", name="as trained").click()
    wait_until(lambda: legend(live, 1, "all") == before)


def total(view):
    """The counts of the altered side over all images, at a threshold of 0."""
    overview = view.sides[1].overview()
    names = ("correct", "duplicate", "wrong class", "badly placed", "background", "ignored")
    counted = {name: int((overview.found["outcomes"] == kind).sum()) for kind, name in enumerate(names)}
    missed = (overview.objects["found_by"] < 0) & ~overview.objects["crowd"].astype(bool)
    return {**counted, "missed": int(missed.sum())}


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_view_tells_the_reader_what_the_kernel_could_not_do(folder):
    from augfpn.visuals.interactive import DetectionViewer

    widget = DetectionViewer(Run(folder / "run"), device=CPU).widget()
    sent = []
    widget.send = lambda content: sent.append(content)
    widget._answer(widget, {"number": "1", "request": {"what": "nonsense"}}, [])
    assert sent[0]["number"] == "1"
    assert re.search("does not know 'nonsense'", sent[0]["error"])
    with pytest.raises(KeyError):
        widget._answer(widget, {"number": "2", "request": {}}, [])
    assert "KeyError" in sent[1]["error"]
