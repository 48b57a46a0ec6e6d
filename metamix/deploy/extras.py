"""Import packages of extras, and give the versions of the packages for deployment."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

NAMES = {"onnx": "ONNX", "onnxscript": "ONNX", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "nncf": "NNCF"}


def need(package: str, extra: str = "deploy", install: str = "") -> Any:
    """Import a package of an extra, such as "onnxruntime.quantization", or say that pip must `install` it.

    Importing OpenVINO or NNCF with it stops their reports to Google Analytics, unless openvino_telemetry is imported.
    """
    top = package.partition(".")[0]
    if top in ("openvino", "nncf"):
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes its import fail
    try:
        return import_module(package)
    except ModuleNotFoundError as error:  # another ImportError is a broken installation: its own message says more
        if error.name != top:
            raise
        name = NAMES.get(top, install or top)
        raise ImportError(f"{name} is missing: pip install 'metamix[{extra}]', or only {install or top}") from None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages. A package under another name, such as onnxruntime-gpu, is left out."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
