"""Test that YAML overrides defaults, that the command line overrides YAML, and that errors say what to change."""

import re
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from metamix.tasks.registry import TASKS, find_task
from metamix.training.recipe import EngineOptions, RecipeReader, find_config, resume_changes
from metamix.utils.options import convert, option, read_yaml
from tests.helpers.recipes import parse_recipe
from tests.helpers.running import ROOT


@dataclass
class Options:
    """Options of a task named toys."""

    model: str = option("small", "which model")
    size: int | None = option(None, "pixels")
    rates: tuple[float, ...] = option((), "several numbers")
    model_args: dict = option({}, "more")
    teacher: str | None = option(None, "model to learn from")
    pretrained: bool = option(False, "published weights")
    checkpoint: str | None = option(None, "weights of a file")
    anchors: float | Literal["auto"] = option("auto", "a number, or a word")
    memory: Literal["auto", "yes", "no"] = option("auto", "YAML 1.1 reads yes and no as booleans")
    shuffle: bool = option(True, "draw samples in random order")
    workers: int = option(2, "processes", on_resume="ignore")


def read(*words, **config):
    return RecipeReader(["toys"], lambda task: Options, lambda values: "toys").parse(list(words), "A test.")


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_the_config_overrides_defaults_and_the_command_line_overrides_both(config):
    recipe = read("--config", config("epochs: 7\nlr: 1e-3\nsize: 32\nmodel_args: {a: [1, x]}\n"), "--epochs", "9")
    assert (recipe.engine.epochs, recipe.engine.lr, recipe.engine.batch_size) == (9, 1e-3, 128)
    assert (recipe.options.size, recipe.options.model_args, recipe.options.model) == (32, {"a": [1, "x"]}, "small")


def test_a_flag_may_leave_a_config_value_without_effect(config):
    path = config("schedule: poly\npower: 2\nema: true\nema_decay: 0.9\n")
    assert read("--config", path, "--no-ema", "--schedule", "linear").engine.ema_decay == 0.9
    assert read("--config", path, "--power", "3").engine.power == 3


def test_the_flag_epochs_replaces_the_iterations_of_a_config(config):
    engine = read("--config", config("iterations: 50\n"), "--epochs", "2").engine
    assert (engine.epochs, engine.iterations) == (2, 0)
    assert read("--config", config("epochs: 2\n"), "--iterations", "50").engine.iterations == 50
    with pytest.raises(SystemExit, match="recipe.yaml: epochs and iterations both say how long the run is; give one"):
        read("--config", config("epochs: 2\niterations: 50\n"))


def test_a_flag_overrides_the_weights_that_a_config_names(config):
    for text, words, wanted in (
        ("pretrained: true\n", ["--checkpoint", "a.pt"], (False, "a.pt")),
        ("checkpoint: a.pt\n", ["--pretrained"], (True, None)),
        ("checkpoint: a.pt\n", ["--no-pretrained"], (False, "a.pt")),
    ):
        options = read("--config", config(text), *words).options
        assert (options.pretrained, options.checkpoint) == wanted


def test_a_task_may_change_the_defaults_of_engine_options(config, capsys):
    class Task(Options):
        engine_defaults: ClassVar = {"batch_size": 16, "ema": True}

    tasks = {"toy": Task}
    parse_toy = RecipeReader(tasks, tasks.get, lambda values: "toy").parse
    engine = parse_toy([]).engine
    assert (engine.batch_size, engine.ema, engine.score, engine.epochs) == (16, True, "ema", 10)
    assert parse_toy([]) == parse_toy([]) and type(engine) is EngineOptions
    file = config("batch_size: 32\nema: false\n")
    assert (parse_toy(["--config", file]).engine.batch_size, parse_toy(["--config", file]).engine.ema) == (32, False)
    assert parse_toy(["--config", file, "--batch-size", "8"]).engine.batch_size == 8
    assert parse_toy([]).engine.batch_size == 16 and read().engine.batch_size == 128
    with pytest.raises(SystemExit):
        parse_toy(["--help"])
    assert "fewer if the training split is small (default: 16)" in " ".join(capsys.readouterr().out.split())


def test_ema_flags_change_the_score_of_a_saved_recipe(config):
    saved = read().to_yaml()
    assert "score: last" in saved and read("--config", config(saved), "--ema").engine.score == "ema"
    saved = read("--ema").to_yaml()
    assert "score: ema" in saved and read("--config", config(saved), "--no-ema").engine.score == "last"
    assert read("--config", config(saved)).engine.score == "ema"


