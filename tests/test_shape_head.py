"""Heads with a U-Net of their own: blocks in closed form, what sees what, and how they begin."""

import pytest
import torch
from synthetic import lively_model, tiny_config
from torch.nn import functional as F

from mmdiff.checkpoint import build_model, load_checkpoint, save_checkpoint
from mmdiff.config import DataConfig, TrainConfig
from mmdiff.data.examples import Examples
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.heads import DenseHead
from mmdiff.network.shape_head import GROUPS, ResBlock, ShapeHead, SmallUNet
from mmdiff.training.state import start_from
from mmdiff.training.trainer import Trainer

torch.set_num_threads(1)

CONFIG = tiny_config(core="levels", stem_depth=1, shape_width=8)
CELLS = 8  # a side, of 16 pixels


@pytest.fixture(scope="module")
def model() -> MultiModalDiffusion:
    return lively_model(CONFIG)


def standardised(x: torch.Tensor) -> torch.Tensor:
    """Of every sample and group of channels, (B, C, h, w)."""
    groups = x.unflatten(1, (GROUPS, -1))
    centred = groups - groups.mean((2, 3, 4), keepdim=True)
    return (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)


@pytest.mark.parametrize("channels", [16, 24])
def test_a_block_starts_without_an_update(channels):
    torch.manual_seed(0)
    block = ResBlock(16, channels, 12)
    x = torch.randn(2, 16, 4, 4)
    expected = x
    if channels != 16:
        expected = torch.einsum("oi,bihw->bohw", block.across.weight[:, :, 0, 0], x)
        expected = expected + block.across.bias[:, None, None]
    torch.testing.assert_close(block(x, torch.randn(2, 12)), expected)


def test_a_block_is_two_convolutions_of_what_is_normalised():
    torch.manual_seed(0)
    block = ResBlock(16, 16, 12)
    torch.nn.init.normal_(block.conv2.weight, std=0.1)
    x, condition = torch.randn(2, 16, 4, 4), torch.randn(2, 12)
    scale, shift = (condition @ block.modulate.weight.T + block.modulate.bias).split(16, dim=1)

    def convolved(layer: torch.nn.Conv2d, values: torch.Tensor) -> torch.Tensor:
        """A convolution as one product with all windows."""
        windows = F.unfold(values * torch.sigmoid(values), 3, padding=1)  # (B, C * 9, h * w)
        return (layer.weight.flatten(1) @ windows + layer.bias[:, None]).view(2, 16, 4, 4)

    hidden = standardised(convolved(block.conv1, standardised(x)))
    hidden = hidden * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    expected = x + convolved(block.conv2, hidden)
    torch.testing.assert_close(block(x, condition), expected, atol=1e-4, rtol=1e-4)


def lively_unet() -> SmallUNet:
    torch.manual_seed(0)
    net = SmallUNet(6, 5, 8, 12)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def test_opposite_corners_see_each_other_and_samples_do_not():
    x = torch.randn(2, 6, CELLS, CELLS, requires_grad=True)
    out = lively_unet()(x, torch.randn(2, 12))
    assert out.shape == (2, 5, CELLS, CELLS)
    (seen,) = torch.autograd.grad(out[0, :, -1, -1].square().sum(), x)
    assert (seen[0].abs().sum(0) > 0).all() and not seen[1].any()


def test_every_output_depends_on_the_condition():
    x, net = torch.randn(1, 6, CELLS, CELLS), lively_unet()
    one, other = (net(x, torch.randn(1, 12)) for _ in range(2))
    assert not one.isclose(other).all(1).any()


def test_what_moves_by_the_coarsest_cell_moves_the_answer():
    """But for what the border changes: convolutions know no places."""
    net = lively_unet().double()
    x, condition = torch.zeros(1, 6, 128, 128, dtype=torch.float64), torch.randn(1, 12, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda values: values  # its means are of the whole picture, border included
    x[..., 60:68, 60:68] = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    here, there = net(x, condition), net(x.roll((4, -4), (2, 3)), condition)
    torch.testing.assert_close(here.roll((4, -4), (2, 3))[..., 60:72, 52:64], there[..., 60:72, 52:64])


def test_it_begins_as_a_plain_head():
    torch.manual_seed(0)
    head = ShapeHead(8, 2, 2, cells=5, condition=12, width=8)
    plain = DenseHead(8, 2, 2)
    plain.load_state_dict({name: head.state_dict()[name] for name in plain.state_dict()})
    features = torch.randn(2, 8, CELLS, CELLS)
    out = head(features, torch.randn(2, 5, CELLS, CELLS), torch.randn(2, 12))
    assert torch.equal(out, plain(features))


def test_class_maps_have_one_and_nothing_else(model):
    assert {n for n, head in model.heads.items() if isinstance(head, ShapeHead)} == {"mask"}
    without = build_model(tiny_config(core="levels", stem_depth=1))
    assert not any(isinstance(head, ShapeHead) for head in without.heads.values())


def test_the_head_sees_the_noisy_mask_its_level_and_the_label(model):
    """With the backbone's features held fixed."""
    features = torch.randn(1, 8, CELLS, CELLS)
    cells = torch.randn(1, model.backbone.enter.in_channels, CELLS, CELLS)
    codes = [
        torch.randn(1, c.in_features) if hasattr(c, "in_features") else None for c in model.backbone.codes
    ]
    levels = torch.zeros(1, 4)

    def answer(cells: torch.Tensor, codes: list, levels: torch.Tensor) -> torch.Tensor:
        condition = model.backbone(cells, codes, levels, None)[2]
        return model.heads["mask"](features, cells, condition)

    first = answer(cells, codes, levels)
    others = [None if c is None else -c for c in codes]
    for changed in (
        answer(-cells, codes, levels),
        answer(cells, others, levels),
        answer(cells, codes, levels + 1),
    ):
        assert not first.isclose(changed).all(1).any()


def test_the_first_edition_has_none():
    with pytest.raises(ValueError, match=r"model\.shape_width is 8, which only model\.core = 'levels'"):
        tiny_config(shape_width=8)


@pytest.mark.parametrize("width", [12, -8])
def test_widths_that_cannot_be_are_refused(width):
    with pytest.raises(ValueError, match=rf"model\.shape_width is {width}; give a multiple of 8, or 0"):
        tiny_config(core="levels", shape_width=width)


def test_it_needs_cells_that_can_be_halved_twice():
    with pytest.raises(ValueError, match="needs a multiple of 4 cells a side, not 6"):
        build_model(tiny_config(core="levels", shape_width=8, image_size=12))


def test_a_model_without_it_is_a_start(tmp_path):
    """Its masks stay what they were until the new part has learnt something."""
    plain = lively_model(tiny_config(core="levels", stem_depth=1))
    save_checkpoint(plain, tmp_path)
    generator = torch.Generator().manual_seed(0)
    stored = {"image": torch.randint(256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)}
    examples = Examples(stored, {"image": torch.ones(4, dtype=torch.bool)}, [""] * 4)
    trainer = Trainer(TrainConfig(CONFIG, DataConfig()), examples, torch.device("cpu"))
    start_from(trainer, str(tmp_path))
    z, levels = torch.randn(2, *plain.z_shape, generator=generator), torch.zeros(2, 4)
    one, other = (
        net(z, levels, net.nothing_given(2, torch.device("cpu")))["mask"]
        for net in (load_checkpoint(tmp_path), trainer.model.eval())
    )
    assert torch.equal(one, other)
