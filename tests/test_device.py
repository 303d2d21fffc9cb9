"""The device and its fast precision."""

import pytest
import torch

from mmdiff.device import choose_device, choose_precision, fast_bfloat16


def test_a_device_that_is_not_there_is_named():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'abacus' cannot be used .* try 'auto' or 'cpu'"):
        choose_device("abacus")


@pytest.mark.parametrize("amx, avx512", [(False, False), (True, False), (False, True)])
def test_bfloat16_is_fast_where_there_are_instructions_for_it(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert fast_bfloat16(torch.device("cpu")) is (amx or avx512)
    assert fast_bfloat16(torch.device("cuda")) and not fast_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("fast", [False, True])
def test_the_precision_is_bfloat16_by_itself_where_that_is_fast(monkeypatch, fast):
    monkeypatch.setattr("mmdiff.device.fast_bfloat16", lambda device: fast)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) is (torch.bfloat16 if fast else torch.float32)
    assert choose_precision("float32", cpu) is torch.float32
    assert choose_precision("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(ValueError, match="precision is 'half'; choose among auto, float32, bfloat16"):
        choose_precision("half", cpu)
