"""Test an installed metamix: the wheel works without the clone, and the import is quick and silent."""

import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from PIL import Image

import metamix
from metamix.models.metaformer_family import NANO, SIZES
from tests.helpers.running import free_port

CLONE = Path(__file__).resolve().parents[1]
DIST_INFO = f"metamix-{metamix.__version__}.dist-info"


def run(*command, **kwargs):
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **kwargs)
    assert result.returncode == 0, result.stderr + result.stdout
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling: pip install 'metamix[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, CLONE)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into a new folder, and return the folder."""
    folder = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def away_from_the_clone(code, *folders, cwd):
    """Return the JSON that `code` prints in a Python that imports only from `folders` and this environment's packages.

    -S skips .pth files; -I ignores the working directory and PYTHONPATH.
    """
    paths = [str(folder) for folder in folders] + [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return json.loads(run("-I", "-S", "-c", f"import sys; sys.path += {paths}\n{code}", cwd=cwd).stdout)


@pytest.mark.slow
def test_wheel_has_the_package_its_configs_and_its_weights(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert {name.split("/")[0] for name in names} == {"metamix", "metamix_cli.py", DIST_INFO}
    sources = {
        str(path.relative_to(CLONE))
        for path in (CLONE / "metamix").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    data = {
        str("metamix/shipped" / path.relative_to(CLONE))
        for folder in ("configs", "weights")
        for path in (CLONE / folder).rglob("*")
        if path.is_file()
    }
    assert {name for name in names if name.startswith("metamix/")} == sources | data
    assert {"metamix/shipped/weights/README.md", "metamix/shipped/configs/digits/demo.yaml"} <= data
    assert "metamix/py.typed" in sources and wheel.stat().st_size < 95e6


def test_an_editable_install_exposes_only_the_package(tmp_path):
    pytest.importorskip("hatchling", reason="building an editable wheel needs hatchling: pip install 'metamix[test]'")
    code = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    path = tmp_path / run("-c", code, cwd=CLONE).stdout.split()[-1]
    archive = zipfile.ZipFile(path)
    files = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(Path(name).suffix for name in files) == [".pth", ".py"]
    (redirect,) = (archive.read(name).decode() for name in files if name.endswith(".py"))
    assert re.findall(r"map_module\('(.*?)'", redirect) == ["metamix", "metamix_cli"]
    (pth,) = (archive.read(name).decode() for name in files if name.endswith(".pth"))
    assert str(CLONE) not in pth  # a folder in a .pth file makes train, tests and docs importable everywhere


@pytest.mark.slow
def test_the_wheel_states_its_version_license_and_dependencies(wheel):
    archive = zipfile.ZipFile(wheel)
    data = message_from_bytes(archive.read(f"{DIST_INFO}/METADATA"))
    assert (data["Name"], data["Version"], data["Requires-Python"]) == ("metamix", metamix.__version__, ">=3.10")
    assert f"{DIST_INFO}/licenses/LICENSE" in archive.namelist()
    needed = {re.split("[<>=]", word)[0].lower() for word in data.get_all("Requires-Dist") if "extra ==" not in word}
    assert needed == {
        "torch", "torchvision", "timm", "einops", "numpy", "pywavelets", "safetensors", "pyyaml", "scikit-learn",
        "tqdm", "matplotlib", "pydantic",
    }  # fmt: skip


@pytest.mark.slow
def test_the_installed_command_prints_its_version(installed, tmp_path):
    (script,) = (installed / "bin").iterdir()
    assert "from metamix_cli import main" in script.read_text()
    code = "import io, json, sys, metamix_cli; sys.stdout = out = io.StringIO(); metamix_cli.main(['--version'])"
    code += "; sys.stdout = sys.__stdout__; print(json.dumps([out.getvalue(), 'metamix' in sys.modules]))"
    assert away_from_the_clone(code, installed, cwd=tmp_path) == [f"metamix {metamix.__version__}\n", False]


@pytest.mark.slow
def test_the_installed_package_works_outside_its_clone(installed, tmp_path):
    """The same process also publishes a model, because a second process would take seconds to start."""
    seen = away_from_the_clone(
        """
import contextlib, io, json, timm, torch
import metamix
from metamix.weights.find import weights_dir
from metamix_cli import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    main(["publish", "metaformer_pooling_nano.digits", "me/digits", "--dry-run", "folder"])
model = timm.create_model("metaformer_raft_nano", num_classes=3).eval()
print(json.dumps(dict(
    file=metamix.__file__,
    weights=str(weights_dir()),
    shape=list(model(torch.zeros(2, 3, 32, 32)).shape),
    names=len(timm.list_models("metaformer_*")),
    clone=[p for p in sys.path if p == CLONE],  # only the clone itself: a .venv below it is allowed
    said=said.getvalue(),
    published=timm.create_model("local-dir:folder", pretrained=True).pretrained_cfg,
)))
""".replace("CLONE", repr(str(CLONE))),
        installed,
        cwd=tmp_path,
    )
    assert seen["file"] == str(installed / "metamix" / "__init__.py")
    assert seen["weights"] == str(installed / "metamix" / "shipped" / "weights")
    assert (seen["shape"], seen["names"]) == ([2, 3], len(NANO) * len(SIZES))
    assert seen["clone"] == []
    assert {p.name for p in Path(seen["weights"]).iterdir()} == {p.name for p in (CLONE / "weights").iterdir()}
    assert "written: folder, README.md, config.json, model.safetensors; nothing was uploaded" in seen["said"]
    assert seen["published"]["label_names"] == [*"0123456789"] and seen["published"]["input_size"] == [1, 32, 32]


def test_metamix_cannot_be_imported_without_the_installed_folder(tmp_path):
    """This is the control: the tests above cannot import the clone, even if it is installed as editable."""
    code = "import json, importlib.util as u; m = u.find_spec('metamix'); print(json.dumps(m and m.origin))"
    assert away_from_the_clone(code, cwd=CLONE) is None


@pytest.fixture(scope="module")
def imported():
    """Import metamix in a new process, in which no test has imported submodules; return what the process finds."""
    pages = [CLONE / "README.md", *(CLONE / "docs").glob("*.md")]
    names = sorted({name for page in pages for name in re.findall(r"`(metamix(?:\.\w+)+)", page.read_text())})
    assert "metamix.deploy.benchmark" in names
    code = """
import functools, json, sys, time, warnings, pywt, timm
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
warnings.simplefilter("error")
start = time.process_time()
import metamix
seconds = time.process_time() - start
after = {name: timm.model_entrypoint(name) for name in timm.list_models()}
warnings.simplefilter("ignore")  # other packages may warn when submodules import them
early = [name for name in metamix._PACKAGES if f"metamix.{name}" in sys.modules]
missing = []
for name in NAMES + [f"metamix.{name}" for name in metamix._PACKAGES]:
    try:
        functools.reduce(getattr, name.split(".")[1:], metamix)
    except AttributeError as error:
        missing.append(f"{name}: {error}")
import metamix.classification.task, metamix.cli.train
print(json.dumps(dict(
    seconds=seconds,
    theirs=len(before),
    changed=[name for name in before if after[name] is not before[name]],
    added=len(after) - len(before),
    ours=sorted({after[name].__module__.split(".")[0] for name in after.keys() - before.keys()}),
    early=early,
    slow="sklearn" in sys.modules,
    missing=missing,
)))
"""
    result = run("-c", code.replace("NAMES", repr(names)))
    return json.loads(result.stdout) | {"stderr": result.stderr}  # fails if the import prints something


def test_import_is_silent_and_quick_and_replaces_no_timm_model(imported):
    assert imported["stderr"] == ""
    assert imported["seconds"] < 1
    assert imported["theirs"] > 1000 and imported["changed"] == []
    assert imported["added"] >= 49 and imported["ours"] == ["metamix"]


def test_dotted_names_of_the_docs_exist_after_import_metamix(imported):
    assert (imported["early"], imported["missing"]) == ([], [])
    assert not imported["slow"]  # scikit-learn takes a second to import


SERVE = """
import sys

def report(event, args):
    host = args[1][0] if event == "socket.connect" else args[0] if event == "socket.getaddrinfo" else None
    if host not in (None, "127.0.0.1", "localhost", "::1", "/"):  # "/" is the start of a Unix socket's path
        print("reaches for", event, args, flush=True)

sys.addaudithook(report)
import metamix
from metamix_cli import main
print(metamix.__file__)
main(["demo", "metaformer_pooling_nano.digits", "wavemixsr_nano.x2", "--device", "cpu", "--port", PORT])
"""


@pytest.fixture
def page(installed, tmp_path):
    """Start the demo page of an installed metamix, and yield its URL. Fail if the server contacts other machines."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'metamix[demo]'")
    port = str(free_port())
    paths = [str(installed), *(path for path in sys.path if not Path(path).resolve().is_relative_to(CLONE))]
    code = f"import sys; sys.path += {paths}\n" + SERVE.replace("PORT", repr(port))
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_for(lambda: "the page is at" in (tmp_path / "log").read_text() or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    said = (tmp_path / "log").read_text()
    assert said.startswith(str(installed / "metamix")) and "reaches for" not in said, said


@pytest.fixture
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        time.sleep(0.5)
    return result


@pytest.mark.slow
def test_the_page_of_an_installed_package_answers_in_a_browser(page, chromium, tmp_path):
    image = Image.new("L", (32, 32))
    image.paste(255, (14, 5, 18, 28))
    image.save(tmp_path / "digit.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (labels,) = metamix.load("metaformer_pooling_nano.digits").predict([tmp_path / "digit.png"], top=1)

    def text():
        return chromium.find_element("tag name", "body").text

    def drop(name):
        chromium.get(page)
        (place,) = wait_for(lambda: chromium.find_elements("css selector", "input[type=file]"))
        place.send_keys(str(tmp_path / name))

    drop("digit.png")
    wait_for(lambda: "probability" in text())
    assert text().partition("probability\n")[2].startswith(labels[0][0])
    sizes = "return [...document.querySelectorAll('img')].map(image => image.naturalWidth)"
    wait_for(lambda: 64 in chromium.execute_script(sizes))  # the restored image, twice as large
    next(b for b in chromium.find_elements("tag name", "button") if b.text == "Measure latency").click()
    wait_for(lambda: "latency of one image on" in text())
    drop("broken.png")
    notes = wait_for(lambda: chromium.find_elements("css selector", "textarea"))
    assert notes[0].get_attribute("value").startswith("broken.png: not an image of a known format")
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked and not [url for url in asked if not url.startswith((page, "data:", "blob:"))]
