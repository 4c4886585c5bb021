"""The ``augfpn`` command."""

from __future__ import annotations

import os
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from augfpn.errors import REQUEUE, Interrupted, UserError
from augfpn.experiments import EXPERIMENTS, SCALES, find_experiment, plan
from augfpn.experiments.config import differences
from augfpn.experiments.listing import Result, as_text, entries
from augfpn.experiments.paper import PAPER, TABLES, unknown
from augfpn.experiments.rows import QuotedRow
from augfpn.experiments.scales import default_run_path

if TYPE_CHECKING:
    import torch

# Commands import what they need when they run: `augfpn --help` should not wait for torch.

app = typer.Typer(
    help="AugFPN: improving multi-scale feature learning for object detection (CVPR 2020).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ExperimentId = Annotated[str, typer.Argument(help="An id from `augfpn list`, such as table2/cs+rfa+srs.")]
ScaleName = Annotated[str, typer.Option(help=f"One of {', '.join(SCALES)}.")]
JsonFile = Annotated[Optional[Path], typer.Option("--out", help="A file for all numbers, with their provenance.")]  # noqa: UP045
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1 …; by default a GPU where there is one.")]  # noqa: UP045

Devices = Annotated[
    int, typer.Option(min=1, help="GPUs, or processes on a CPU, to share the images; torchrun starts them.")
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Processes that load images, a device; 0: only the one that uses them."),
]
Timeout = Annotated[
    int, typer.Option(min=1, max=10**6, help="Seconds after which a device that does not answer is an error.")
]


@app.command()
def train(
    experiment: ExperimentId,
    scale: ScaleName = "micro",
    out: Annotated[Optional[Path], typer.Option(help="The run directory.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Of weights, order, sampling and augmentation.")] = 0,
    data: Annotated[
        str | None, typer.Option(help="A folder in COCO's layout in the place of synthetic images.")
    ] = None,
    overfit: Annotated[
        int | None, typer.Option(help="Train and evaluate on the first so many training images.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse data with faulty objects rather than drop them.")] = False,
    steps: Annotated[Optional[int], typer.Option(help="Train for so many steps in the place of the scale's.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(help="Images a step; the learning rate follows.")] = None,  # noqa: UP045
    learning_rate: Annotated[float | None, typer.Option(help="The highest rate, in the place of the scale's.")] = None,
    backbone_weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the backbone starts from: a file, an http(s) URL, or a tag of timm's."),
    ] = None,
    backbone_style: Annotated[
        Optional[Literal["pytorch", "caffe"]],  # noqa: UP045
        typer.Option(help="What those weights are for: caffe for Detectron's and mmcv's *_caffe files."),
    ] = None,
    precision: Annotated[
        Optional[Literal["fp32", "bf16"]],  # noqa: UP045
        typer.Option(help="bf16: mixed precision, with weights in fp32."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run was.")] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option(help="Keep all of them, not just the last two and the best.")
    ] = False,
    evaluate_every: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Evaluate after so many steps, too, and keep the best checkpoint."),
    ] = None,
    devices: Devices = 1,
    accumulate: Annotated[
        int,
        typer.Option(min=1, help="Gradients of so many parts of a batch, one after the other, where memory is short."),
    ] = 1,
    activation_checkpointing: Annotated[bool, typer.Option(help="Of the backbone: less memory, more time.")] = False,
    workers: Workers = None,
    timeout: Timeout = 1800,
    device: Device = None,
) -> None:
    """Trains an experiment of the paper at a scale, evaluates it, and prints its figures.

    On several machines: torchrun --nnodes 2 --nproc-per-node 8 … -m augfpn train …, with a run directory that all see.
    Ctrl-C, SIGTERM and SIGUSR1 write a checkpoint and end it with the status 99; --resume goes on.
    """
    from augfpn.engine import Execution, evaluate, train
    from augfpn.engine.launch import on_devices
    from augfpn.engine.ranks import Ranks, is_rank, joined

    config = plan(
        experiment,
        scale,
        seed=seed,
        data=data,
        overfit=overfit,
        strict=strict,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        backbone_weights=backbone_weights,
        backbone_style=backbone_style,
        precision=precision,
    )
    path = out or default_run_path(experiment, scale, seed)
    execution = Execution(
        accumulate=accumulate,
        activation_checkpointing=activation_checkpointing,
        workers=workers,
        keep_checkpoints=keep_checkpoints,
        evaluate_every=evaluate_every,
    )
    if devices > 1 and not is_rank():
        execution.check_fits(config.training.batch_size, Ranks(num=devices))
        raise typer.Exit(on_devices(devices, sys.argv[1:], _device(device)))
    with joined(_device(device), timeout) as (ranks, own):
        if config.experiment != experiment and ranks.is_main:
            print(f"{experiment} is the same model as {config.experiment}: one run, which has that name.")
        if devices not in (1, ranks.num):
            raise UserError(f"torchrun started {ranks.num} processes; leave out --devices {devices}.")
        run = train(config, path, resume=resume, execution=execution, device=own, ranks=ranks)
        # Of one answer: while some look, the main one may already have finished.
        if not ranks.gather(run.is_evaluated)[0]:
            evaluate(run, own, ranks=ranks, workers=workers)
    if ranks.is_main:
        _print_figures(run.path)


@app.command()
def evaluate(
    run: Path,
    batch_size: Annotated[int, typer.Option(help="Images a batch, which are padded to the same size.")] = 8,
    devices: Devices = 1,
    workers: Workers = None,
    timeout: Timeout = 1800,
    device: Device = None,
) -> None:
    """Evaluates a trained run on its validation images and prints COCO's twelve figures, of masks too if it has any."""
    from augfpn.engine import Run, evaluate
    from augfpn.engine.launch import on_devices
    from augfpn.engine.ranks import is_rank, joined

    if batch_size < 1:
        raise UserError(f"A batch has at least one image, not {batch_size}.")
    opened = Run.open(run)
    if devices > 1 and not is_rank():
        raise typer.Exit(on_devices(devices, sys.argv[1:], _device(device)))
    with joined(_device(device), timeout) as (ranks, own):
        evaluate(opened, own, batch_size, ranks, workers)
    if ranks.is_main:
        _print_figures(run)


@app.command()
def predict(
    run: Path,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="Folder for annotated pictures and predictions.json.")],
    score_threshold: Annotated[float, typer.Option(help="Draw detections from this score on.")] = 0.3,
    device: Device = None,
) -> None:
    """Detects objects in pictures; writes annotated copies and the detections in COCO's format."""
    from augfpn.engine import Run, predict
    from augfpn.engine.predict import as_coco
    from augfpn.files import write_json, written_whole
    from augfpn.visuals.drawing import draw_detections

    opened = Run.open(run)
    predictions = predict(opened, images, _device(device))
    names = [category.name for category in opened.categories]
    for number, prediction in enumerate(predictions, start=1):
        path, scores = prediction.path, prediction.boxes["scores"]
        # A name can be too long with what stands around it.
        with written_whole(out / f"{number:04d}_{path.stem[:40]}.png") as temporary:
            picture = draw_detections(prediction.image, prediction.detections, names, score_threshold)
            picture.save(temporary, format="PNG")
        num_drawn = int((scores >= score_threshold).sum())
        print(f"{path}: {num_drawn} of {len(scores)} detections drawn (--score-threshold {score_threshold})")
    print(write_json(out / "predictions.json", as_coco(predictions, opened), indent=1))


