"""Import packages of optional extras, and look up the versions of installed packages."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def need(package: str, extra: str = "deploy", install: str = "") -> Any:
    """Import a package of an extra; if it is missing, raise ImportError with the pip command.

    For OpenVINO and NNCF, first block openvino_telemetry, which reports to Google Analytics, if it is not yet imported.

    Args:
        package: name to import, such as "onnxruntime.quantization".
        extra: name of metamix's extra, for the message.
        install: name for pip if it differs from the name to import.
    """
    top = package.partition(".")[0]
    if top in ("openvino", "nncf"):
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes its import fail
    try:
        return import_module(package)
    except ModuleNotFoundError as error:  # the message of any other ImportError says more
        if error.name != top:
            raise
        name = install or top
        raise ImportError(f"{name} is missing: pip install 'metamix[{extra}]', or just {name}") from None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages; leave out packages that are not installed under exactly these names."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
