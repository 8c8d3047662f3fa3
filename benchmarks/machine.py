"""What figures depend on, besides the code. Knows no model."""

import importlib.metadata
import os
import platform

import torch

from support.devices import BF16_INSTRUCTIONS


def machine() -> dict[str, object]:
    """Versions, processor, threads, and the CUDA device if there is one."""
    capabilities = torch.cpu.get_capabilities()
    found: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "architecture": platform.machine(),
        "processor": capabilities.get("cpu_name") or platform.processor(),
        "bf16_instructions": [name for name in BF16_INSTRUCTIONS if capabilities.get(name)],
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def version(package: str) -> str | None:
    """The version of an installed package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