@app.command()
def submission(
    run: Path,
    images: Annotated[Path, typer.Option(help="The folder of the images, such as test2017.")],
    info: Annotated[Path, typer.Option(help="COCO's list of them, such as image_info_test-dev2017.json.")],
    name: Annotated[str, typer.Option(help="Of the algorithm.")],
    out: Annotated[Path, typer.Option(help="The folder for the archive.")] = Path(),
    kind: Annotated[Literal["bbox", "segm"], typer.Option(help="Boxes or masks.")] = "bbox",
    device: Device = None,
) -> None:
    """Writes detections in the format of COCO's server for test-dev (which answers no more)."""
    from augfpn.engine import Run
    from augfpn.engine.submission import write_submission

    print(write_submission(Run.open(run), images, info, name, out, _device(device), kind=kind))


@app.command()
def report(
    folders: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="Evaluated runs of one scale, or folders with them; by default runs."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write; an older report in it is replaced.")] = Path("report"),
    device: Device = None,
) -> None:
    """Writes pages about runs that need no network: the paper's tables, models side by side, executed notebooks."""
    from augfpn.visuals.report import write_report

    print(write_report(folders or [Path("runs")], out, _device(device)))


@app.command()
def reproduce(
    targets: Annotated[
        list[str], typer.Argument(help="all, demo, table1 to table5, figure4, semantic_gaps, …, or ids of experiments.")
    ],
    scale: ScaleName = "micro",
    seeds: Annotated[int, typer.Option(help="Runs of each experiment, with the seeds from 0 on.")] = 1,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="At once; by default one on a GPU, else one a core."),
    ] = None,
    out: Annotated[Optional[str], typer.Option(help="The folder for everything; by default runs/SCALE.")] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(help="A folder in COCO's layout.")] = None,  # noqa: UP045
    devices: Annotated[int, typer.Option(help="Of each training, which share its batches.")] = 1,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="slurm, kubernetes, or a Snakemake profile of your own; by default on this machine."),
    ] = None,
    snakemake: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help='For Snakemake, such as --snakemake="--default-resources slurm_partition=gpu".'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is missing, and how long it takes.")
    ] = False,
) -> None:
    """Runs all that a table, a figure or the whole paper needs, executes its notebooks, and writes the report.

    What is done already stays. Run it again after an interruption or a failure: it does what is missing.
    """
    from augfpn.reproduction import Request
    from augfpn.reproduction.workflow import describe
    from augfpn.reproduction.workflow import reproduce as start

    request = Request(targets=tuple(targets), scale=scale, seeds=seeds, out=out, data=data, devices=devices)
    if dry_run:
        print(describe(request, jobs, profile))
    elif not start(request, at_once=jobs, profile=profile, options=snakemake or []):
        raise typer.Exit(1)


