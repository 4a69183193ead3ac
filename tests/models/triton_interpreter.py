"""Kernels on machines without a GPU: run by Triton's interpreter, and compiled for devices that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def interpreted(script: str) -> dict:
    """What a script prints as JSON in its last line, in a process in which Triton interprets."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def compile_for(kernel, types: dict[str, str], constants: dict, capability: int, warps: int) -> str:
    """The kernel's PTX for a device; arguments without a type are pointers to float32.

    The interpreter takes what the compiler may refuse, such as a loop that changes the type of what it carries.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: types.get(name, "*fp32") for name in kernel.arg_names}, constants)
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": warps}).asm["ptx"]
