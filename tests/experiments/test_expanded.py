"""The expanded form of every experiment at every scale, kept as text in `expanded/`, a file a scale.

Baselines stand there in full; every other row with what it has in another way than its baseline, which is the ablation.
After a change that is meant: `python tests/experiments/test_expanded.py` writes the files anew; read the difference.
"""

import json
from pathlib import Path

import pytest

from augfpn.experiments import EXPERIMENTS, SCALES, plan
from augfpn.experiments.scales import run_as

FOLDER = Path(__file__).parent / "expanded"


def flat(value, name=""):
    """``{"model.channels": "64", …}``"""
    if isinstance(value, dict):
        return {key: text for part in value for key, text in flat(value[part], f"{name}.{part}".lstrip(".")).items()}
    return {name: json.dumps(value)}


def expanded(id, scale):
    # A relative folder, so that the text is the same everywhere.
    config = json.loads(plan(id, scale, data=None if SCALES[scale].data.synthetic else "coco").to_json())
    if config["data"]["root"] is not None:
        config["data"]["root"] = "coco"
    return flat({name: value for name, value in config.items() if name not in ("experiment", "scale", "seed")})


def text_of(scale):
    blocks = []
    for id, experiment in EXPERIMENTS.items():
        own, run = expanded(id, scale), run_as(id, scale)
        if run != id:
            blocks.append(f"[{id}]\nrun as {run}")
            continue
        if experiment.baseline == id:
            lines = own
            title = f"[{id}]"
        else:
            baseline = expanded(experiment.baseline, scale)
            lines = {name: text for name, text in own.items() if baseline.get(name) != text}
            # What the baseline has and the row has not: also "null" where the row has a component.
            lines |= {name: "not there" for name in baseline.keys() - own.keys() if baseline[name] != "null"}
            title = f"[{id}]\nas {experiment.baseline}, but:"
        blocks.append("\n".join([title, *(f"{name} = {text}" for name, text in lines.items())]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("scale", SCALES)
def test_the_expanded_experiments_are_those_that_are_kept(scale):
    kept = (FOLDER / f"{scale}.txt").read_text(encoding="utf-8")
    assert text_of(scale) == kept, f"an experiment changed; if it was meant to, see {Path(__file__).name}"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for scale in SCALES:
        (FOLDER / f"{scale}.txt").write_text(text_of(scale), encoding="utf-8")
