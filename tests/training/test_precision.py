"""bfloat16 contexts: used only on processors with bfloat16 instructions, and restored afterwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defect_core.backbones.compute import ComputeConfig
from defect_core.training import precision
from defect_core.training.precision import inference_autocast, training_autocast


def _set_native_bf16(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: is_native, raising=False)


@pytest.mark.parametrize("is_native", [True, False])
def test_inference_is_bf16_only_with_native_instructions(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, is_native)
    convolution, norm, linear = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4 * 36, 1)
    network = nn.Sequential(convolution, norm, nn.Flatten(), linear)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    with inference_autocast(network):
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
    with pytest.raises(KeyboardInterrupt), inference_autocast(network):
        raise KeyboardInterrupt
    assert network.weight.dtype == torch.float32


@pytest.mark.parametrize("is_native", [True, False])
def test_training_is_bf16_only_with_native_instructions(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, is_native)
    with training_autocast(torch.device("cpu"), 16):
        assert torch.is_autocast_enabled("cpu") == is_native
    with training_autocast(torch.device("cpu"), 64):
        assert not torch.is_autocast_enabled("cpu")


def test_plain_attention_equals_torch_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_native_bf16(monkeypatch, True)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).unbind()
    options = ({}, {"scale": 0.7}, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()})
    expected = [F.scaled_dot_product_attention(query, key, value, **each) for each in options]
    attention, calls = precision._attention, []
    monkeypatch.setattr(precision, "_attention", lambda *a, **k: calls.append(a) or attention(*a, **k))
    contexts = inference_autocast(nn.Linear(1, 1)), training_autocast(torch.device("cpu"), 3, plain_attention=True)
    for number, context in enumerate(contexts, start=1):
        with context:
            results = [F.scaled_dot_product_attention(query, key, value, **each) for each in options]
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result.float(), reference, atol=0.03, rtol=0)
        assert len(calls) == 2 * number  # with a mask, torch's own attention runs


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_number_type_is_that_of_the_settings(dtype: str, expected: torch.dtype) -> None:
    compute, linear = ComputeConfig(dtype=dtype), nn.Linear(4, 4)
    with training_autocast(torch.device("cpu"), 64, compute=compute):
        assert linear(torch.zeros(1, 4)).dtype == expected and linear.weight.dtype == torch.float32
    with inference_autocast(linear, compute=compute):
        assert linear(torch.zeros(1, 4)).dtype == linear.weight.dtype == expected


def test_unfused_attention_can_be_selected() -> None:
    compute = ComputeConfig(dtype="fp32", attention="math")
    for context in (training_autocast(torch.device("cpu"), compute=compute), inference_autocast(compute=compute)):
        with context:
            assert not torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
