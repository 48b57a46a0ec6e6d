"""Options: defaults, then YAML, then the command line; and what is said of those that are wrong."""

import re
from dataclasses import dataclass, fields

import pytest
import yaml

from metamix.cli.tasks import TASKS, find_task
from metamix.training.recipe import EngineOptions, check, option, parse, resume_changes


@dataclass
class Options:
    """Toys"""

    model: str = option("small", "which model")
    size: int | None = option(None, "pixels")
    rates: tuple[float, ...] = option((), "several numbers")
    model_args: dict = option({}, "more")
    teacher: str | None = option(None, "whom to learn from")
    workers: int = option(2, "processes", on_resume="free")


def read(*words, **config):
    return parse(list(words), {"toys": lambda: Options}, default_task="toys", description="A test.")


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_defaults_then_config_then_command_line(config):
    recipe = read("--config", config("epochs: 7\nlr: 1e-3\nsize: 32\nmodel_args: {a: [1, x]}\n"), "--epochs", "9")
    assert (recipe.engine.epochs, recipe.engine.lr, recipe.engine.batch_size) == (9, 1e-3, 128)
    assert (recipe.options.size, recipe.options.model_args, recipe.options.model) == (32, {"a": [1, "x"]}, "small")


def test_every_way_to_write_an_option():
    recipe = read(
        "--batch-size",
        "64",
        "--micro_batch=8",
        "--ema",
        "--no-channels-last",
        "--rates",
        "0.1,2",
        "--freeze",
        "stem,stages.0",
        "--opt-args",
        "{betas: [0.9, 0.99], eps: 1e-6}",
        "--layer-decay",
        "0.7",
        "--size",
        "none",
    )
    engine, options = recipe.engine, recipe.options
    assert (engine.batch_size, engine.micro_batch, engine.ema, engine.channels_last) == (64, 8, True, False)
    assert (options.rates, options.size) == ((0.1, 2.0), None)
    assert (engine.freeze, engine.layer_decay) == (("stem", "stages.0"), 0.7)
    assert engine.opt_args == {"betas": [0.9, 0.99], "eps": 1e-6}


@pytest.mark.parametrize("word", ["none", "None", "null", "''"])
def test_none_is_nothing_wherever_it_is_written(word, config):
    assert (
        read("--config", config(f"size: {word}\nlayer_decay: {word}\nteacher: {word}\n")).flat().items()
        >= {
            "size": None,
            "layer_decay": None,
            "teacher": None,
        }.items()
    )
    assert read("--teacher", word.strip("'")).options.teacher is None
    assert read("--config", config("model: none")).options.model == "none"  # an option that needs a word


def test_a_saved_recipe_reads_back_the_same(tmp_path):
    recipe = read("--rates", "0.1,2", "--lr", "1e-5", "--freeze", "stem", "--model-args", "{a: 1}")
    (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
    assert read("--config", str(tmp_path / "saved.yaml")) == recipe
    assert recipe.replace(model="big", epochs=3).flat() == recipe.flat() | {"model": "big", "epochs": 3}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--bach-size", "3"], "there is no option --bach-size; did you mean --batch-size?"),
        (["--no-emma"], "there is no option --no-emma; did you mean --no-ema?"),
        (["--zzzzzz", "3"], "there is no option --zzzzzz"),
        (
            ["--ema", "true"],
            "'true' stands where an option is expected; options are written --name value, and switches --name "
            "or --no-name without a value",
        ),
        (["--epochs", "3.5"], "--epochs is '3.5' (text), but a whole number is needed"),
        (["--lr", "fast"], "--lr is 'fast' (text), but a number is needed"),
        (
            ["--schedule", "cosin"],
            "--schedule is 'cosin' (text), but one of cosine, linear, constant is needed; did you mean 'cosine'?",
        ),
        (["--model-args", "3"], "--model-args is 3, but a mapping {key: value} is needed"),
        (["--model-args", "{a: [}"], "--model-args is '{a: [}', which is not valid YAML; write '{key: value}'"),
        (["--rates", "1,x"], "--rates is 'x' (text), but a number is needed"),
        (["--size", "big"], "--size is 'big' (text), but a whole number or none is needed"),
        (["--task", "toy"], "there is no task 'toy'; did you mean 'toys'?; the tasks are toys"),
        (["--config", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["--epochs", "0"], "epochs is 0, but it must be at least 1"),
        (["--lr", "nan"], "lr is nan, but it must be at least 0"),
        (
            ["--epochs", "3", "--warmup-epochs", "4"],
            "warmup_epochs is 4.0, longer than the 3 epochs of training; lower warmup_epochs or raise epochs",
        ),
        (["--seed", "-1"], "seed is -1, but it must be at least 0"),
        (["--lr", "5e-6"], "min_lr is 1e-05, above lr, which is 5e-06: lower min_lr"),
        (["--clip-grad", "0"], "clip_grad is 0.0, but it must be above 0; leave it out to clip nothing"),
        (["--lr", "inf"], "lr is inf, but it must be finite"),
        (["--weight-decay=-1"], "weight_decay is -1.0, but it must be at least 0"),
        (
            ["--opt-args", "{eps: 1, eps: 2}"],
            "--opt-args is '{eps: 1, eps: 2}', which is not valid YAML; write '{key: "
            "value}': the key 'eps' stands twice, again in line 1; keep one of them",
        ),
        (["--layer-decay", "0"], "layer_decay is 0.0, but it must be above 0 and at most 1"),
        (["--ema-decay", "99"], "ema_decay is 99.0, but it must be at least 0 and below 1"),
        (["--score", "ema"], "score is 'ema', but no average is kept: add --ema, or use --score last"),
    ],
)
def test_wrong_words_are_refused(words, said):
    with pytest.raises(SystemExit, match=re.escape(f"error: {said}")):
        read(*words)


