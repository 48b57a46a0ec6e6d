"""Put configs/ and weights/ into the package in a wheel. An editable install finds them in the clone."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface):
    """Add configs/ and weights/ to a standard wheel, but not to an editable install.

    `force-include` in pyproject.toml would also copy them into site-packages for editable installs, and the copy would
    hide the package.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"] |= {"configs": "metamix/shipped/configs", "weights": "metamix/shipped/weights"}
