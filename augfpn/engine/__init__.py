"""Training, evaluation and prediction, and the run directory that they write and read."""

from augfpn.engine.evaluate import coco_metrics, evaluate
from augfpn.engine.predict import predict
from augfpn.engine.runs import Run
from augfpn.engine.train import Execution, train

__all__ = ["Execution", "Run", "coco_metrics", "evaluate", "predict", "train"]
