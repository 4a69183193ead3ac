"""Which number format is chosen for which hardware; nothing of it depends on the machine that runs the tests."""

import pytest
import torch

from configs.errors import ConfigError
from training.precision import Precision, choose_device, choose_precision

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def hardware(monkeypatch):
    """hardware(amx, avx512_bf16, capability) pretends to be a machine."""

    def pretend(amx: bool = False, avx512: bool = False, capability: tuple[int, int] = (7, 5)) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return pretend


@pytest.mark.parametrize("setting", [True, "auto"])
@pytest.mark.parametrize(
    ("device", "machine", "expected"),
    [
        (CPU, {}, None),
        (CPU, {"amx": True}, torch.bfloat16),
        (CPU, {"avx512": True}, torch.bfloat16),
        (CUDA, {"capability": (7, 5)}, torch.float16),
        (CUDA, {"capability": (8, 0)}, torch.bfloat16),
        (CUDA, {"capability": (9, 0)}, torch.bfloat16),
        (MPS, {"amx": True}, None),
    ],
)
def test_auto_takes_what_the_hardware_computes(hardware, setting, device, machine, expected):
    hardware(**machine)
    assert choose_precision(setting, device) == Precision(device.type, expected)


def test_false_is_float32_everywhere(hardware):
    hardware(amx=True, avx512=True, capability=(9, 0))
    assert {choose_precision(False, device).dtype for device in (CPU, CUDA, MPS)} == {None}


@pytest.mark.parametrize(("device", "setting"), [(CPU, "bf16"), (CUDA, "bf16"), (MPS, "bf16"), (CPU, "fp16")])
def test_what_is_not_there_is_refused_by_name(hardware, device, setting):
    hardware()
    with pytest.raises(ConfigError, match=f"mixed_precision '{setting}'.*auto or false"):
        choose_precision(setting, device)


def test_fp16_on_a_cpu_is_refused_even_with_bf16(hardware):
    hardware(amx=True, avx512=True)
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        choose_precision("fp16", CPU)
    assert choose_precision("bf16", CPU).name == "bf16"
    assert choose_precision("fp16", CUDA).name == "fp16"


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
)
def test_autocast_computes_in_that_format(dtype, expected):
    weight, x = torch.randn(4, 4), torch.randn(2, 4)
    precision = Precision("cpu", dtype)
    with precision.autocast():
        assert (x @ weight).dtype == expected
    assert (x @ weight).dtype == torch.float32
    assert precision.scaler().is_enabled() is (dtype == torch.float16)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA
    for setting in ("gpu", "cuda:99", "meta:x"):
        with pytest.raises(ConfigError, match=f"TRAIN.device '{setting}' cannot be used here.*auto or cpu"):
            choose_device(setting)
