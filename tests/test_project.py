"""The files around the package agree with one another."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower()


def all_requirements():
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    return {name_of(requirement) for requirement in [*PROJECT["dependencies"], *extras]} - {"augfpn"}


def test_the_conda_environment_installs_the_project_and_its_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python == f"python {PROJECT['requires-python']}"
    assert pip == "pip"
    [requirement] = packages["pip"]
    extra = re.fullmatch(r"--editable \.\[(\w+)\]", requirement).group(1)
    assert extra in PROJECT["optional-dependencies"]


def test_every_requirement_is_pinned_in_the_constraints_and_within_its_range():
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    assert all_requirements() <= pinned.keys()
    for requirement in PROJECT["dependencies"]:
        name, least = requirement.split(">=")
        numbers = [[int(part) for part in re.findall(r"\d+", version)] for version in (pinned[name], least)]
        assert numbers[0] >= numbers[1], requirement


def test_the_packages_that_the_project_is_about_are_required():
    assert {
        "torch",
        "torchvision",
        "jupyterlab",
        "papermill",
        "pycocotools",
        "seaborn",
        "ipywidgets",
    } <= all_requirements()


def test_no_large_file_is_in_the_repository():
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [file for file in files if file.exists() and file.stat().st_size > 500_000] == []


def test_the_readmes_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= commands <= targets
