"""Find broken images and bad annotations in a data set before training on it: `metamix verify`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metamix.data.options import ImageOptions
from metamix.utils.options import option, positional, take_flags
from metamix.utils.text import exit_with_message, plural, printable, printable_lines

from .find import task_of_data
from .registry import DEFAULT, find_task, list_tasks, parse_task_command

USAGE = """usage: metamix verify DATA [--task NAME] [options]

  metamix verify images                         a folder; its layout shows the task
  metamix verify cifar10                        the name of a data set, as for --data of metamix train

If the layout does not show the task, give --task NAME with one of these names:

{tasks}

Every problem is printed. If there is a problem, the exit code is 1.
To list all options of a task: metamix verify --task NAME --help."""


@dataclass
class VerifyOptions(ImageOptions):
    """Options of `metamix verify` that all tasks share. Each task derives a class that adds its own options."""

    data: str = positional("folder of the data set, or its name, as for --data of metamix train", metavar="DATA")
    data_dir: str | None = option(None, "folder of a data set that is given by its name")

    @property
    def place(self) -> tuple[str, str | None]:
        """Return the name of the data set, or "folder" if only a folder is given, and its folder."""
        if self.data_dir is None and os.path.isdir(self.data):
            return "folder", self.data
        return self.data, self.data_dir

    def problems(self) -> Iterator[str]:
        """Yield each problem of the data set when it is found."""
        raise NotImplementedError

    def summary(self, count: int) -> str:
        """Return the text to print after the problems; `count` is their number."""
        return plural(count, "problem") if count else "nothing is wrong"


def main(argv: Sequence[str]) -> None:
    """Check a data set; exit with 1 if it has a problem, and with a message if the input is invalid."""
    with exit_with_message(ValueError, OSError, ImportError):
        flags, words = take_flags(argv, "task")
        task = flags.get("task")
        if task is None and (not words or {"-h", "--help"} & set(words)):
            print(USAGE.format(tasks=list_tasks()))
            raise SystemExit(0 if words else 2)
        named = (task_of_data(word) for word in words if not word.startswith("-"))
        spec = find_task(task or next(filter(None, named), DEFAULT))
        about = "Find what is wrong with a data set."
        options, _ = parse_task_command(spec, "verify", words, about, advise=task is None)
        count = 0
        for problem in options.problems():
            print(printable(problem))
            count += 1
        print(printable_lines(options.summary(count)))
    raise SystemExit(1 if count else 0)
