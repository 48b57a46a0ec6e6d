"""Test that commands parse their arguments into dataclasses, with the error messages of `metamix train`."""

import re
import shlex
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

import pytest

from metamix.utils.options import Options, option, parse_command, positional
from metamix.utils.rules import Count, Share


@dataclass
class Command(Options):
    """Make toys."""

    places: tuple[Path, ...] = positional("images, or folders with images", metavar="IMAGE_OR_FOLDER")
    output: Path = option(MISSING, "folder to write", metavar="FOLDER")
    top: Count = option(5, "labels for each image")
    threshold: Share | None = option(None, "least score")
    format: Literal["table", "csv"] = option("table", "how to print")
    sizes: tuple[int, ...] = option((1, 8), "sizes of batches", group="speed")
    img_size: int | tuple[int, ...] | None = option(None, "side, or height and width")
    flip: bool = option(False, "also flip the images")
    weight: float = option(1.0, "weight of flipped images", needs="flip")
    limit: Count | None = option(None, "most labels", needs="flip")
    smooth: bool = option(False, "smooth the scores", needs="flip")


@dataclass
class Maybe:
    """A command whose arguments may be left out."""

    data: Path | None = positional("folder", metavar="DATA", default=None)
    patterns: tuple[str, ...] = positional("names", metavar="PATTERN", default=("*",))


def read(line, cls=Command, **settings):
    return parse_command(shlex.split(line), cls, "metamix toys", **settings)


def test_every_way_to_write_an_argument_is_read(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options, names = read("a.png --output=~/out --img_size=480,640 b.png --sizes 1 --flip -- -c.png --flip")
    assert options.places == (Path("a.png"), Path("b.png"), Path("-c.png"), Path("--flip"))
    assert (options.output, options.img_size, options.sizes) == (Path("/home/me/out"), (480, 640), (1,))
    assert names == {"places", "output", "img_size", "sizes", "flip"} and options.top == 5
    options, names = read("a.png --output out --no-flip --img-size 48")
    assert (options.top, options.sizes, options.img_size, options.flip) == (5, (1, 8), 48, False) and "top" not in names


def test_an_option_that_is_switched_off_needs_no_other_option():
    options, names = read("a.png --output out --limit none --no-smooth")
    assert (options.limit, options.smooth) == (None, False) and {"limit", "smooth"} <= names


def test_optional_arguments_may_be_left_out():
    assert read("", Maybe) == (Maybe(None, ("*",)), set())
    assert read("folder a 'b*'", Maybe)[0] == Maybe(Path("folder"), ("a", "b*"))
    assert read("'~/a'", Maybe)[0].data == Path.home() / "a"


def test_help_shows_arguments_options_and_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("--help --bogus", epilog="examples:\n  metamix toys a.png")
    text = capsys.readouterr().out
    assert text.startswith("usage: metamix toys IMAGE_OR_FOLDER... [--option value ...]\n\nMake toys.\n\narguments:\n")
    for words in ("IMAGE_OR_FOLDER  ", "images, or folders with images", "--output FOLDER", "--format {table,csv}",
                  "(default: 5)", "(default: 1,8)", "--flip, --no-flip", "--import MODULE", "speed:",
                  "examples:\n  metamix toys a.png\n"):  # fmt: skip
        assert words in text
    assert "MISSING" not in text and "None" not in text
    with pytest.raises(SystemExit, match="0"):
        read("--help", Maybe)
    assert "usage: metamix toys [DATA] [PATTERN...]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, said",
    [
        ("", "IMAGE_OR_FOLDER is missing: images, or folders with images. metamix toys --help lists all options"),
        ("a.png", "--output is missing: folder to write."),
        ("a.png --topp 3", "there is no option --topp; did you mean '--top'?"),
        ("-a.png --output b", "there is no option -a.png; write -- before a name that begins with -"),
        ("a.png --output b --top 0", "--top is '0', but it must be a whole number of at least 1"),
        ("'' --output b", "IMAGE_OR_FOLDER is empty: give a path, or . for the current folder"),
        ("a.png --output ''", "--output is empty: give a path"),
        ("a.png --output b --weight 2", "--weight has no effect without --flip; give both or neither"),
        ("a.png --output b --smooth", "--smooth has no effect without --flip; give both or neither"),
        ("a.png --output b --import no_such_module", "--import no_such_module failed: No module named"),
    ],
)
def test_wrong_arguments_are_refused(line, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        read(line)


def test_modules_are_imported_before_options_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "module_of_toys.py").write_text("")
    with pytest.raises(ValueError, match="there is no option --bogus"):
        read("--import module_of_toys --bogus")
    assert "module_of_toys" in sys.modules
