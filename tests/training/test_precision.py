"""bfloat16 contexts: used only on processors with bfloat16 instructions, and restored afterwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defect_core.training import precision
from defect_core.training.precision import bf16_autocast, bf16_inference


def _set_native_bf16(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: is_native, raising=False)


@pytest.mark.parametrize("is_native", [True, False])
def test_inference_is_bf16_only_with_native_instructions(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, is_native)
    convolution, norm, linear = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4 * 36, 1)
    network = nn.Sequential(convolution, norm, nn.Flatten(), linear)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    with bf16_inference(network):
        dtypes = {parameter.dtype for layer in (convolution, linear) for parameter in layer.parameters()}
        assert dtypes == ({torch.bfloat16} if is_native else {torch.float32})
        assert norm.weight.dtype == torch.float32
        assert network(torch.zeros(1, 1, 8, 8)).dtype == dtypes.pop()
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_weights_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, True)
    network = nn.Linear(2, 2)
    with pytest.raises(KeyboardInterrupt), bf16_inference(network):
        raise KeyboardInterrupt
    assert network.weight.dtype == torch.float32


@pytest.mark.parametrize("is_native", [True, False])
def test_training_is_bf16_only_with_native_instructions(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, is_native)
    with bf16_autocast(torch.device("cpu"), 16):
        assert torch.is_autocast_enabled("cpu") == is_native
    with bf16_autocast(torch.device("cpu"), 64):
        assert not torch.is_autocast_enabled("cpu")


def test_plain_attention_equals_torch_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, True)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).unbind()
    options = ({}, {"scale": 0.7}, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()})
    expected = [F.scaled_dot_product_attention(query, key, value, **each) for each in options]
    attention, calls = precision._attention, []
    monkeypatch.setattr(precision, "_attention", lambda *a, **k: calls.append(a) or attention(*a, **k))
    contexts = bf16_inference(nn.Linear(1, 1)), bf16_autocast(torch.device("cpu"), 3, plain_attention=True)
    for number, context in enumerate(contexts, start=1):
        with context:
            results = [F.scaled_dot_product_attention(query, key, value, **each) for each in options]
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result.float(), reference, atol=0.03, rtol=0)
        assert len(calls) == 2 * number  # with a mask, torch's own attention runs
