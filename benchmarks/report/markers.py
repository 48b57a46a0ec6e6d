"""Text between markers, in README.md and docs/: what a command wrote from files and what a person wrote stay apart."""

from pathlib import Path

from benchmarks.paths import README


def marker(name: str, command: str) -> str:
    """The line above the part called `name`, with the command that writes it."""
    return f"<!-- {name}: python benchmarks/{command} -->"


def fill(text: str, name: str, command: str, body: str) -> str:
    """`text` with `body` in the part called `name`, which has to be there."""
    begin, end = marker(name, command), f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{body}\n\n{end}{rest.split(end)[1]}"


def refresh(name: str, command: str, body: str, check: bool, path: Path = README) -> None:
    """Write that part of `path`; with `check` write nothing and exit with a message where it is stale."""
    text = path.read_text()
    fresh = fill(text, name, command, body)
    if not check:
        path.write_text(fresh)
    elif fresh != text:
        raise SystemExit(f"{path.name} is stale: run `python benchmarks/{command}`")
