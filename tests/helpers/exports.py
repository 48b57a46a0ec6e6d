"""Edit folders of exported models as an attacker could: with a new checksum."""

import json

from metamix.deploy.artifact import with_checksum


def edit(folder, **entries):
    """Change entries of export.json and compute its checksum again; the entry None is removed."""
    file = folder / "export.json"
    changed = json.loads(file.read_text()) | entries
    kept = {name: value for name, value in changed.items() if value is not None}
    file.write_text(json.dumps(with_checksum(kept)))
