import json
from dataclasses import replace

import pytest
import torch
from torchvision.ops import masks_to_boxes

from augfpn.data import DataError, SyntheticDataset, evaluation_batches, loading, open_dataset, training_batches
from augfpn.data.loading import open_datasets
from augfpn.experiments.config import DataConfig, SyntheticConfig

CONFIG = DataConfig(synthetic=SyntheticConfig(size=64, num_train=10, num_val=4))


def batches(first_step=0, num_steps=6, **changes):
    dataset = open_dataset(CONFIG, "train")
    settings = {"seed": 0, "batch_size": 4, "num_workers": 0, **changes}
    return list(training_batches(dataset, CONFIG, first_step=first_step, num_steps=num_steps, **settings))


def same(batch, other):
    return batch.image_ids == other.image_ids and torch.equal(batch.images.pixels, other.images.pixels)


def test_every_epoch_goes_once_through_all_images_in_its_own_order():
    order = [id for batch in batches(num_steps=10) for id in batch.image_ids]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(1, 11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_training_that_goes_on_from_a_step_sees_the_same_batches():
    whole = batches()
    assert all(same(a, b) for a, b in zip(whole[3:], batches(first_step=3), strict=True))


def test_workers_change_nothing():
    assert all(same(a, b) for a, b in zip(batches(), batches(num_workers=2), strict=True))


def test_another_seed_gives_another_order():
    assert [b.image_ids for b in batches()] != [b.image_ids for b in batches(seed=1)]


def test_an_image_is_flipped_in_some_epochs_with_its_boxes():
    dataset = SyntheticDataset(64, 1)
    one = dataset[0]
    seen = list(training_batches(dataset, CONFIG, seed=0, batch_size=1, first_step=0, num_steps=20))
    flipped = [not torch.equal(batch.images.pixels[0], one.image) for batch in seen]
    assert 3 < sum(flipped) < 17
    for batch, is_flipped in zip(seen, flipped, strict=True):
        expected = one.boxes.clone()
        if is_flipped:
            assert torch.equal(batch.images.pixels[0], one.image.flip(-1))
            expected[:, [0, 2]] = 64 - expected[:, [2, 0]]
        assert torch.equal(batch.targets.boxes[0, batch.targets.valid[0]], expected)


def test_evaluation_sees_every_image_once_unflipped():
    dataset = open_dataset(CONFIG, "val")
    seen = list(evaluation_batches(dataset, CONFIG, batch_size=3))
    assert [batch.image_ids for batch in seen] == [(1, 2, 3), (4,)]
    assert torch.equal(seen[0].images.pixels[1], dataset[1].image)


def test_training_and_validation_images_are_different():
    train, val = (open_dataset(CONFIG, split) for split in ("train", "val"))
    assert not any(torch.equal(train[a].image, val[b].image) for a in range(10) for b in range(4))


def test_overfitting_trains_and_evaluates_on_the_same_first_images():
    config = replace(CONFIG, overfit=3)
    train, val = (open_dataset(config, split) for split in ("train", "val"))
    assert len(train) == len(val) == 3
    assert all(torch.equal(train[i].image, val[i].image) for i in range(3))
    assert [image["id"] for image in val.ground_truth()["images"]] == [1, 2, 3]
    assert val.file_names == [image["file_name"] for image in val.ground_truth()["images"]]
    with pytest.raises(ValueError, match="data set of 10"):
        open_dataset(replace(CONFIG, overfit=11), "train")


def test_real_images_are_resized_by_their_short_side_and_padded(real_images):
    config = DataConfig(root=str(real_images / "coco_tiny"), short_side=96, long_side=128)
    dataset = open_dataset(config, "val")
    batch = next(evaluation_batches(dataset, config, batch_size=8))
    height, width = batch.images.pixels.shape[2:]
    assert height % 32 == width % 32 == 0
    for size, original in zip(batch.images.sizes.tolist(), batch.original_sizes.tolist(), strict=True):
        assert min(size) == 96 or max(size) == 128
        assert size[0] / size[1] == pytest.approx(original[0] / original[1], rel=0.03)
    sample = dataset[0]
    factor = batch.images.sizes[0] / batch.original_sizes[0]
    expected = sample.boxes * factor.flip(0).repeat(2)
    torch.testing.assert_close(batch.targets.boxes[0, : len(expected)], expected, atol=1e-3, rtol=1e-4)


def test_classes_that_differ_between_training_and_validation_are_refused(tmp_path):
    for split in ("train", "val"):
        SyntheticDataset(64, 2).write(tmp_path, split)
    annotations = tmp_path / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text().replace('"ring"', '"bracelet"'))
    with pytest.raises(DataError, match=r"different categories.*\['bracelet', 'ring'\]"):
        open_datasets(DataConfig(root=str(tmp_path)))


