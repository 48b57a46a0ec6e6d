"""Put configs/ and weights/ inside the package of a wheel. An editable install finds them in the clone."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface):
    """Add the two folders to a standard wheel.

    `force-include` in pyproject.toml would copy them into site-packages for editable installs too, where the copy hides
    the package.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"] |= {"configs": "metamix/shipped/configs", "weights": "metamix/shipped/weights"}