@app.command()
def status(
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="The --out of `augfpn reproduce`; by default the last one below runs."),
    ] = None,
) -> None:
    """How far a reproduction is: what is done, what is at work, what failed, how long it will take, where logs are."""
    from augfpn.reproduction import jobs_of
    from augfpn.reproduction.progress import as_text, is_locked, progress_of
    from augfpn.reproduction.workflow import last_request, lock_path

    request = last_request(folder)
    print(as_text(request, progress_of(jobs_of(request))))
    if not is_locked(lock_path(request)):
        print("Nothing is at work now.")


@app.command("list")
def list_experiments(
    table: Annotated[Optional[str], typer.Option(help="Only this one, such as table4.")] = None,  # noqa: UP045
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Folders with evaluated runs; by default runs and results, where they are."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs: a list of objects.")] = False,
) -> None:
    """Prints the paper's tables: its figures in percent, and ours (mean and standard deviation of the seeds)."""
    if table is not None and table not in TABLES:
        raise UserError(unknown("table", table, TABLES))
    listed = [entry for entry in entries(_results(runs)) if table in (None, entry["table"])]
    print(dumps(listed, indent=1, ensure_ascii=False) if json else as_text(listed))


@app.command()
def show(
    experiment: ExperimentId,
    scale: ScaleName = "micro",
    data: Annotated[Optional[str], typer.Option(help="As for `train`; at the paper's scale data/coco.")] = None,  # noqa: UP045
    json: Annotated[bool, typer.Option("--json", help="Only the expanded experiment.")] = False,
) -> None:
    """Prints an experiment's difference from its baseline, and the expanded experiment as it is run at a scale."""
    if isinstance(PAPER.get(experiment), QuotedRow) and not json:
        print(as_text([entry for entry in entries() if entry["id"] == experiment]))
        return
    planned = plan(experiment, scale, data="data/coco" if data is None and scale == "paper" else data)
    if not json:
        described = find_experiment(experiment)
        baseline = find_experiment(described.baseline)
        print(f"{described.id}: {described.title}")
        if planned.experiment != described.id:
            print(f"The same model as {planned.experiment}, and run as that.")
        of_model = differences(baseline.model, described.model)
        of_training = differences(baseline.training, described.training, "training.")
        if baseline is described:
            print("It is a baseline itself.")
        else:
            print(f"Its difference from {baseline.id}:", *of_model, *of_training, sep="\n  ")
        print(f"As it is run at the scale {scale}:")
    print(planned.to_json())


