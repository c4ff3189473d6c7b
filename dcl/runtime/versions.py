"""What a result depends on besides its settings: processor, libraries, revision."""

import os
import platform
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dcl

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def machine(device: str | torch.device) -> dict[str, Any]:
    """Processor, threads, this process's peak memory and, if it was used, the GPU's."""
    info: dict[str, Any] = {"cpu": platform.processor() or platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        info["cpu"] = names[0].split(":")[1].strip() if names else info["cpu"]
    info |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if resource:
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes on macOS, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        info["memory_gib"] = round(peak / unit, 2)
    if torch.device(device).type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
        info["gpu_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return info


def versions() -> dict[str, str]:
    """Python, the libraries that results depend on, and the revision of this code."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found | {"revision": _revision()}


def _revision() -> str:
    """The git revision of the repository that contains the package; without one, its version."""
    file = Path(dcl.__file__).resolve()
    git = partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, check=True)
    try:  # an installed package may lie below a repository that does not track it: the user's own
        git(["git", "ls-files", "--error-unmatch", file.name])
        return git(["git", "describe", "--always", "--dirty"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return dcl.__version__
