"""What all matching strategies share: from predictions to costs, from costs to a plan, from a plan to AssignResult."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Optional, Union

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.arguments import number, switch
from uotod_mmdet.costs import BOX_SOURCES, Batch, costs_and_background, float_boxes, make_batch
from uotod_mmdet.ops import act_if, mask_pairs
from uotod_mmdet.registry import TASK_UTILS

from .match_inputs import checked_mask, checked_mass, gives_probabilities
from .matching import Matching, harden, on_ignored, read_hard
from .presets import how_to_name


class TransportAssigner(BaseAssigner):
    """Base of the matching strategies. A subclass implements :meth:`_solve`.

    Args:
        match_costs: mmdet match-cost config or a list of them, for example
            ``[dict(type='FocalLossCost', weight=2.0), dict(type='IoUCost', iou_mode='giou', weight=2.0)]``.
        background: Whether predictions may go to the background.
        background_cost: Cost of sending a prediction to the background, in the units of the summed match costs
            (mmdet's are negative where boxes fit well). This has an effect in unbalanced matchings only: where the
            background takes a fixed mass, a constant added to its column does not change the plan.
        box_source: Boxes that the costs compare with the ground truth: 'bboxes' (predicted), 'priors', or 'auto'
            (priors where the head hands over no predicted boxes).
        ignore_iof_thr: A prediction that is not matched and whose overlap with an ignored box, as a share of its own
            area, exceeds this takes part in no loss. -1: ignored boxes have no effect.
        keep_every_gt: Whether, in the hard reading, a ground truth that no prediction chose gets the best prediction
            that no other ground truth needs.
        hard: Whether a head of ours, too, trains on the hard reading: on a plan of zeros and ones in which each
            prediction goes to its heaviest column. mmdet's heads always do.
    """

    checks: ClassVar[dict[str, Callable[[str, Any], Any]]] = dict(
        background=switch, background_cost=number, ignore_iof_thr=number, keep_every_gt=switch, hard=switch
    )
    """Checks of attributes, those set later included: functions of name and value that return the value, or raise."""

    def __init__(
        self,
        match_costs: Union[dict, Sequence[dict]] = (),
        background: bool = True,
        background_cost: float = 0.0,
        box_source: str = 'auto',
        ignore_iof_thr: float = 0.5,
        keep_every_gt: bool = True,
        hard: bool = False,
    ) -> None:
        costs: list[Any] = list(match_costs) if isinstance(match_costs, (list, tuple)) else [match_costs]
        if not costs:
            raise ValueError(
                f"match_costs is empty: {type(self).__name__} needs at least one cost, such as dict(type='IoUCost'). "
                f'Or {how_to_name()}'
            )
        if box_source not in BOX_SOURCES:
            raise ValueError(f'box_source must be one of {BOX_SOURCES}, got {box_source!r}')
        for cost in costs:
            if not isinstance(cost, dict) and not callable(cost):
                raise TypeError(
                    f"match_costs must hold configs such as dict(type='IoUCost'), got {cost!r} of type "
                    f'{type(cost).__name__}'
                )
        self.match_costs = [TASK_UTILS.build(cost) if isinstance(cost, dict) else cost for cost in costs]
        self.background = background
        self.background_cost = background_cost
        self.box_source = box_source
        self.ignore_iof_thr = ignore_iof_thr
        self.keep_every_gt = keep_every_gt
        self.hard = hard

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.checks.get(name)
        super().__setattr__(name, value if check is None else check(name, value))

    @property
    def reads_boxes(self) -> bool:
        """Whether the assigner reads predicted boxes; if not, a dense head need not decode them."""
        return self.box_source != 'priors'

    @abstractmethod
    def _solve(
        self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor
    ) -> Union[Tensor, tuple[Tensor, Tensor]]:
        """Plan (B, N, M + 1) of a finite cost (B, N, M + 1), float32 or float64, whose last column is the background.

        Strategies that iterate return the iterations of each image, (B,), beside the plan. B, N >= 1. Padded columns
        and rows hold cost 0 and must get no mass, as must the last column without ``background``; ``pred_mask`` (B, N)
        is False on padded rows.
        """

    def _cost(self, batch: Batch) -> Tensor:
        """Cost of each pair, 0 on padding, and of the background in the last column, (B, N, M + 1)."""
        return costs_and_background(self.match_costs, batch, self.background_cost)

    def _gt_mass(self, batch: Batch) -> Optional[Tensor]:
        """Predictions' worth of mass of each ground truth (B, M), for strategies in which it depends on the image."""
        return None

    @torch.no_grad()
    def match(
        self,
        cost: Tensor,
        gt_mask: Optional[Tensor] = None,
        gt_mass: Optional[Tensor] = None,
        pred_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """Match a batch of images.

        Args:
            cost: Cost of each pair, finite on real columns, (B, N, M); integers count as the same floats.
            gt_mask: False on padded ground truths, (B, M). None: all are real.
            gt_mass: Predictions' worth of mass of each ground truth, >= 0, (B, M), in place of the assigner's own; only
                the Sinkhorn strategies use it.
            pred_mask: False on predictions that take no part, (B, N). None: all do.

        Returns:
            Plan in the dtype (the default one for integers) and on the device of ``cost``, (B, N, M + 1), last column
            the background, scaled so that a prediction matched whole to one thing has row sum 1. Padded columns and
            rows are exactly 0.

        Raises:
            TypeError: If ``cost`` is not a tensor of real numbers.
            ValueError: If shapes or devices disagree, a mask is not bool, a real entry of ``cost`` is not finite, or
                one of ``gt_mass`` negative or not finite.
        """
        if not isinstance(cost, Tensor) or cost.is_complex():
            kind = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
            raise TypeError(f'cost must be a tensor of real numbers, (B, N, M), got {kind}')
        if cost.dim() != 3:
            raise ValueError(f'cost must have shape (B, N, M), got {tuple(cost.shape)}')
        batch, num_preds, num_gts = cost.shape
        gt_mask = checked_mask('gt_mask', gt_mask, cost, (batch, num_gts))
        pred_mask = checked_mask('pred_mask', pred_mask, cost, (batch, num_preds))
        # float32 does not hold every int32.
        wide = cost.dtype in (torch.int32, torch.int64)
        solved = cost.detach().to(torch.float64 if wide else torch.promote_types(cost.dtype, torch.float32))
        solved = mask_pairs(solved, gt_mask, pred_mask)
        gt_mass = None if gt_mass is None else checked_mass(gt_mass, solved, gt_mask)

        def complain() -> None:
            if torch.isfinite(solved).all():
                return  # only the sum of finite entries overflowed
            bad = (~torch.isfinite(solved)).flatten(1).sum(1)
            image = int(bad.argmax())
            raise ValueError(
                f'cost is not finite at {int(bad[image])} of {num_preds * int(gt_mask[image].sum())} pairs of image '
                f'{image} of the batch: check the predictions for NaN and the costs for fp16 overflow'
            )

        act_if(~torch.isfinite(solved.sum()), complain)
        background = solved.new_full((batch, num_preds, 1), self.background_cost)
        plan, _ = self._solution(torch.cat([solved, background], dim=2), gt_mask, gt_mass, pred_mask)
        given = plan.to(cost.dtype if cost.is_floating_point() else torch.get_default_dtype())
        if given.element_size() < plan.element_size():

            def complain_of_dtype() -> None:
                raise ValueError(
                    f'cost is {cost.dtype}, which does not hold the largest entry of the plan, {plan.max():.3g}: give '
                    'match() the cost in float32'
                )

            act_if(~torch.isfinite(given).all(), complain_of_dtype)
        return given

    def _solution(
        self, cost: Tensor, gt_mask: Tensor, gt_mass: Optional[Tensor], pred_mask: Tensor
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Plan and iterations; see :meth:`_solve`. B and N may be 0."""
        found = self._solve(cost, gt_mask, gt_mass, pred_mask) if cost.numel() else cost
        plan, num_iter = found if isinstance(found, tuple) else (found, None)
        if self.hard and cost.numel():
            plan = harden(plan, cost, gt_mask, self.keep_every_gt)
        return plan, num_iter

    @torch.no_grad()
    def match_batch(self, batch: Batch, num_level_priors: Optional[Sequence[int]] = None) -> Matching:
        """Match a batch of images: their costs, and what :meth:`match` makes of these.

        The row of a prediction that is not matched (its background is its heaviest column) and overlaps an ignored box
        is zero. A ground truth whose box is degenerate (x2 <= x1 or y2 <= y1) is matched to nothing and logged.

        Args:
            batch: What :func:`~uotod_mmdet.costs.make_batch` returns.
            num_level_priors: Accepted and not used.

        Raises:
            ValueError: See :func:`~uotod_mmdet.costs.batch_cost`; or there are ignored boxes, but the predictions have
                none; or a subclass returns a plan of a wrong shape.
        """

        def log_degenerate() -> None:
            assert batch.gt_bboxes is not None  # without boxes none is degenerate
            for boxes, mask, gts, meta in zip(batch.gt_bboxes, batch.gt_mask, batch.gt_instances, batch.img_metas):
                degenerate = ~mask[: len(gts)]
                if degenerate.any():
                    self._log_degenerate(boxes[: len(gts)][degenerate], meta)

        act_if(batch.gt_mask.sum() != batch.num_gts, log_degenerate)
        num_images, num_preds, num_gts = batch.shape
        costs = self._cost(batch)
        pred_mask = checked_mask('pred_mask', batch.pred_mask, costs, (num_images, num_preds))
        plan, num_iter = self._solution(costs, batch.gt_mask, self._gt_mass(batch), pred_mask)
        if plan.shape != costs.shape:
            raise ValueError(
                f'{type(self).__name__} answered with a plan of shape {tuple(plan.shape)}, but {num_preds} predictions '
                f'and {num_gts} ground truths (padded) of {num_images} images need {tuple(costs.shape)}: predictions, '
                'ground truths, and the background last.'
            )
        for index, ignored in enumerate(batch.gt_instances_ignore):
            if num_preds and self.ignore_iof_thr >= 0 and ignored is not None and len(ignored):
                boxes = None if batch.bboxes is None else batch.bboxes[index]
                unmatched = plan[index].argmax(1) == num_gts
                left_out = unmatched & on_ignored(type(self).__name__, boxes, ignored, self.ignore_iof_thr)
                plan[index].masked_fill_(left_out[:, None], 0)
        return Matching(plan, costs[:, :, :-1], num_iter)

    @torch.no_grad()
    def assign(
        self,
        pred_instances: InstanceData,
        *args: Any,
        gt_instances: Optional[InstanceData] = None,
        img_meta: Optional[dict] = None,
        gt_instances_ignore: Optional[InstanceData] = None,
        num_level_priors: Optional[list[int]] = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Match one image and read the plan hard, as mmdet's heads ask for it.

        mmdet's heads pass ``gt_instances``, ``img_meta``, ``gt_instances_ignore`` and the number of priors of each
        level by name or by position, in several orders: they are told apart by their types. They do not say what their
        priors and scores are, so both are inferred from the values: see ``prior_format`` of
        :func:`~uotod_mmdet.costs.make_batch`; scores beside points with strides are probabilities if all lie in
        [0, 1], as YOLOXHead's do, and else logits.

        A ground truth whose box is degenerate (x2 <= x1 or y2 <= y1) is matched to nothing and logged.

        Args:
            pred_instances: N predictions with what the costs read: ``bboxes`` and/or ``priors`` (N, 4), ``scores``
                (N, C), ``masks``...
            gt_instances: M ground truths: ``labels`` (M,), and ``bboxes`` (M, 4) pixels, ``masks``... likewise.
            img_meta: Meta information of the image.
            gt_instances_ignore: Ignored (crowd) boxes: ``bboxes`` (I, 4) pixels.
            num_level_priors: Accepted and not used.

        Returns:
            AssignResult: ``gt_inds`` (N,) 1-based, 0 for background, -1 for part in no loss; ``max_overlaps`` (N,)
            the IoU of each prediction with its ground truth, 0 if unmatched, or None if either side has no boxes;
            ``labels`` (N,), -1 if unmatched.

        Raises:
            TypeError: If ``gt_instances`` are missing, or their labels are not integers.
            ValueError: If costs are not finite or labels are not a class, naming the image and the term; or if the head
                does not give a field that a cost needs.
        """
        for argument in args:
            if isinstance(argument, dict):
                img_meta = argument
            elif isinstance(argument, InstanceData):
                if gt_instances is None:
                    gt_instances = argument
                else:
                    gt_instances_ignore = argument
        if gt_instances is None:
            raise TypeError(f'{type(self).__name__}.assign got no gt_instances')

        score_format = 'probabilities' if gives_probabilities(pred_instances) else 'auto'
        batch = make_batch([pred_instances], [gt_instances], [img_meta], self.box_source, score_format=score_format)
        boxes = None if batch.bboxes is None else batch.bboxes[0]
        if boxes is not None and self.box_source == 'priors' and 'bboxes' in pred_instances:
            boxes = float_boxes(pred_instances.bboxes.detach())[0]  # overlaps are those of the predictions
        matching = self.match_batch(batch) if len(pred_instances) and len(gt_instances) else None
        result = read_hard(batch, boxes, matching, self.keep_every_gt)
        ignored, iof_thr = gt_instances_ignore, self.ignore_iof_thr
        if len(pred_instances) and iof_thr >= 0 and ignored is not None and len(ignored):
            unmatched, compared = result.gt_inds == 0, None if batch.bboxes is None else batch.bboxes[0]
            result.gt_inds[unmatched & on_ignored(type(self).__name__, compared, ignored, iof_thr)] = -1
        return result

    def _log_degenerate(self, boxes: Tensor, img_meta: Optional[dict]) -> None:
        image = (img_meta or {}).get('img_path', 'an image')
        print_log(
            f'{type(self).__name__}: {len(boxes)} ground truth box(es) of {image} '
            f'without area are matched to nothing, the first: {boxes[0].tolist()}. Clean the annotations, or drop such '
            "boxes with dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) in the pipeline.",
            logger='current',
            level=logging.WARNING,
        )
