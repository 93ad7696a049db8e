"""Matching and loss in one module, for use outside mmdet's heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.assigners import batch_matcher
from uotod_mmdet.costs import make_batch
from uotod_mmdet.ops import is_traced, to_device_of
from uotod_mmdet.plan import (
    MIN_WEIGHT,
    Pairs,
    box_losses,
    check_box_loss,
    check_class_weight,
    check_classification_loss,
    check_min_weight,
    classification_losses,
    expand,
    plan_statistics,
    reading_of,
)
from uotod_mmdet.registry import MODELS, TASK_UTILS

from .checks import check_finite, check_reduction, check_tensor
from .detection_inputs import NAME, read_anchors, read_predictions, read_targets

EPS = torch.finfo(torch.float32).eps  # mmdet adds this to avg_factor, so that 0, of no targets at all, is legal
POSITIONS = ('last', 'first', 'none')


@MODELS.register_module()
class DetectionLoss(nn.Module):
    """Match predictions with ground truths, then sum the losses of the plan.

    With plan P (a prediction matched whole to one thing has row sum 1) the loss is::

        sum_i sum_j P[i, j] (loss_cls(c_i, c_j) + loss_bbox(b_i, b_j)) + sum_i P[i, bg] loss_cls(c_i, bg)

    computed on the pairs that the plan uses only (De Plaen et al., CVPR 2023; uotod's ``DetectionLoss``). No gradient
    flows through the plan.

    Args:
        loss_cls: Config of a classification loss. CrossEntropyLoss (softmax, ``class_weight`` one per column of the
            logits) needs a background class; sigmoid losses (FocalLoss...) need ``bg_class_position='none'``.
            Losses of qualities, such as QualityFocalLoss and VarifocalLoss, get the pairs' IoU.
        loss_bbox: Config of a localisation loss, or a list of them: L1Loss, SmoothL1Loss, GIoULoss...
        assigner: Config of an assigner of ours, taken soft, or of mmdet's.
        bg_class_position: Where the logits hold the background: 'last', 'first', or 'none' where they do not.
        use_hard_negative_mining: In each image keep the largest background losses only: ``neg_to_pos_ratio`` of them
            for one prediction's worth of matched mass.
        neg_to_pos_ratio: See ``use_hard_negative_mining``; SSD uses 3.
        min_weight: Pairs lighter than this are dropped; 0 keeps all.
        reduction: 'mean': localisation is divided by the matched mass and classification by the matched and
            background mass, each pair counted with the weight of its class; the background's is left out where the
            logits hold no background class and under hard negative mining; divisors are at least 1. 'sum': not
            divided. 'none': the loss of each prediction, (B, N).
        loss_weight: Factor of the whole loss.

    Raises:
        TypeError: If a number or a switch is of another type.
        ValueError: If the arguments do not fit each other.
    """

    def __init__(
        self,
        loss_cls: dict,
        loss_bbox: Union[dict, Sequence[dict]],
        assigner: dict,
        bg_class_position: str = 'last',
        use_hard_negative_mining: bool = False,
        neg_to_pos_ratio: Optional[float] = None,
        min_weight: float = MIN_WEIGHT,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_reduction(NAME, reduction, None)
        self.loss_cls = MODELS.build(loss_cls)
        boxes = [loss_bbox] if isinstance(loss_bbox, dict) else list(loss_bbox)
        if not boxes:
            raise ValueError(f"{NAME}: loss_bbox is empty: give at least one loss, such as dict(type='GIoULoss').")
        self.losses_bbox = nn.ModuleList(MODELS.build(loss) for loss in boxes)
        self.assigner = TASK_UTILS.build(assigner)
        self.matcher = batch_matcher(self.assigner)
        self.bg_class_position = bg_class_position
        use_hard_negative_mining = switch(f'{NAME}: use_hard_negative_mining', use_hard_negative_mining)
        self.neg_to_pos_ratio = number(f'{NAME}: neg_to_pos_ratio', neg_to_pos_ratio, optional=True)
        self.min_weight = check_min_weight(min_weight)
        self.reduction = reduction
        self.loss_weight = number(f'{NAME}: loss_weight', loss_weight)

        if bg_class_position not in POSITIONS:
            raise ValueError(f'{NAME}: bg_class_position must be one of {POSITIONS}, got {bg_class_position!r}.')
        name, sigmoid = type(self.loss_cls).__name__, getattr(self.loss_cls, 'use_sigmoid', False)
        if sigmoid and bg_class_position != 'none':
            raise ValueError(
                f'{NAME}: {name} scores each class by a sigmoid and has no background class: bg_class_position must '
                f"be 'none' and the logits one column for each class, got bg_class_position={bg_class_position!r}."
            )
        if not sigmoid and bg_class_position == 'none':
            raise ValueError(
                f"{NAME}: {name} is a softmax over the classes and the background: bg_class_position must be 'last' "
                "or 'first', got 'none'."
            )
        if use_hard_negative_mining and not (neg_to_pos_ratio is not None and neg_to_pos_ratio > 0):
            raise ValueError(
                f'{NAME}: use_hard_negative_mining needs neg_to_pos_ratio, how many negatives are kept for one '
                f'positive (3 in SSD); got {neg_to_pos_ratio}.'
            )
        if not use_hard_negative_mining and neg_to_pos_ratio is not None:
            raise ValueError(
                f'{NAME}: neg_to_pos_ratio={neg_to_pos_ratio} has no effect without use_hard_negative_mining=True.'
            )
        if use_hard_negative_mining and reading_of(self.loss_cls).reads_quality:
            raise ValueError(
                f'{NAME}: {name} weighs hard negatives by itself and has no loss of the background apart: set '
                'use_hard_negative_mining=False.'
            )
        class_weight = getattr(self.loss_cls, 'class_weight', None)
        if isinstance(class_weight, (int, float)) and not sigmoid:
            check_class_weight(NAME, self.loss_cls, 0, '')
        # As many columns as the logits will have, where the loss knows.
        columns = len(class_weight) if isinstance(class_weight, (Sequence, Tensor)) else 4
        check_classification_loss(NAME, self.loss_cls, columns - (not sigmoid), columns)
        for loss in self.losses_bbox:
            check_box_loss(NAME, 'loss_bbox', loss)

    def forward(
        self,
        input: Mapping[str, Tensor],
        target: Union[Mapping[str, Tensor], Sequence[InstanceData]],
        anchors: Optional[Tensor] = None,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
        img_metas: Optional[Sequence[dict]] = None,
    ) -> Tensor:
        """Match, and compute the loss.

        Args:
            input: ``pred_logits`` (B, N, C), background class included where there is one, and ``pred_boxes``
                (B, N, 4) as (x1, y1, x2, y2). Their dtypes may differ: the loss is computed in the wider one, at least
                float32.
            target: ``labels`` (B, M), columns of the logits, ``boxes`` (B, M, 4) as (x1, y1, x2, y2), and ``mask``
                (B, M), False on padding (without it, all are real); or for each image an InstanceData with ``labels``
                and ``bboxes``. Labels of any integer dtype, boxes of any dtype.
            anchors: Priors (N, 4) or (B, N, 4), for costs that read them and for ``box_source='priors'``. Boxes, here
                and above, may be mmdet's box types.
            weight: Factor of each prediction's loss, (B, N).
            avg_factor: Divides all terms in place of the masses; needs 'mean', ignored with 'none'.
            reduction_override: Replaces ``reduction``.
            img_metas: Meta information of the images, ``img_shape`` for BBoxL1Cost; without it that cost takes
                coordinates as they are.

        Returns:
            Scalar, or (B, N) with reduction 'none'.

        Raises:
            TypeError: If an input is missing or not a tensor, or ``avg_factor`` is not a number.
            ValueError: If shapes do not fit, a label is not a foreground class, boxes are not (x1, y1, x2, y2) or so
                large that losses overflow, or predictions or a term of the loss are not finite.
        """
        terms = self._terms(input, target, anchors, weight, avg_factor, reduction_override, img_metas)[0]
        total: Any = sum(terms.values())
        return total

    def loss_terms(
        self,
        input: Mapping[str, Tensor],
        target: Union[Mapping[str, Tensor], Sequence[InstanceData]],
        anchors: Optional[Tensor] = None,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
        img_metas: Optional[Sequence[dict]] = None,
    ) -> dict[str, Tensor]:
        """The parts of the loss by name, and beside them the plan's statistics.

        Args, errors: see :meth:`forward`.

        Returns:
            ``loss_cls``; ``loss_bbox``, or one such as ``loss_bbox_l1`` for each of several losses; and
            :func:`~uotod_mmdet.plan.plan_statistics`, whose names do not contain 'loss'.
        """
        terms, pairs, mask, num_iter = self._terms(
            input, target, anchors, weight, avg_factor, reduction_override, img_metas
        )
        return {**terms, **plan_statistics(pairs, mask, num_iter, self.assigner)}

    def _terms(
        self,
        input: Mapping[str, Tensor],
        target: Union[Mapping[str, Tensor], Sequence[InstanceData]],
        anchors: Optional[Tensor],
        weight: Optional[Tensor],
        avg_factor: Optional[Union[float, Tensor]],
        reduction_override: Optional[str],
        img_metas: Optional[Sequence[dict]],
    ) -> tuple[dict[str, Tensor], Pairs, Tensor, Optional[Tensor]]:
        """The parts of the loss by name, the plan, which ground truths are real (B, M), and the solver's iterations."""
        reduction = self.reduction if reduction_override is None else reduction_override
        check_reduction(NAME, reduction, avg_factor)
        logits, boxes = read_predictions(input, self.loss_cls, self.bg_class_position)
        with torch.autocast(logits.device.type, enabled=False):
            labels, gt_boxes, mask = read_targets(target, logits, boxes, self.bg_class_position)
            predictions = dict(scores=logits.detach(), bboxes=boxes.detach())
            if anchors is not None:
                predictions['priors'] = read_anchors(anchors, boxes)
            if is_traced():  # how many are real is unknown then; boxes without area take no part
                labels, gt_boxes = torch.where(mask, labels, 0), torch.where(mask[:, :, None], gt_boxes, 0)
            of_images = list(zip(labels, gt_boxes))
            if not is_traced() and not mask.all():
                of_images = [(label[real], box[real]) for (label, box), real in zip(of_images, mask)]
            gts = [InstanceData(labels=label, bboxes=box) for label, box in of_images]
            metas = [dict(img_shape=(1, 1))] * len(gts) if img_metas is None else img_metas
            batch = make_batch(predictions, gts, metas, self.matcher.box_source, score_format='logits')
            matching = self.matcher.match_batch(batch)
            pairs = expand(matching.plan, self.min_weight)
            assert batch.gt_bboxes is not None
            losses = self._losses(logits.flatten(0, 1), boxes.flatten(0, 1), batch.gt_labels, batch.gt_bboxes, pairs)
            if weight is not None:
                check_tensor(NAME, 'weight', weight, logits.shape[:2], 'It holds one number for each prediction.')
            terms = {}
            for name, loss in losses.items():
                of_pairs = name != 'loss_cls'
                if weight is not None:
                    loss = loss * (weight.flatten()[pairs.rows] if of_pairs else weight.flatten())
                if reduction == 'none':
                    loss = (pairs.sum_by_row(loss) if of_pairs else loss).view(logits.shape[:2])
                elif reduction == 'sum':
                    loss = loss.sum()
                else:
                    divisor = (
                        self._divisor(name, batch.gt_labels, pairs, logits) if avg_factor is None else avg_factor + EPS
                    )
                    loss = loss.sum() / divisor
                terms[name] = self.loss_weight * loss
            inputs = dict(weight=weight, avg_factor=avg_factor, pred_logits=logits, pred_boxes=boxes)
            check_finite(NAME, terms, inputs)
        return terms, pairs, batch.gt_mask, matching.num_iter

    def _losses(
        self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor, pairs: Pairs
    ) -> dict[str, Tensor]:
        """Classification loss of each prediction, (B * N,), and localisation losses of each pair, (K,)."""
        gt_boxes = gt_boxes.flatten(0, 1)
        num_negatives = None
        if self.neg_to_pos_ratio is not None:
            num_negatives = (self.neg_to_pos_ratio * pairs.mass).round()
        losses = dict(
            loss_cls=classification_losses(
                self.loss_cls,
                logits,
                gt_labels.flatten()[pairs.gts],
                self._background(logits),
                pairs,
                lambda: bbox_overlaps(boxes.detach()[pairs.rows], gt_boxes[pairs.gts], is_aligned=True),
                num_negatives,
            )
        )
        for name, loss in zip(self._box_names(), self.losses_bbox):
            losses[name] = box_losses(loss, boxes, gt_boxes, pairs)
        return losses

    def _box_names(self) -> list[str]:
        if len(self.losses_bbox) == 1:
            return ['loss_bbox']
        names: list[str] = []
        for loss in self.losses_bbox:
            name = 'loss_bbox_' + type(loss).__name__.lower().removesuffix('loss')
            names.append(name if name not in names else f'{name}{len(names)}')
        return names

    def _background(self, logits: Tensor) -> int:
        """Label of the background."""
        columns = logits.size(-1)
        return {'first': 0, 'last': columns - 1, 'none': columns}[self.bg_class_position]

    def _divisor(self, name: str, gt_labels: Tensor, pairs: Pairs, logits: Tensor) -> Tensor:
        """What 'mean' divides the term by."""
        if name != 'loss_cls':
            return pairs.weight.sum().clamp(min=1)
        mass = [pairs.weight]
        if self.bg_class_position != 'none' and self.neg_to_pos_ratio is None:
            mass.append(pairs.background)
        class_weight = getattr(self.loss_cls, 'class_weight', None)
        if class_weight is not None:
            if not isinstance(class_weight, Tensor):
                class_weight = to_device_of(logits, class_weight)
            class_weight = class_weight.to(logits).expand(logits.size(-1))
            labels: tuple[Any, ...] = (gt_labels.flatten()[pairs.gts], self._background(logits))
            mass = [part * class_weight[label] for part, label in zip(mass, labels)]
        return torch.stack([part.sum() for part in mass]).sum().clamp(min=1)
