"""The contrastive loss for captions that repeat."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from open_clip import CLIP, ClipLoss
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdiff.device import fast_bfloat16


class PairLoss(ClipLoss):
    """CLIP loss in which all matching texts of an image share the target probability, not only its own.

    Captions of attributes repeat (16 thousand fruit pictures have 71), so a batch is full of pairs that
    match without belonging together; counted as negatives they are noise in every gradient.
    """

    def forward(self, images: Tensor, texts: Tensor, logit_scale: Tensor, matches: Tensor) -> Tensor:
        """images, texts: (B, D) unit vectors; matches: (B, B) bool, symmetric, true on the diagonal."""
        image_logits, text_logits = self.get_logits(images, texts, logit_scale)
        targets = matches / matches.sum(1, keepdim=True)
        return (F.cross_entropy(image_logits, targets) + F.cross_entropy(text_logits, targets)) / 2


@contextmanager
def quick_attention(device: torch.device) -> Iterator[None]:
    """Attention as two matrix products on CPUs, where the backward pass of the fused kernel takes several
    times as long for the few tokens here.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of every device, despite its name
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def pair_loss(model: CLIP, images: Tensor, tokens: Tensor, matches: Tensor) -> Tensor:
    """Scalar PairLoss of images (B, 3, S, S), tokens (B, L) and matches (B, B); towers in bfloat16 where it
    is fast.
    """
    device = images.device
    with quick_attention(device), torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
        image_features, text_features = model.encode_image(images), model.encode_text(tokens)
    image_features = F.normalize(image_features.float(), dim=-1)
    text_features = F.normalize(text_features.float(), dim=-1)
    return PairLoss()(image_features, text_features, model.logit_scale.exp(), matches)
