"""Images and their objects: COCO-format data sets, the synthetic one, augmentation, loading."""

from augfpn.data.coco import CocoDataset
from augfpn.data.coco_format import DataError
from augfpn.data.dataset import Category, DataProblem, DetectionDataset, Sample
from augfpn.data.loading import Batch, evaluation_batches, open_dataset, training_batches
from augfpn.data.synthetic import SyntheticDataset

__all__ = [
    "Batch",
    "Category",
    "CocoDataset",
    "DataError",
    "DataProblem",
    "DetectionDataset",
    "Sample",
    "SyntheticDataset",
    "evaluation_batches",
    "open_dataset",
    "training_batches",
]
