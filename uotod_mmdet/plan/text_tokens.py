"""Classification losses of the tokens of a text under a plan: each ground truth is a map of tokens, not a class."""

import torch
from torch import Tensor, nn

from .pairs import Pairs


def text_token_losses(loss: nn.Module, scores: Tensor, maps: Tensor, text: Tensor, pairs: Pairs) -> Tensor:
    """Sum of the losses of the text's tokens of each prediction.

    The target of a pair is the map of its ground truth, with the weight of the pair; that of the background is 0 for
    all tokens, with the background's weight. Only where a map is not 0 a pair differs from the background, so that
    (N + K) rows of tokens are never made: one entry is, for each pair and token of its ground truth.

    Args:
        loss: A loss of single entries of mmdet's contract: prediction, target and weight of shape (E,).
        scores: Logits, finite, (B * N, T).
        maps: Target of each token, (B, M, T).
        text: True on the tokens of each image's text, (B, T') with T' <= T; others have no loss.
        pairs: The plan.

    Returns:
        (B * N,), ``loss_weight`` of the loss included.
    """
    width, images = text.size(1), max(pairs.num_images, 1)
    scores = scores[:, :width]
    maps = torch.where(text[:, None], maps[:, :, :width], 0).flatten(0, 1).to(scores.dtype)
    # The tokens of ground truth j are places starts[j] to starts[j] + counts[j] of this list.
    tokens, counts = maps.nonzero()[:, 1], (maps != 0).sum(1)
    starts, per_pair = counts.cumsum(0) - counts, counts[pairs.gts]
    entry = torch.repeat_interleave(torch.arange(len(pairs.gts), device=scores.device), per_pair)
    place = torch.arange(len(entry), device=scores.device) - (per_pair.cumsum(0) - per_pair)[entry]
    rows, gts, weight = pairs.rows[entry], pairs.gts[entry], pairs.weight[entry]
    token = tokens[starts[gts] + place]

    real = text[:, None].expand(-1, len(scores) // images, -1).flatten(0, 1)
    rest = (pairs.row_mass[:, None] * real).index_put((rows, token), -weight, accumulate=True).clamp(min=0)
    none = torch.zeros_like(rest).flatten()
    of_rest = loss(scores.flatten(), none, rest.flatten(), reduction_override='none')
    of_maps = loss(scores[rows, token], maps[gts, token], weight, reduction_override='none')
    return of_rest.view_as(scores).sum(1).index_add(0, rows, of_maps)