@app.command()
def cost(
    experiments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Ids from `augfpn list`; by default Table 1."),
    ] = None,
    scale: ScaleName = "paper",
    height: Annotated[Optional[int], typer.Option(help="Pixels of the resized image; by default the scale's.")] = None,  # noqa: UP045
    width: Annotated[Optional[int], typer.Option(help="Likewise; 1333 at the paper's scale.")] = None,  # noqa: UP045
    classes: Annotated[int, typer.Option(help="Without background.")] = 80,
    out: Annotated[Optional[Path], typer.Option(help="A file for all numbers, part by part.")] = None,  # noqa: UP045
) -> None:
    """Counts parameters and multiply-adds (one is 1) of an image at inference, and their difference to the baseline."""
    from augfpn.analysis.cost import cost_of_experiment, torchvision_parameters
    from augfpn.files import write_json

    def count(id: str):  # type: ignore[no-untyped-def]
        return cost_of_experiment(id, scale, num_classes=classes, height=height, width=width)

    table_1 = [experiment.id for experiment in EXPERIMENTS.values() if experiment.table == "table1"]
    costs = {id: count(id) for id in experiments or table_1}
    print(f"{'':40}{'parameters, M':>20}{'multiply-adds, G':>20}")
    for id, ours in costs.items():
        baseline = count(find_experiment(id).baseline)
        row = f"{id:40}"
        for total, less in ((ours.parameters / 1e6, baseline.parameters / 1e6), (ours.macs / 1e9, baseline.macs / 1e9)):
            row += f"{total:12.2f}" + (f"{total - less:+8.2f}" if baseline is not ours else " " * 8)
        print(row.rstrip())
    proposals = max(ours.num_proposals for ours in costs.values())
    of_boxes = f", up to {proposals} proposals" if proposals else ""
    print(f"An image of {ours.height} × {ours.width} pixels with its padding, {classes} classes{of_boxes}.")
    if not experiments and scale == "paper":
        print("torchvision's detectors, ours and as published, with 90 classes and background:")
        for name, parameters, published in torchvision_parameters():
            print(f"{name:40}{parameters / 1e6:12.2f}{published / 1e6:8.2f}")
    if out is not None:
        print(write_json(out, {id: ours.to_dict() for id, ours in costs.items()}, indent=1))


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Where evaluated runs are, of one scale and data.")] = Path("runs"),
    scale: Annotated[Optional[str], typer.Option(help="Only runs of this scale.")] = None,  # noqa: UP045
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    file: JsonFile = None,
) -> None:
    """Which differences in AP to the baseline are larger than the noise: 95 % intervals of the paired bootstrap."""
    import torch

    from augfpn.analysis.comparison import find_runs
    from augfpn.analysis.significance import differences_to_baselines

    found = differences_to_baselines(find_runs(folder, scale), draws)
    if not found:
        raise UserError(f"There is no run in {folder} with the same seed as a run of its baseline.")
    print(f"{'':40}{'AP over the baseline':28}{'seeds':8}{'more than noise':24}paper")
    for id, difference in found.items():
        row = find_experiment(id)
        paper = row.published.AP - find_experiment(row.baseline).published.AP
        print(f"{id:40}{difference!s:28}{difference.num_seeds:<8}{difference.verdict:24}{paper:+.1f}")
    _write(file, {"differences": {id: vars(difference) for id, difference in found.items()}}, torch.device("cpu"))


