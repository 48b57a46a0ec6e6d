"""Serve a web page on which several models predict one image, side by side: `metamix demo`.

Gradio makes the page, which shows what `metamix predict` and `metamix explain` write for the image, and what
`metamix benchmark` measures.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from metamix.data.files import MAX_FILE_BYTES, decode_file
from metamix.data.formats.base import is_image
from metamix.data.options import ImageOptions
from metamix.deploy.benchmark import ENGINES, benchmark, packages
from metamix.utils.extras import need
from metamix.utils.files import reason
from metamix.utils.options import option, parse_command, positional
from metamix.utils.system import exit_if_out_of_memory, prepare_device
from metamix.utils.text import exit_with_message, message, printable
from metamix.weights.find import find_weights, local_weights

from .benchmark import open_model
from .explain import draw_explanation, find_explainer
from .find import check_trust, is_exported, task_of
from .load import load
from .predict import PredictToFolder
from .registry import find_task

MOST = 4  # maximum number of models side by side
UPLOADS = "GRADIO_TEMP_DIR"  # environment variable with the folder that Gradio uploads to
STYLE = ".prose th, .prose td { padding: 2px 8px !important; text-align: left }"
EXAMPLES = """examples:
  metamix demo
  metamix demo runs/cells-retinanet runs/cells-fcos exported-cells --port 8000"""


@dataclass
class DemoOptions(ImageOptions):
    """Serve a web page on which several models predict an image, side by side."""

    runs: tuple[str, ...] = positional(
        "run folders, weight files, exports or names of weights; default: shipped weights", metavar="RUN", default=()
    )
    host: str = option("127.0.0.1", "address of the page; with 0.0.0.0 other machines can use it, without a password")
    port: Annotated[int, Field(ge=1, le=65535)] = option(7860, "port of the page")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps; times are measured on the CPU")
    trust: bool = option(False, "load a model that was exported with --format torch; its files can run code")


@dataclass
class Answer:
    """A model's answer for an image: tables by title, pictures, and messages."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: list[Image.Image] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C; exit with a message if the input is invalid."""
    with exit_with_message(ValueError, OSError, ImportError):
        options, _ = parse_command(argv, DemoOptions, "metamix demo", epilog=EXAMPLES)
        check_address(options)
        models, gradio = Models(options), need("gradio", "demo")
        try:
            with TemporaryDirectory(ignore_cleanup_errors=True) as uploads:
                os.environ |= {UPLOADS: uploads, "GRADIO_RUN_HISTORY": "False"}
                page = make_page(gradio, models, list(options.runs[:MOST]))
                where = {"server_name": options.host, "server_port": options.port, "share": False, "quiet": True}
                page.launch(**where, css=STYLE, footer_links=[], max_file_size=MAX_FILE_BYTES, prevent_thread_lock=True)
                print(printable(f"the page is at http://{options.host}:{options.port}; Ctrl-C stops it"), flush=True)
                while True:  # until a signal; on Windows, a signal does not end a longer sleep
                    time.sleep(1)
        except KeyboardInterrupt as error:  # Python would crash at exit if a thread were still computing
            os._exit(143 if error.args else 130)  # the exit codes of `metamix_cli.main`


def check_address(options: DemoOptions) -> None:
    """Raise OSError if no page can be served at the address that the options name."""
    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as error:
        why = reason(error).partition(" (while")[0]  # without the words that Python adds
        raise OSError(f"{options.host}:{options.port} cannot be used ({why}): give another --port or --host") from None


