"""Skip most tests of this folder if the extra `deploy` is not installed, and make small weight files to export."""

import pytest
import timm
import torch

import metamix  # noqa: F401 - registers the models
from metamix.weights.files import save_weights
from tests.helpers.exports import MISSING

WITHOUT_EXTRA = ("test_artifact.py", "test_formats.py", "test_fuse.py", "test_report.py")


def pytest_runtest_setup(item):
    if MISSING and item.path.name not in WITHOUT_EXTRA:
        pytest.skip(f"{', '.join(MISSING)} not installed: pip install 'metamix[deploy]'")


@pytest.fixture
def weights(tmp_path):
    """Return a function that writes a shallow 3-class classifier for 16-pixel images to a file and returns its path."""

    def make(mixer="pooling", **model_args):
        torch.manual_seed(0)
        arguments = dict(mixer=mixer, depths=(1,), dims=(16,)) | model_args
        model = timm.create_model("metaformer_pooling_nano", img_size=16, num_classes=3, **arguments)
        for name, value in model.state_dict().items():
            if value.ndim == 1 and not name.endswith("running_var"):
                value.normal_(std=0.3).add_(name.endswith(("weight", "gamma")))
        metadata = dict(
            task="classification", model="metaformer_pooling_nano", model_args=arguments, num_classes=3, in_chans=3,
            img_size=16, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bicubic", crop_pct=1.0,
            classes=["cat", "dog", "eel"],
        )  # fmt: skip
        save_weights(tmp_path / "small.safetensors", model.state_dict(), metadata)
        return str(tmp_path / "small.safetensors")

    return make