@app.command()
def figure4(
    run: Path,
    images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the first so many validation images."),
    ] = None,
    file: JsonFile = None,
    device: Device = None,
) -> None:
    """Figure 4: how much of the RoIs of each level Soft RoI Selection takes from every level."""
    from augfpn.analysis.level_ratios import as_text, level_ratios_of_run, to_dict
    from augfpn.engine import Run

    opened, used = Run.open(run), _device(device)
    ratios = level_ratios_of_run(opened, used, num_images=images)
    print(as_text(ratios))
    _write(file, to_dict(opened, ratios), used)


@app.command("semantic-gap")
def semantic_gap(
    runs: Annotated[list[Path], typer.Argument(help="Trained runs.")],
    along: Annotated[bool, typer.Option(help="Also for every checkpoint (`train --keep-checkpoints`).")] = False,
    images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only so many validation and training images."),
    ] = None,
    file: JsonFile = None,
    device: Device = None,
) -> None:
    """Measures how far apart the levels are before they are fused: means over all pairs of levels."""
    from augfpn.analysis.semantic_gap import HEADING, as_line, check_same_objects, measure_gaps, to_dict
    from augfpn.engine import Run

    opened, used, measured = [Run.open(run) for run in runs], _device(device), []
    check_same_objects(opened)
    print(HEADING)
    for one in measure_gaps(opened, used, along=along, num_images=images):
        print(as_line(one), flush=True)
        measured.append(one)
    _write(file, to_dict(measured), used)


@app.command()
def runtime(
    runs: Annotated[list[Path], typer.Argument(help="Trained runs of one scale and data, the baseline among them.")],
    rounds: Annotated[int, typer.Option(help="How often every run has its turn.")] = 5,
    steps: Annotated[Optional[int], typer.Option(help="Training steps of a turn; by default 10 or more.")] = None,  # noqa: UP045
    images: Annotated[Optional[int], typer.Option(help="Validation images of a turn; by default 25 or more.")] = None,  # noqa: UP045
    file: JsonFile = None,
    device: Device = None,
) -> None:
    """Section 4.5: seconds of training an epoch and images a second, of runs in turns, with ratios to the baseline."""
    from augfpn.analysis.runtime import as_text, measure_runtimes, to_dict
    from augfpn.engine import Run

    opened, used = [Run.open(run) for run in runs], _device(device)
    measured = to_dict(opened, measure_runtimes(opened, used, rounds=rounds, steps=steps, images=images))
    print(as_text(measured))
    _write(file, measured, used)


