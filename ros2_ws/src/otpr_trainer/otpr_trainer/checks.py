# SPDX-License-Identifier: Apache-2.0
"""The trainer's part of ``otpr doctor``."""

from collections.abc import Iterator

from otpr_policy.finding import Finding, Status, check_modules

_REMEDY = "pip install -c requirements/constraints.txt -r requirements/torch.txt, then the same with requirements/trainer.txt"


def findings() -> Iterator[Finding]:
    """Learning, optimal transport and export."""
    modules = check_modules(
        [("torch", "torch"), ("ot", "POT"), ("onnxscript", "onnxscript"), ("safetensors", "safetensors"), ("tensorboard", "tensorboard")],
        _REMEDY,
    )
    yield from modules
    if modules[0].status is Status.OK:
        yield _device()


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(Status.OK, "device", torch.cuda.get_device_name(0))
    return Finding(Status.OK, "device", f"CPU, {torch.get_num_threads()} threads")