@pytest.mark.parametrize(
    "text, said",
    [
        ("epoch: 3", "there is no option 'epoch'; did you mean 'epochs'?"),
        ("epochs: three", "epochs is 'three' (text), but a whole number is needed"),
        ("epochs: true", "epochs is True (a switch), but a whole number is needed"),
        ("epochs: 3.0", "epochs is 3.0, but a whole number is needed"),
        ("lr: true", "lr is True (a switch), but a number is needed"),
        ("ema: 1", "ema is 1, but true or false is needed"),
        ("ema: 'yes'", "ema is 'yes' (text), but true or false is needed"),
        ("model: 3", "model is 3, but text is needed"),
        ("model:", "model is empty, but text is needed"),
        ("rates: [1, x]", "rates[1] is 'x' (text), but a number is needed"),
        ("rates: 1", "rates is 1, but a list, each item a number, is needed"),
        ("model_args: [1]", "model_args is [1] (a list), but a mapping {key: value} is needed"),
        ("task: [a]", "task is ['a'] (a list), but text is needed"),
    ],
)
def test_wrong_config_values_are_refused_by_file_and_key(text, said, config):
    path = config(text)
    with pytest.raises(SystemExit, match=re.escape(f"error: {path}: {said}")):
        read("--config", path)


@pytest.mark.parametrize(
    "text, said",
    [
        ("- 1\n- 2", "must hold 'option: value' lines, but it holds [1, 2] (a list)"),
        ("lr: [", "is not valid YAML: while parsing a flow node"),
        ("lr: 1\nema: true\nlr: 2", "is not valid YAML: the key 'lr' stands twice, again in line 3; keep one of them"),
        (b"# caf\xe9\nlr: 1", "is not UTF-8 text ('utf-8' codec can't decode byte 0xe9 in position 5: "),
    ],
)
def test_files_that_are_no_recipe_are_refused(text, said, config):
    path = config(text)
    with pytest.raises(SystemExit, match=re.escape(f"error: {path} {said}")):
        read("--config", path)


def test_the_nearest_config_file_is_named(config, tmp_path):
    path = config("epochs: 1")
    with pytest.raises(SystemExit, match=f"there is no config file .*recpe.yaml; did you mean '{path}'?"):
        read("--config", str(tmp_path / "recpe.yaml"))


def test_a_saved_recipe_and_the_command_line_may_both_name_the_task(tmp_path):
    (tmp_path / "saved.yaml").write_text(read().to_yaml())
    assert read("--config", str(tmp_path / "saved.yaml"), "--task", "toys") == read()


def test_what_may_change_on_resume():
    old = read().flat()
    assert resume_changes(old, read()) == {}
    assert resume_changes(old, read("--output", "x", "--workers", "0", "--log-every", "1")) == {}
    assert resume_changes(old, read("--epochs", "20", "--lr", "0.1")) == {
        "epochs": "epochs was 10 and is now 20",
        "lr": "lr was 0.001 and is now 0.1",
    }
    with pytest.raises(
        ValueError, match="model was 'small' and is now 'big'; size was None and is now 8. Take the old"
    ):
        resume_changes(old, read("--model", "big", "--size", "8"))


def test_two_options_of_one_name_are_refused():
    @dataclass
    class Clash:
        lr: float = option(1.0, "mine")

    with pytest.raises(TypeError, match="two option classes have an option 'lr'"):
        parse([], {"clash": lambda: Clash}, default_task="clash", description="")


@pytest.mark.parametrize("task", TASKS)
def test_help_explains_every_option(task, capsys):
    options = find_task(task).Options
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"], {task: lambda: options}, default_task=task, description="Trains.")
    text = " ".join(capsys.readouterr().out.split())
    for f in [*fields(EngineOptions), *fields(options)]:
        assert f"--{f.name.replace('_', '-')}" in text
        assert " ".join(f.metadata["help"].split()[:4]) in text, f"{f.name} is not explained"
    for group in ("the run:", "schedule:", "optimizer:", "data:", "model:"):
        assert group in text


def test_the_engine_has_about_35_options():
    assert len(fields(EngineOptions)) <= 36


def test_a_value_is_checked_by_its_annotation():
    hints = {"n": int, "x": float | None}
    assert check(3, hints, "n") == 3 and check(None, hints, "x") is None and check("1e-3", hints, "x") == 1e-3
    with pytest.raises(ValueError, match="n is '3' \\(text\\), but a whole number is needed"):
        check("3", hints, "n")


def test_every_shipped_config_is_read():
    from running import ROOT

    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text()
        opening = text.splitlines()[:5]
        assert all(line.startswith("# ") for line in opening) and str(path.relative_to(ROOT)) in opening[1], path
        task = yaml.safe_load(text).get("task", "classification")
        parse(
            ["--config", str(path)],
            {task: lambda: find_task(task).Options},
            default_task="classification",
            description="",
        )
