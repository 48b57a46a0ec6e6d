"""Edit folders of exported models as an attacker could, with a new checksum; skip tests if an engine is missing."""

import json
from importlib.util import find_spec

import pytest

from metamix.deploy.artifact import with_checksum

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf") if find_spec(name) is None]
needs_engines = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed: pip install 'metamix[deploy]'")


def edit(folder, **entries):
    """Change entries of export.json and compute its checksum again; an entry that is set to None is removed."""
    file = folder / "export.json"
    changed = json.loads(file.read_text()) | entries
    kept = {name: value for name, value in changed.items() if value is not None}
    file.write_text(json.dumps(with_checksum(kept)))