class Models:
    """The models of the page by name, each loaded when it is first used. `specs` maps the names to tasks."""

    def __init__(self, options: DemoOptions):
        self.device, self.trust = prepare_device(options.device), options.trust
        check_trust(self.trust, options.runs)
        shipped = [f"{name}.{tag}" for name, tags in local_weights().items() for tag in tags]
        self.specs = {name: find_task(task_of(str(find_weights(name)))[0]) for name in options.runs or shipped}
        self.load = lru_cache(maxsize=8)(self.open)

    def open(self, name: str) -> Any:
        """Load a model and move it to the device; an exported model runs in its engine on the CPU."""
        trained = load(name, trust=self.trust and is_exported(name))
        if not is_exported(name):
            trained.model.to(self.device)
        return trained

    def answer(self, name: str, image: Path, explain: bool) -> Answer:
        """Predict an image. If `explain` is true and the prediction has no notes, explain it too."""
        answer = Answer()
        with in_words(answer.notes):
            self.predict(name, image, answer)
            if explain and not answer.notes:
                explainer = find_explainer(name)
                with TemporaryDirectory() as folder:
                    picture = Path(folder) / "explanation.png"
                    draw_explanation(picture, explainer(self.load(name), image, None))
                    answer.pictures.append(decode_file(picture))
        answer.notes = [note.replace(str(image), image.name) for note in answer.notes]
        return answer

    def predict(self, name: str, image: Path, answer: Answer) -> None:
        """Add the pictures, tables and notes that `metamix predict` writes; if it writes no file, add its output."""
        trained, driver = self.load(name), self.specs[name].part("predict")
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            output: Any = folder if issubclass(driver, PredictToFolder) else f"{folder}/predictions.json"
            outputs = {option.name: output for option in fields(driver) if option.name == "output"}
            options = driver((image,), **outputs)
            with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
                options.run(trained)
            files = sorted(folder.rglob("*"))
            answer.pictures += [decode_file(file) for file in files if is_image(file.name)]
            for file in files:
                for record in json.loads(file.read_text()) if file.suffix == ".json" else ():
                    answer.tables |= {key: value for key, value in record.items() if isinstance(value, list)}
        lines = said.getvalue() + ("" if outputs else printed.getvalue())
        answer.notes += [line.removeprefix("left out: ") for line in lines.splitlines()]

    def latency(self, names: Sequence[str]) -> Answer:
        """Time one image in each installed engine except torch.compile, which needs a minute to compile."""
        answer, models = Answer(), []
        for name in names:
            with in_words(answer.notes):
                models.append(open_model(name, None, None, self.trust))
        if models:
            engines = [each for each in ENGINES if each != "compile" and all(map(find_spec, packages(each, "fp32")))]
            with redirect_stderr(StringIO()) as said:
                result = benchmark(models, engines=engines, precisions=("fp32",), batch_sizes=(1,), seconds=0.5)
            columns = "model", "engine", "precision", "img_size", "ms"
            title = f"latency of one image on {result['machine']['cpu']}, number of threads: {result['threads']}"
            answer.tables[title] = [{key: row[key] for key in columns} for row in result["rows"]]
            failed = [message(f"{cell} failed: {why}") for cell, why in result["failed"].items()]
            answer.notes += failed + said.getvalue().splitlines()
        return answer


@contextmanager
def in_words(notes: list[str]) -> Iterator[None]:
    """Catch errors with which a command would exit, and add their messages to `notes`."""
    try:
        with exit_with_message(ValueError, OSError, ImportError), exit_if_out_of_memory("give a smaller image"):
            yield
    except SystemExit as error:
        notes.append(str(error).removeprefix("error: "))


def make_page(gradio: Any, models: Models, chosen: Sequence[str]) -> Any:
    """Make the page: image, models and buttons on the left, answers on the right. One model computes at a time."""
    settings = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gradio.Blocks(title="metamix", analytics_enabled=False) as page:
        with gradio.Sidebar():
            image = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Image")
            image.preprocess = uploaded_file  # replaces Gradio's reader, whose errors say less
            names = gradio.Dropdown([*models.specs], value=chosen, multiselect=True, max_choices=MOST, label="Models")
            explain = gradio.Checkbox(label="Explain the predictions")
            run = gradio.Button("Run", variant="primary")
            measure = gradio.Button("Measure latency")
        gradio.Markdown(f"# metamix\nDrop an image and choose up to {MOST} models to run side by side.")

        @gradio.render([image, names, explain], [run.click, image.upload], **settings)
        def show_answers(path: Any, names: list[str], explain: bool) -> None:
            if not (path and names):
                show(gradio, Answer(notes=["Drop an image and choose a model."]))
            with gradio.Row():
                for name in names if path else ():
                    with gradio.Column(min_width=200):
                        gradio.HTML(f"<b style='overflow-wrap: anywhere'>{escape(name).replace('_', '_<wbr>')}</b>")
                        show(gradio, models.answer(name, Path(path), explain))

        @gradio.render([names], [measure.click], **settings)
        def show_latency(names: list[str]) -> None:
            show(gradio, models.latency(names) if names else Answer(notes=["Choose a model."]))

    return page


def uploaded_file(file: Any) -> str | None:
    """Return the path of an uploaded file; raise ValueError for any other path.

    Gradio 6.31 accepts every path on the machine from a request that leaves "meta" out.
    """
    path = file and file.path
    if path and not (Path(path).is_file() and Path(path).resolve().is_relative_to(Path(os.environ[UPLOADS]).resolve())):
        raise ValueError(f"{path} was not uploaded: upload the image")
    return path


def show(gradio: Any, answer: Answer) -> None:
    """Add an answer to the page."""
    for title, rows in answer.tables.items():
        gradio.HTML(as_html(title, rows))
    for picture in answer.pictures:  # without the button that shares the image on the network
        gradio.Image(picture, format="png", show_label=False, buttons=["download", "fullscreen"])
    for note in answer.notes:
        gradio.Textbox(note, label="Note", lines=2)


def as_html(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table as HTML. Leave out columns of mappings, such as masks; colour the cells of the column `colour`."""
    keys = [key for key, value in rows[0].items() if not isinstance(value, dict)] if rows else ["none"]
    lines = ["".join(f"<th>{escape(key)}</th>" for key in keys)]
    for row in rows:
        texts = {key: f"{row[key]:.3f}" if isinstance(row[key], float) else escape(str(row[key])) for key in keys}
        shades = {"colour": f" style='background: {texts.get('colour')}'"}
        lines.append("".join(f"<td{shades.get(key, '')}>{text}</td>" for key, text in texts.items()))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"{escape(title)}<div style='max-height: 30em; overflow: auto'><table width='100%'>{table}</table></div>"