def test_missing_validation_data_is_found_before_training(tmp_path):
    SyntheticDataset(64, 2).write(tmp_path, "train")
    with pytest.raises(DataError, match="no annotation file for the split 'val'"):
        open_datasets(DataConfig(root=str(tmp_path)))


def masked_batches(config, num_steps=1, batch_size=8):
    config = replace(config, masks=True)
    dataset = open_dataset(config, "train")
    return training_batches(dataset, config, seed=0, batch_size=batch_size, first_step=0, num_steps=num_steps)


def assert_masks_lie_in_their_boxes(batch, tolerance):
    assert batch.targets.masks.shape == (*batch.targets.labels.shape, *batch.images.pixels.shape[-2:])
    for boxes, masks, valid in zip(batch.targets.boxes, batch.targets.masks, batch.targets.valid, strict=True):
        assert not masks[~valid].any()
        # Nothing is left of a mask that was thinner than a pixel.
        seen = valid & (masks.flatten(1).amax(dim=1) > 0)
        around = masks_to_boxes(masks[seen]) + torch.tensor([0, 0, 1, 1])
        torch.testing.assert_close(around, boxes[seen], atol=tolerance, rtol=0)


def test_masks_are_flipped_with_their_boxes():
    seen = list(masked_batches(CONFIG, num_steps=5, batch_size=4))
    assert sum(batch.targets.masks.any().item() for batch in seen) == 5
    for batch in seen:
        assert_masks_lie_in_their_boxes(batch, tolerance=0)


def test_masks_are_resized_with_their_boxes(tmp_path):
    annotations = SyntheticDataset(96, 12).write(tmp_path, "train")
    truth = json.loads(annotations.read_text())
    # Whole boxes, for a thin tip may fall between the pixels of a smaller image.
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    annotations.write_text(json.dumps(truth))
    for short_side in (64, 96, 150):
        config = DataConfig(root=str(tmp_path), short_side=short_side, long_side=1333)
        for batch in masked_batches(config, num_steps=3):
            assert_masks_lie_in_their_boxes(batch, tolerance=1)


def test_masks_of_real_images_are_resized_with_their_images(real_images):
    config = DataConfig(root=str(real_images / "coco_tiny"), short_side=96, long_side=128, flip_probability=0)
    dataset = open_dataset(replace(config, masks=True), "train")
    batch = next(evaluation_batches(dataset, config, batch_size=8))
    for index, (height, width) in enumerate(batch.images.sizes.tolist()):
        masks = dataset[index].masks
        # The share of the image that each object covers is nearly the same.
        resized = batch.targets.masks[index, : len(masks), :height, :width].double().mean(dim=(1, 2))
        torch.testing.assert_close(resized, masks.double().mean(dim=(1, 2)), atol=0.005, rtol=0.1)
        assert not batch.targets.masks[index, :, height:].any()
        assert not batch.targets.masks[index, :, :, width:].any()


def test_without_masks_there_are_none():
    assert open_dataset(CONFIG, "train")[0].masks is None
    assert batches(num_steps=1)[0].targets.masks is None


def test_a_loader_that_does_not_answer_is_an_error_after_a_while(monkeypatch):
    monkeypatch.setattr(loading, "LOADING_TIMEOUT", 0.2)

    def hangs():
        raise RuntimeError("DataLoader timed out after 5 seconds")

    with pytest.raises(loading.LoadingError, match=r"timed out.*fewer workers"):
        loading._next(iter(hangs, None))


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), EOFError(), FileNotFoundError("no socket")])
def test_a_batch_that_cannot_be_fetched_from_its_process_is_an_error(error):
    def fails():
        raise error

    with pytest.raises(loading.LoadingError, match="fewer workers"):
        loading._next(iter(fails, None))


def test_a_loader_that_is_only_slow_is_waited_for():
    answers = [RuntimeError("DataLoader timed out after 5 seconds"), "batch"]

    class Slow:
        def __next__(self):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert loading._next(Slow()) == "batch"


def test_other_errors_of_a_loader_stay_what_they_are():
    def fails():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        loading._next(iter(fails, None))
