"""Random boxes and images that several benchmarks read."""

import torch
from mmengine.structures import InstanceData
from torch import Tensor


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 0.7
    return torch.cat([corner, corner + 0.05 + torch.rand(*shape, 2, generator=generator) * 0.25], -1)


def random_images(
    count: int, preds: int, gts: int, classes: int, device: str
) -> tuple[list[InstanceData], list[InstanceData], list[dict]]:
    """Predictions, up to ``gts`` ground truths and meta information of images of 800 x 1200."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1200.0, 800, 1200, 800])
    predictions, truths = [], []
    for number in torch.randint(1, gts + 1, (count,), generator=generator).tolist():
        scores = torch.randn(preds, classes + 1, generator=generator)
        labels = torch.randint(0, classes, (number,), generator=generator)
        boxes, gt_boxes = (random_boxes(n, generator=generator) * size for n in (preds, number))
        predictions.append(InstanceData(scores=scores, bboxes=boxes).to(device))
        truths.append(InstanceData(labels=labels, bboxes=gt_boxes).to(device))
    return predictions, truths, [dict(img_shape=(800, 1200))] * count
