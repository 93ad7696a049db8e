"""Shared code of the dense heads: priors, one matching of all images and levels, averages."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Optional, Union

import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from uotod_mmdet.assigners import ForeignAssigner, TransportAssigner, batch_matcher, check_assigner
from uotod_mmdet.costs import make_batch
from uotod_mmdet.losses.checks import check_finite, full_precision
from uotod_mmdet.ops import act_if
from uotod_mmdet.plan import (
    MIN_WEIGHT,
    Pairs,
    check_box_loss,
    check_classification_loss,
    check_min_weight,
    expand,
    plan_statistics,
)

from .checks import check_floats, check_gt_bboxes, check_images


class Matched(NamedTuple):
    """The plan of a batch and what its pairs refer to."""

    pairs: Pairs
    scores: Tensor  # (B * N, C) of all predictions
    priors: Tensor  # (K, 4) prior of each pair, pixels: an anchor, or a point and its strides
    gt_bboxes: Tensor  # (K, 4) its ground truth, pixels
    gt_labels: Tensor  # (K,)
    inside: Tensor  # (B * N,) False on priors on the padding or outside the border
    num_gts: int  # B * M, padding included
    statistics: dict[str, Tensor]

    @property
    def num_pos(self) -> Tensor:
        """Matched mass of the batch, each image's at least 1, as mmdet counts positives."""
        return self.pairs.mass.clamp(min=1).sum()