def test_a_tilde_that_the_shell_leaves_in_a_path_is_expanded(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read("--config", config("output: ~/runs/a\n")).engine.output == "/home/me/runs/a"
    assert read("--output=~/runs/a").engine.output == "/home/me/runs/a"
    assert read("--output", "runs/~/a").engine.output == "runs/~/a"
    path = config("epochs: 3\n")
    monkeypatch.setenv("HOME", str(Path(path).parent))
    assert read("--config=~/recipe.yaml").engine.epochs == 3


def test_every_way_to_write_an_option_is_read():
    words = "--batch-size 64 --micro_batch=8 --ema --no-channels-last --rates 0.1,2 --freeze stem,stages.0 --size none "
    recipe = read(*shlex.split(words + "--layer-decay 0.7 --opt-args '{betas: [0.9, 0.99], eps: 1e-6}'"))
    engine, options = recipe.engine, recipe.options
    assert (engine.batch_size, engine.micro_batch, engine.ema, engine.channels_last) == (64, 8, True, False)
    assert (options.rates, options.size) == ((0.1, 2.0), None)
    assert (engine.freeze, engine.layer_decay) == (("stem", "stages.0"), 0.7)
    assert engine.opt_args == {"betas": [0.9, 0.99], "eps": 1e-6}


@pytest.mark.parametrize("word", ["none", "None", "null", "''"])
def test_every_spelling_of_none_is_read(word, config):
    assert (
        read("--config", config(f"size: {word}\nlayer_decay: {word}\nteacher: {word}\n")).flat().items()
        >= {"size": None, "layer_decay": None, "teacher": None}.items()
    )
    assert read("--teacher", word.strip("'")).options.teacher is None
    assert read("--config", config("model: none")).options.model == "none"  # an option that does not accept None


def test_a_saved_recipe_is_read_back_unchanged(tmp_path):
    recipe = read("--rates", "0.1,2", "--lr", "1e-5", "--freeze", "stem", "--model-args", "{a: 1}")
    (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
    assert read("--config", str(tmp_path / "saved.yaml")) == recipe
    assert read("--config", str(tmp_path / "saved.yaml"), "--task", "toys") == recipe  # the file names the task too


def test_the_error_says_which_task_has_the_option(config):
    @dataclass
    class Others:
        degradation: str = option("", "noise")

    tasks = {"toys": Options, "restoration": Others}
    parse_toys = RecipeReader(tasks, tasks.get, lambda values: "toys").parse
    words = "there is no option {} for toys; it is an option of restoration: add --task restoration"
    for arguments, name in (
        (["--degradation", "noise:25"], "--degradation"),
        (["--config", config("degradation: noise:25")], "'degradation'"),
    ):
        with pytest.raises(SystemExit, match=words.format(name)):
            parse_toys(arguments)
        with pytest.raises(SystemExit, match="for toys; it is an option of restoration$"):  # the user chose toys
            parse_toys([*arguments, "--task", "toys"])
    with pytest.raises(SystemExit, match="for toys; it is an option of restoration$"):
        parse_toys(["--config", config("task: toys"), "--degradation", "noise:25"])


@pytest.mark.parametrize(
    "text", ["1e5", "12e3", "1.5", "yes", "null", "2026-01-01", "0x1f", "~", "a: b", "", "x" * 4000]
)
def test_text_that_looks_like_a_number_or_date_stays_text(config, text):
    path = config(read("--model", text).to_yaml())
    assert read("--config", path).options.model == text


@pytest.mark.parametrize(
    "words, said",
    [
        (["--bach-size", "3"], "there is no option --bach-size; did you mean '--batch-size'?"),
        (["--learning-rate", "3"], "there is no option --learning-rate; did you mean '--lr'?"),
        (["--no-emma"], "there is no option --no-emma; did you mean '--no-ema'?"),
        (["--zzzzzz", "3"], "there is no option --zzzzzz"),
        (["--ema", "true"], "'true' is not an option; write --name value, or --name or --no-name for a switch"),
        (["--epochs", "3.5"], "--epochs is '3.5', but it must be a whole number from 1 to 1,000,000."),
        (["--lr", "fast"], "--lr is 'fast', but it must be a number from 0 to 1,000,000."),
        (["--weight-decay", "1e99"], "--weight-decay is '1e99', but it must be a number from 0 to"),
        (["--schedule", "cosin"], "--schedule is 'cosin', but it must be one of cosine, linear, poly, constant; did"),
        (["--model-args", "3"], "--model-args is '3', but it must be a mapping {key: value}."),
        (["--model-args", "{a: [}"], "--model-args '{a: [}' is not valid YAML; write '{key: value}': while parsing"),
        (["--rates", "1,x"], "--rates is '1,x', but it must be a list [a, b] of numbers."),
        (["--size", "big"], "--size is 'big', but it must be a whole number, or none."),
        (["--task", "toy"], "task is 'toy'; did you mean 'toys'? Accepted: toys."),
        (["--epochs", "3", "--warmup-epochs", "4"], "warmup_epochs is 4.0, above epochs, which is 3; lower it"),
        (["--seed", str(2**64)], "--seed is '18446744073709551616', but it must be a whole number of at least 0 and"),
        (["--lr", "5e-6"], "min_lr is 1e-05, above lr, which is 5e-06; lower min_lr"),
        (["--warmup-lr", "0.1"], "warmup_lr is 0.1, above lr, which is 0.001; lower warmup_lr"),
        (["--schedule", "constant", "--min-lr", "0"], "--min-lr has no effect without --schedule cosine or --schedule"),
        (["--clip-grad", "0"], "--clip-grad is '0', but it must be a finite number above 0, or none"),
        (["--anchors", "x"], "--anchors is 'x', but it must be a number, or auto."),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--model"], "argument --model: expected one argument"),
        (["--config", "a.yaml", "--config", "b.yaml"], "several configs are given, a.yaml and b.yaml; give one"),
        (["--import", "./my_mixers.py"], "--import ./my_mixers.py failed: it is a path; give a module, such as"),
        (["--lr-factors", "{0: 0.1}"], "--lr-factors is '{0: 0.1}', but it must be a mapping {key: value} of numbers"),
        (["--epochs", "2", "--iterations", "9"], "--epochs and --iterations both say how long the run is; give one"),
        (["--power", "2"], "--power has no effect without --schedule poly; give both or neither"),
        (["--warmup-lr", "1e-5", "--warmup-epochs", "0"], "--warmup-lr has no effect without --warmup-epochs; give"),
        (["--dry-run", "--resume", "a"], "a dry run reads no checkpoint: leave out --dry-run, or --resume a"),
        (["--layer-decay", "0"], "--layer-decay is '0', but it must be a number above 0 and at most 1"),
        (["--ema-decay", "99"], "--ema-decay is '99', but it must be a number of at least 0 and below 1"),
        (["--score", "ema"], "score is 'ema', but no average is kept; add --ema, or use --score last"),
    ],
)
def test_wrong_arguments_are_refused(words, said):
    with pytest.raises(SystemExit, match=re.escape(f"error: {said}")):
        read(*words)


@pytest.mark.parametrize(
    "text, said",
    [
        ("epoch: 3", "there is no option 'epoch'; did you mean 'epochs'?"),
        ("epochs: 3.0", "epochs is 3.0, but it must be a whole number from 1 to 1,000,000."),
        ("ema: 1", "ema is 1, but it must be true or false."),
        ("model: 3", "model is 3, but it must be a string."),
        ("model:", "model is empty, but it must be a string."),
        ("rates: [1, x]", "rates is [1, 'x'], but it must be a list [a, b] of numbers."),
        ("rates: {a: 1}", "rates is {'a': 1}, but it must be a list [a, b] of numbers."),
        ("model_args: [1]", "model_args is [1], but it must be a mapping {key: value}."),
        ("anchors: true", "anchors is True, but it must be a number, or auto."),
        ("import: {mixers: 1}", "import is {'mixers': 1}, but it must be a list [a, b] of strings."),
        ("task: [a]", "task is ['a'], but it must be a string."),
    ],
)
def test_the_error_for_a_wrong_config_value_names_file_and_key(text, said, config):
    path = config(text)
    with pytest.raises(SystemExit, match=re.escape(f"error: {path}: {said}")):
        read("--config", path)


@pytest.mark.parametrize(
    "text, said",
    [
        ("- 1\n- 2", " must hold lines 'option: value', but it holds [1, 2]"),
        ("lr: [", " is not valid YAML: while parsing a flow node"),
        ("output: 2024-13-45", " is not valid YAML: month must be in 1..12"),
        ("lr: 1\nema: true\nlr: 2", " is not valid YAML: line 3 repeats the key 'lr'; keep one of them"),
        (b"lr: 1\n# caf\xe9", ":2 is not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_files_that_are_not_recipes_are_refused(text, said, config):
    path = config(text)
    with pytest.raises(SystemExit, match=re.escape(f"error: {path}{said}")):
        read("--config", path)


def test_the_error_suggests_the_nearest_config_file(config, tmp_path):
    path = config("epochs: 1")
    with pytest.raises(SystemExit, match=f"there is no config .*recpe.yaml; did you mean '{path}'?"):
        read("--config", str(tmp_path / "recpe.yaml"))


def test_a_folder_as_config_is_refused(tmp_path):
    folder = tmp_path / "dir.yaml"
    folder.mkdir()
    with pytest.raises(SystemExit, match=f"^error: {folder} is a folder: give --config a YAML file$"):
        read("--config", str(folder))
    with pytest.raises(SystemExit, match="there is no config .*/dirs.yaml. Give a YAML file, or one of the shipped"):
        read("--config", str(tmp_path / "dirs.yaml"))
    (folder / "recipe.yaml").write_text("epochs: 1")
    with pytest.raises(SystemExit, match=f"^error: {folder} is a run folder: give .*, --config {folder}/recipe"):
        read("--config", str(folder))


def test_only_some_options_may_change_on_resume():
    old = read().flat()
    assert resume_changes(old, read()) == {}
    assert resume_changes(old, read("--output", "x", "--workers", "0", "--log-every", "1")) == {}
    assert resume_changes(old, read("--epochs", "20", "--lr", "0.1")) == {
        "epochs": "epochs was 10 and is now 20",
        "lr": "lr was 0.001 and is now 0.1",
    }
    with pytest.raises(ValueError, match="model was 'small' and is now 'big'; size was None and is now 8. Use the old"):
        resume_changes(old, read("--model", "big", "--size", "8"))


def test_two_options_with_the_same_name_are_refused():
    @dataclass
    class Clash:
        lr: float = option(1.0, "mine")

    with pytest.raises(SystemExit, match="^error: Clash has an option 'lr', and so has EngineOptions: rename it"):
        RecipeReader(["clash"], lambda task: Clash, lambda values: "clash").parse([])


@pytest.mark.parametrize("task", TASKS)
def test_help_explains_every_option(task, capsys):
    options = find_task(task).part("task").Options
    with pytest.raises(SystemExit, match="0"):
        RecipeReader([task], lambda task: options, lambda values: task).parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for f in [*fields(EngineOptions), *fields(options)]:
        assert f"--{f.name.replace('_', '-')}" in text
        assert " ".join(f.metadata["help"].split()[:4]) in text, f"{f.name} is not explained"
    assert "--import" in text and "(default: None)" not in text
    for group in ("the run:", "schedule:", "optimizer:", "data:", "model:"):
        assert group in text


def test_values_are_converted_to_the_type_of_their_option():
    assert convert(3, int, "n") == 3 and convert(None, float | None, "x") is None
    assert convert("1e-3", float | None, "x", text=True) == 1e-3
    assert convert([1, 2], tuple[float, ...], "x") == convert("[1, 2]", tuple[float, ...], "x", text=True) == (1.0, 2.0)
    assert convert("stages.[01], (head)", tuple[str, ...], "x", text=True) == ("stages.[01]", "(head)")
    assert [convert(value, Literal["auto", "yes", "no"], "x") for value in (True, False, "yes")] == ["yes", "no", "yes"]


def test_an_option_may_be_a_number_or_a_word(config):
    assert read("--anchors", "2").options.anchors == 2.0
    assert read("--config", config("anchors: 4")).options.anchors == 4.0
    assert read("--config", config("anchors: auto")).options.anchors == "auto"


def test_a_shipped_config_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs" / "digits" / "demo.yaml"
    assert find_config("digits/demo") == find_config("digits/demo.yaml") == find_config(str(path)) == path
    with pytest.raises(ValueError, match=r"no config digits/dmo; did you mean 'digits/demo'\? .* bccd/retinanet, cam"):
        find_config("digits/dmo")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "demo.yaml").write_text("epochs: 1")
    assert read_yaml(find_config("digits/demo.yaml")) == {"epochs": 1}, "a file in the working folder comes first"


@pytest.mark.parametrize("text", ["rates: 0.5", "rates: [0.5]"])
def test_a_list_in_a_config_needs_no_brackets(text, config):
    assert read("--config", config(text)).options.rates == (0.5,)
    assert read("--config", config("freeze: stem,stages.0")).engine.freeze == ("stem", "stages.0")


def test_modules_are_imported_before_the_task(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_first_mixers", "my_other_mixers"):
        (tmp_path / f"{name}.py").write_text("import dataclasses")
        monkeypatch.delitem(sys.modules, name, raising=False)

    def options(task):
        assert "my_first_mixers" in sys.modules
        return Options

    recipe = RecipeReader(["toys"], options, lambda values: "toys").parse(["--import", "my_first_mixers"])
    assert recipe.imports == ("my_first_mixers",) and recipe.flat()["import"] == ["my_first_mixers"]
    again = read("--config", config(recipe.to_yaml()), "--import", "my_other_mixers", "--import", "my_first_mixers")
    assert again.imports == ("my_first_mixers", "my_other_mixers") and "my_other_mixers" in sys.modules
    assert resume_changes(recipe.flat(), again).keys() == {"import"}
    assert "import" not in read().flat()


def test_every_shipped_config_is_valid_and_opens_with_comments():
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text()
        opening = text.splitlines()[:5]
        assert all(line.startswith("# ") for line in opening) and str(path.relative_to(ROOT)) in opening[1], path
        parse_recipe("--config", path)