@app.command()
def viewer(
    runs: Annotated[list[Path], typer.Argument(help="An evaluated run, or two of the same data to compare.")],
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a page that needs neither this command nor a network, and end."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images such a page holds.")] = 50,
    losses: Annotated[
        bool, typer.Option(help="Compute each image's loss first, to sort by; kept with the run.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the address; by default a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
    device: Device = None,
) -> None:
    """Shows detections in the browser: what became of each, and which pyramid levels it was made from."""
    import webbrowser

    from augfpn.analysis.image_losses import image_losses
    from augfpn.engine import Run
    from augfpn.files import write_text
    from augfpn.visuals.interactive import DetectionViewer
    from augfpn.visuals.interactive.server import ViewServer

    opened = [Run.open(run) for run in runs]
    if losses:
        for run in opened:
            image_losses(run, _device(device))
    view = DetectionViewer(*opened, device=_device(device))
    if html is not None:
        print(write_text(html, view.to_html(images)))
        return
    with ViewServer(view, port) as server:
        print(f"{server.link}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(server.link)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 128,
    train: Annotated[int, typer.Option(help="Training images.")] = 1500,
    val: Annotated[int, typer.Option(help="Validation images.")] = 250,
    seed: int = 0,
) -> None:
    """Writes the synthetic data set as images and annotations in COCO's layout."""
    from augfpn.data.loading import open_dataset
    from augfpn.data.synthetic import SyntheticDataset
    from augfpn.experiments.config import DataConfig, SyntheticConfig

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder (--out).")
    config = DataConfig(synthetic=SyntheticConfig(size=size, num_train=train, num_val=val, seed=seed))
    for split in ("train", "val"):
        dataset = open_dataset(config, split)
        assert isinstance(dataset, SyntheticDataset)
        print(dataset.write(out, split))


@data_app.command("check")
def check_data(
    folder: Annotated[Path, typer.Argument(help="In COCO's layout.")],
    fix: Annotated[Optional[Path], typer.Option(help="Write a mended copy to this folder.")] = None,  # noqa: UP045
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write all findings to this file, for programs; - for the standard output."),
    ] = None,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Processes that read images; by default one a core."),
    ] = None,
) -> None:
    """Finds everything that is wrong with a data set: annotations, image files, and images that splits share.

    Ends with 0 if nothing is wrong (or a mended copy was written), 1 if something is, and 2 if it cannot be checked.
    """
    from augfpn.data.check import check
    from augfpn.data.mend import as_text, mend
    from augfpn.files import write_json

    report = check(folder, jobs)
    to_stdout = json == Path("-")
    if to_stdout:
        print(dumps(report.to_dict(), indent=1))
    else:
        print(report.as_text())
        if json is not None:
            print(write_json(json, report.to_dict(), indent=1))
    if fix is not None:
        changes = mend(report, fix)
        told = f"{as_text(changes)}\n{fix}: {len(changes)} changes, all listed in {fix / 'changes.json'}."
        # Programs read the standard output.
        print(f"\n{told.strip()}", file=sys.stderr if to_stdout else sys.stdout)
    elif report.is_faulty:
        raise typer.Exit(1)


def _write(file: Path | None, content: dict[str, Any], device: torch.device) -> None:
    """Writes what was measured, if there is a file for it."""
    from augfpn.engine.runs import write_measured

    if file is not None:
        print(write_measured(file, content, device))


def _results(folders: list[Path] | None) -> list[Result]:
    """What the evaluated runs in these folders came to, or in the usual folders. Torch is imported only if there are
    any."""
    for folder in folders or []:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name those with your runs (--runs), or none.")
    found = folders or [folder for folder in (Path("runs"), Path("results")) if folder.is_dir()]
    if not any(next(folder.rglob("run.json"), None) for folder in found):
        return []
    from augfpn.analysis.comparison import evaluated_runs

    results = []
    for run in (run for folder in found for run in evaluated_runs(folder)):
        try:
            results.append(Result(path=str(run.path), config=run.config, metrics=run.metrics))
        except UserError as error:
            print(f"warning: {run.path} is left out: {error}", file=sys.stderr)
    return results


def _device(name: str | None):  # type: ignore[no-untyped-def]
    import torch

    from augfpn.engine.train import default_device

    if name is None:
        return default_device()
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _print_figures(path: Path) -> None:
    from augfpn.engine import Run
    from augfpn.engine.evaluate import FIGURES, MASK_FIGURES

    metrics = Run(path).metrics
    for names in (FIGURES, MASK_FIGURES):
        # Only runs with masks have the second line.
        if names[0] in metrics:
            print("  ".join(f"{name} –" if metrics[name] is None else f"{name} {metrics[name]:.3f}" for name in names))
    if (best := Run(path).best_step) is not None:
        print(f"Of the evaluations on the way, that of step {best} was the best (evaluations.jsonl, checkpoints/).")
    print(path)


def main() -> None:
    try:
        app()
    except (UserError, OSError) as error:
        # What the file system says names the file, too.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        # Of several ranks, all stop for the same reason.
        if os.environ.get("RANK", "0") == "0":
            print(interrupted, file=sys.stderr)
        sys.exit(REQUEUE)


if __name__ == "__main__":
    main()
