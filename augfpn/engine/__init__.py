"""Training, evaluation and prediction, and the run directory that they write and read."""

from augfpn.engine.evaluate import coco_metrics, evaluate
from augfpn.engine.predict import predict
from augfpn.engine.runs import Run
from augfpn.engine.train import train

__all__ = ["Run", "coco_metrics", "evaluate", "predict", "train"]
