"""Which number format is chosen for which hardware; nothing of it depends on the machine that runs the tests."""

import pytest
import torch

from configs.errors import ConfigError
from training.precision import (
    Precision,
    choose_available_precision,
    choose_device,
    choose_memory_format,
    choose_precision,
    has_bf16,
)

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


@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_a_network_trained_elsewhere_is_run_in_float32_where_its_format_is_missing(hardware, setting, caplog):
    hardware()
    assert choose_available_precision(setting, CPU) == Precision("cpu", None)
    assert f"'{setting}', which this cpu does not compute: float32" in caplog.text
    hardware(amx=True, capability=(8, 0))
    for again in (False, True, "auto", "bf16"):
        assert choose_available_precision(again, CPU) == choose_precision(again, CPU)
    assert choose_available_precision("fp16", CUDA).dtype == torch.float16
    assert has_bf16(CPU) and has_bf16(CUDA) and not has_bf16(MPS)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_precision_has_a_setting_that_means_it(hardware, device, dtype):
    hardware(amx=True, capability=(8, 0))
    precision = Precision(device.type, dtype)
    assert choose_available_precision(precision.setting, device) == (
        Precision("cpu", None) if (device, dtype) == (CPU, torch.float16) else precision
    )


def test_a_memory_format_that_nobody_settled_is_what_the_backbone_prefers():
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    for prefers in (False, True):
        assert choose_memory_format("auto", prefers) == formats[prefers]
        assert {setting: choose_memory_format(setting, prefers) for setting in formats} == formats


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
