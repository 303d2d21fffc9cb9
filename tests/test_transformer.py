"""Tokens that go round the middle blocks in training: which they are, and that sampling has none."""

from dataclasses import replace

import pytest
import torch
from synthetic import lively_model, tiny_config
from torch import nn

from mmdiff.config import ModelConfig
from mmdiff.network.transformer import Denoiser

torch.set_num_threads(1)

CONFIG = replace(tiny_config(core="levels"), depth=4)
BATCH, PATCHES = 3, 16


def backbone(config: ModelConfig) -> Denoiser:
    return lively_model(config).backbone


def tokens_of(net: Denoiser) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    """What goes into each of the blocks, and what comes out of it; how many modalities there are."""
    inputs, outputs = [], []

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        inputs.append(given[0])
        outputs.append(out)

    hooks = [block.register_forward_hook(keep) for block in [*net.early, *net.late]]
    modalities = len(net.registers)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, modalities + PATCHES, net.width, generator=generator)
    modulation = torch.randn(BATCH, 6, net.width, generator=generator)
    torch.manual_seed(0)
    with torch.no_grad():
        net._transform(x, modulation)
    for hook in hooks:
        hook.remove()
    return inputs, outputs, modalities


def test_the_middle_blocks_see_all_modalities_and_a_part_of_the_patches():
    net = backbone(replace(CONFIG, route=0.5)).train()
    inputs, outputs, modalities = tokens_of(net)
    assert [x.shape[1] - modalities for x in inputs] == [16, 8, 8, 16]
    first, second, last = outputs[0], inputs[1], inputs[3]
    chosen = []
    for row in range(BATCH):
        same = (first[row, None] == second[row, :, None]).all(2)  # which token of the first block is which
        assert same.sum(1).eq(1).all()
        kept = same.any(0)
        assert kept[:modalities].all()
        chosen.append(kept)
        torch.testing.assert_close(last[row, ~kept], first[row, ~kept])
        torch.testing.assert_close(last[row, same.int().argmax(1)], outputs[2][row])
    assert not torch.equal(chosen[0], chosen[1]), "each sample has patches of its own"


def test_sampling_uses_all_blocks_for_all_tokens():
    routed, plain = backbone(replace(CONFIG, route=0.5)), backbone(CONFIG)
    for one, other in zip(tokens_of(routed.eval())[1], tokens_of(plain.eval())[1], strict=True):
        assert torch.equal(one, other)


def test_without_routing_training_sees_all_tokens():
    inputs, _, modalities = tokens_of(backbone(CONFIG).train())
    assert all(x.shape[1] == modalities + PATCHES for x in inputs)


@pytest.mark.parametrize(("route", "depth"), [(1.0, 4), (-0.1, 4), (0.5, 3)])
def test_a_share_that_cannot_be_is_refused(route, depth):
    with pytest.raises(ValueError, match=r"model\.route is .* give a share from 0 to below 1"):
        replace(CONFIG, route=route, depth=depth)