class DenseHead:
    """Mixin of the dense heads that train on the whole plan.

    Args:
        min_weight: Pairs of prediction and ground truth lighter than this are dropped; 0 keeps all.
        *args, **kwargs: mmdet's.
    """

    prior_format: ClassVar[str] = 'anchor'
    """What the priors are: 'anchor' (x1, y1, x2, y2) or 'point' (x, y, stride_x, stride_y)."""

    score_format: ClassVar[str] = 'logits'
    """What the scores are that the assigner gets: 'logits' or 'probabilities'."""

    plan_methods: ClassVar[tuple[str, ...]] = ('loss_by_feat',)
    """Methods that put the losses on the plan; see :func:`~uotod_mmdet.heads.on_plan`."""
    plan_bypasses: ClassVar[tuple[str, ...]] = ('loss_by_feat_single', 'get_targets', '_get_targets_single')
    """Methods of mmdet's head that training on the plan does not call."""

    # What mmdet's head, the other base, brings.
    assigner: Any
    bbox_coder: Any
    cls_out_channels: int
    get_anchors: Callable
    num_base_priors: Any
    num_classes: int
    prior_generator: Any
    sampler: Any
    train_cfg: Any
    use_sigmoid_cls: bool

    def __init__(self, *args: Any, min_weight: float = MIN_WEIGHT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.min_weight = check_min_weight(min_weight)
        if self.train_cfg:
            self._check_config()
        if not isinstance(getattr(self, 'sampler', PseudoSampler()), PseudoSampler):
            raise ValueError(
                f'{type(self).__name__} trains on all predictions, weighted by the plan, and cannot sample: take '
                f"train_cfg.sampler (now {type(self.sampler).__name__}) out, or set it to dict(type='PseudoSampler')."
            )

    def _check_config(self) -> None:
        """Refuse an assigner or losses that cannot train this head; later the error would be obscure, or missing."""
        name = type(self).__name__
        self.matcher = self._matcher_of(self.assigner)
        if hasattr(self, 'loss_cls'):  # SSDHead sets its own later
            check_classification_loss(name, self.loss_cls, self.num_classes, self.cls_out_channels)
            if getattr(self.loss_cls, 'use_sigmoid', self.use_sigmoid_cls) != self.use_sigmoid_cls:
                raise ValueError(
                    f'{name}: {type(self.loss_cls).__name__} scores classes by a sigmoid, but the config of loss_cls '
                    'does not say use_sigmoid=True, by which mmdet gives the head a column for each class only: add it.'
                )
        for argument in ('loss_bbox', 'loss_bbox_refine'):
            if isinstance(getattr(self, argument, None), torch.nn.Module):
                check_box_loss(name, argument, getattr(self, argument))

    def _matcher_of(self, assigner: Any, **known: Any) -> Union[TransportAssigner, ForeignAssigner]:
        """The matcher of a batch of an assigner; ``known`` is what mmdet's head hands the assigner besides."""
        check_assigner(assigner, f'{self.prior_format}s')
        return batch_matcher(assigner, **known)

    def check_inputs(
        self,
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Optional[Sequence[InstanceData]],
        cls_scores: Sequence[Tensor],
        **maps: tuple[Sequence[Tensor], int],
    ) -> None:
        """Check the arguments of ``loss_by_feat``.

        Args:
            batch_gt_instances: Ground truths of each image.
            batch_img_metas: Meta information of each image.
            batch_gt_instances_ignore: Ignored boxes of each image.
            cls_scores: Scores of each level.
            **maps: What else the head predicts, by the name of the argument: the feature maps of each level, and the
                channels of a prior.

        Raises:
            TypeError: If a feature map is not a floating-point tensor.
            ValueError: If a feature map has another shape, or the arguments differ in their number of images.
        """
        owner, levels = type(self).__name__, self.prior_generator.num_levels
        priors = self.num_base_priors if isinstance(self.num_base_priors, list) else [self.num_base_priors] * levels
        images, sizes = None, [(None, None)] * levels
        for name, (found, channels) in dict(cls_scores=(cls_scores, self.cls_out_channels), **maps).items():
            if not isinstance(found, (list, tuple)) or len(found) != levels:
                came = f'{len(found)}' if isinstance(found, (list, tuple)) else f'a {type(found).__name__}'
                raise ValueError(
                    f'{owner}: {name} must be a list of one feature map for each of the {levels} levels of '
                    f'prior_generator, got {came}.'
                )
            for index, level in enumerate(found):
                shape = images, priors[index] * channels, *sizes[index]
                check_floats(owner, f'{name}[{index}]', level, '(B, channels, H, W)', shape)
                images, sizes[index] = len(level), level.shape[2:]
        check_images(owner, images, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)

    def finished(self, losses: dict[str, Tensor], matched: Matched, **inputs: Tensor) -> dict[str, Tensor]:
        """The losses beside the plan's statistics.

        Args:
            losses: By name, each a number.
            matched: What :meth:`match` returned.
            **inputs: What the head predicts besides scores, by the name of the argument.

        Raises:
            ValueError: If a loss is not finite, on a GPU during a later call (see ops/deferred.py).
        """
        check_finite(type(self).__name__, losses, dict(cls_scores=matched.scores, **inputs))
        return {**losses, **matched.statistics}

    def flatten(self, maps: Sequence[Tensor], channels: int) -> Tensor:
        """Feature maps (B, A * channels, H, W) of all levels as (B, N, channels), half precision as float32."""
        return torch.cat(
            [full_precision(level).permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in maps], 1
        )

    def strides_of(self, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """Stride of each position of the feature maps of all levels, like ``like`` in dtype and device, (N, 1)."""
        levels = zip(maps, self.prior_generator.strides)
        return torch.cat([like.new_full((level.shape[2] * level.shape[3], 1), stride[0]) for level, stride in levels])

    def decoder(self, deltas: Tensor) -> Callable[[Tensor], Tensor]:
        """The ``decode`` of :meth:`match` for heads that predict deltas of anchors, (B, N, 4)."""

        def decode(priors: Tensor) -> Tensor:
            boxes = self.bbox_coder.decode(priors.repeat(len(deltas), 1), deltas.flatten(0, 1))
            return get_box_tensor(boxes).view_as(deltas)

        return decode

    def grid(self, sizes: Sequence[Any], batch_img_metas: Sequence[dict], like: Tensor) -> tuple[list[Tensor], Tensor]:
        """Priors of each level, (N_l, 4), and which of all take part in each image, (B, N).

        Args:
            sizes: Height and width of the feature map of each level.
            batch_img_metas: Meta information of each image.
            like: A tensor of the wanted dtype and device.
        """
        anchor_list, flag_list = self.get_anchors(sizes, batch_img_metas, device=like.device)
        levels = [get_box_tensor(anchors).to(like.dtype) for anchors in anchor_list[0]]
        priors = torch.cat(levels)
        inside = [
            anchor_inside_flags(priors, torch.cat(flags), meta['img_shape'][:2], self.train_cfg['allowed_border'])
            for flags, meta in zip(flag_list, batch_img_metas)
        ]
        return levels, torch.stack(inside)

    def match(
        self,
        cls_scores: Sequence[Tensor],
        decode: Callable[[Tensor], Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Optional[Sequence[InstanceData]],
        matching_scores: Optional[Tensor] = None,
        matcher: Union[TransportAssigner, ForeignAssigner, None] = None,
    ) -> Matched:
        """Match all images.

        Args:
            cls_scores: Scores of each level, (B, A * C, H, W).
            decode: Gives the predicted boxes (B, N, 4), pixels, of the priors (N, 4); called without gradient, and only
                if the assigner reads predicted boxes.
            batch_gt_instances: Ground truths of each image.
            batch_img_metas: Meta information of each image.
            batch_gt_instances_ignore: Ignored boxes of each image.
            matching_scores: Scores that the assigner gets, (B, N, C). None: ``cls_scores``.
            matcher: Matcher of the batch. None: ``self.matcher``.
        """
        matcher = self.matcher if matcher is None else matcher
        scores = self.flatten(cls_scores, self.cls_out_channels)
        levels, inside = self.grid([level.shape[-2:] for level in cls_scores], batch_img_metas, scores)
        priors = torch.cat(levels)

        def complain() -> None:
            raise ValueError(
                'An image has no anchor inside its border. Check the image and anchor sizes, or set '
                'train_cfg.allowed_border=-1, which keeps anchors that reach over the border.'
            )

        act_if(~inside.any(1).all(), complain)
        matching_scores = scores if matching_scores is None else matching_scores
        predictions = dict(scores=matching_scores.detach(), priors=priors.expand(len(scores), -1, -1))
        if matcher.reads_boxes:
            with torch.no_grad():
                predictions['bboxes'] = decode(priors)
        batch = make_batch(
            predictions,
            batch_gt_instances,
            batch_img_metas,
            matcher.box_source,
            batch_gt_instances_ignore,
            inside,
            self.num_classes,
            prior_format=self.prior_format,
            score_format=self.score_format,
        )
        gt_bboxes = check_gt_bboxes(type(self).__name__, batch)
        matching = matcher.match_batch(batch, [len(level) for level in levels])
        pairs = expand(matching.plan, self.min_weight)
        return Matched(
            pairs=pairs,
            scores=scores.flatten(0, 1),
            priors=priors[pairs.rows % len(priors)],
            gt_bboxes=gt_bboxes.flatten(0, 1)[pairs.gts],
            gt_labels=batch.gt_labels.flatten()[pairs.gts],
            inside=inside.flatten(),
            num_gts=batch.gt_labels.numel(),
            statistics=plan_statistics(pairs, batch.gt_mask, matching.num_iter, matcher),
        )

    def label_weights(self, pairs: Pairs) -> Pairs:
        """The pairs with train_cfg.pos_weight in their weights, for classification."""
        pos_weight = (self.train_cfg or {}).get('pos_weight', -1)
        return pairs._replace(weight=pairs.weight * pos_weight) if pos_weight > 0 else pairs
