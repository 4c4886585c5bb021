"""Memory stays as it is, however long the training and however many annotations."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

# Of 4 KiB a step, a training of the paper's length (90,000 steps) would gather 350 MB. A batch's images are six times
# as large here, so to keep no more than one batch's images in six is seen.
BYTES_A_STEP = 4096
WARM_UP = 0.2
STEPS = 2000
NUM_IMAGES, BOXES_AN_IMAGE, SIDE = 20_000, 26, 64

TRAIN = """
import ctypes
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from augfpn import engine
from augfpn.experiments import plan

data, out, steps, leak = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "leak"
config = plan("table2/cs+rfa+srs", "smoke", data=str(data), steps=steps)
training = replace(config.training, num_workers=2, log_every=10, checkpoint_every=200)
module = sys.modules["augfpn.engine.train"]
original, kept, numbers = module.training_step, [], count()

def training_step(model, optimizer, batch, *more):
    if next(numbers) == 0:
        # What reading the annotations left free in the heap: a leak would fill it first, and not be seen for long.
        ctypes.CDLL(None).malloc_trim(0)
    if leak:
        kept.append(batch.images.pixels.clone())
    return original(model, optimizer, batch, *more)

module.training_step = training_step
engine.train(replace(config, training=training), out, device=torch.device("cpu"))
"""


def write_data(root):
    """Many annotations, and many names of a few image files."""
    random = np.random.default_rng(0)
    for split, num in (("train", NUM_IMAGES), ("val", 2)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for index in range(num):
            path = folder / f"{index:012d}.jpg"
            if index < 8:
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
            else:
                os.link(folder / f"{index % 8:012d}.jpg", path)
            images.append({"id": index, "file_name": path.name, "width": SIDE, "height": SIDE})
            boxes = np.concatenate(
                [random.uniform(0, 40, (BOXES_AN_IMAGE, 2)), random.uniform(4, 24, (BOXES_AN_IMAGE, 2))], 1
            )
            annotations += [
                {"id": len(annotations) + n, "image_id": index, "category_id": 1 + n % 80, "bbox": box}
                for n, box in enumerate(boxes.round(2).tolist(), start=1)
            ]
        categories = [{"id": id, "name": f"class {id}"} for id in range(1, 81)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def memory_of(pid):
    """PSS and RSS of a process in bytes, without the pages of files.

    Those are libraries' code, of which PSS has a share that depends on what else runs on the machine.
    """
    fields = {}
    for name in ("smaps_rollup", "status"):
        with open(f"/proc/{pid}/{name}") as file:
            fields |= {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.endswith("kB\n")}
    return fields["Pss_Anon"] + fields["Pss_Shmem"], fields["RssAnon"] + fields["RssShmem"]


def tree_of(pid, name="training"):
    """A process and what it started, by process id: the data loader's workers are children of a server of its own."""
    found = {pid: name}
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for number, child in enumerate(file.read().split()):
            found |= tree_of(int(child), f"{name}/{number}")
    return found


def watch(root, out, steps, leak="none"):
    """Trains, and returns for each process its name, and the (step, PSS, RSS) that were seen from the first step on."""
    # Python's own allocator, too, would fill what is free before it grows.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-c", TRAIN, str(root), str(out), str(steps), leak]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen, history = {}, out / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.5)
        if not history.is_file():
            continue
        step = 10 * history.read_bytes().count(b"\n")
        try:
            for pid, name in tree_of(process.pid).items():
                seen.setdefault(name, []).append((step, *memory_of(pid)))
        except (FileNotFoundError, ProcessLookupError, PermissionError, KeyError):
            continue  # one of them ended just now
    assert process.returncode == 0, process.stderr.read().decode()[-2000:]
    return {name: np.array(samples) for name, samples in seen.items()}


def growth(samples):
    """Bytes a step that PSS and RSS grow by after the warm-up, on the line nearest to the samples."""
    steps = samples[:, 0]
    later = samples[steps >= WARM_UP * steps.max()]
    return np.polyfit(later[:, 0], later[:, 1:], 1)[0]


def table(seen):
    lines = [f"{'':14}{'PSS, MB, first to last':>26}{'RSS':>16}{'bytes a step: PSS':>20}{'RSS':>8}"]
    for name, samples in seen.items():
        first, last = samples[samples[:, 0] >= WARM_UP * samples[:, 0].max()][[0, -1], 1:] / 1e6
        pss, rss = growth(samples)
        lines.append(
            f"{name:14}{first[0]:>16.1f} → {last[0]:.1f}{first[1]:>12.1f} → {last[1]:.1f}{pss:>12.0f}{rss:>10.0f}"
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("many") / "data"
    write_data(root)
    return root


@pytest.mark.slow
def test_memory_of_the_training_and_its_workers_does_not_grow(root, tmp_path):
    seen = watch(root, tmp_path / "run", STEPS)
    print(table(seen))
    workers = [name for name in seen if name.count("/") == 2]
    assert len(workers) == 2
    for name in ("training", *workers):
        assert len(seen[name]) > 50
        assert (growth(seen[name]) < BYTES_A_STEP).all(), f"{name} grows:\n{table(seen)}"


@pytest.mark.slow
def test_a_leak_would_be_seen(root, tmp_path):
    seen = watch(root, tmp_path / "run", STEPS // 5, "leak")
    print(table(seen))
    # A batch's images are kept at each step.
    images = 2 * 3 * SIDE * SIDE
    assert (growth(seen["training"]) > BYTES_A_STEP).all()
    assert growth(seen["training"]) == pytest.approx([images, images], rel=0.5)
