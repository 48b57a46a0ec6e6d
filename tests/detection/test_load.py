"""Test the metadata of detector files, which cannot be trusted: what is built and what is refused."""

import pytest

import metamix
from metamix.detection import load_detector
from metamix.detection.load import DetectorSpec
from metamix.detection.task import Detection, DetectionEvalOptions, DetectionOptions
from metamix.weights.files import save_weights
from tests.helpers.detectors import GOOD, SMALL


@pytest.fixture(scope="module")
def tensors():
    return DetectorSpec.from_dict(GOOD, "x").build().state_dict()


def test_metadata_are_kept():
    spec = DetectorSpec.from_dict(GOOD, "x.safetensors")
    assert spec.to_dict() == {key: value for key, value in GOOD.items() if key not in ("mean", "std")}
    assert [level[0] for level in spec.build().anchor_generator.sizes] == [20, 40]


def test_weights_load_without_the_weights_that_training_started_from(tensors, tmp_path):
    save_weights(tmp_path / "w.safetensors", tensors, GOOD | {"model": f"{GOOD['model']}.elsewhere"})
    assert load_detector(tmp_path / "w.safetensors").spec.model == GOOD["model"]
    with pytest.raises(ValueError, match="model_args is .*, but .* names its model: leave it out"):
        metamix.load(tmp_path / "w.safetensors", model_args={"mixer": "raft"})


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(model_args={"pretrained": True}), "'pretrained'"),
        (dict(model_args={"checkpoint_path": "/etc/passwd"}), "'checkpoint_path'"),
        (dict(model_args={"checkpoint": "/etc/passwd"}), "model_args .* without batch_norms, checkpoint"),
        (dict(model_args={"batch_norms": "train"}), "model_args .* it must be a mapping of arguments without"),
        (dict(model_args={"img_size": 10**9}), "img_size"),
        (dict(model="hf-hub:someone/model"), "model in the metadata is 'hf-hub:someone/model'"),
        (dict(model=None), "model in the metadata is None, but it must be the name of a registered model"),
        (dict(detector="retinanet2"), "detector in the metadata is 'retinanet2', but it must be one of retinanet"),
        (dict(detector_args=7), "detector_args in the metadata is 7, but it must be a mapping"),
        (dict(detector_args={"min_size": 9}), "detector_args in the metadata is"),
        (dict(detector_args={"detections_per_img": 10**9}), "detector_args in the metadata is"),
        (dict(classes=[]), r"classes in the metadata is \[\], but it must be a list of 1 to 100,000 strings"),
        (dict(out_indices=7), "out_indices in the metadata is 7, but it must be ascending numbers from 0 to 3"),
        (dict(out_indices=[2, 1]), "out_indices in the metadata is"),
        (dict(extra="p9"), "extra in the metadata is 'p9', but it must be one of none, pool, p6p7"),
        (dict(out_channels=10**7), "out_channels in the metadata is 10000000, but it must be a whole number from 1 to"),
        (dict(frozen_norms="no"), "frozen_norms in the metadata is 'no', but it must be true or false"),
        (dict(min_size=0), "min_size in the metadata is 0"),
        (dict(max_size=10**9), "max_size in the metadata is 1000000000, but it must be a whole number from 1 to 4,096"),
        (dict(anchor_scale=-1), "anchor_scale in the metadata is -1, but it must be a number above 0 and at most"),
        (dict(train_on=5), "train_on in the metadata is 5, but it must be a list of 0 to 1,000 strings"),
        (dict(mean=[0.5, 0.5]), r"mean in the metadata is \[0.5, 0.5\], but it must be a list of 3 numbers"),
        (dict(std=[0, 0, 0]), "std"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, tensors, change, words):
    file = tmp_path / "x.safetensors"
    save_weights(file, tensors, GOOD | change)
    with pytest.raises(ValueError, match=f"x.safetensors: .*{words}") as error:
        load_detector(file)
    assert "\n" not in str(error.value)


def test_one_mean_or_std_counts_for_all_channels(tmp_path, tensors):
    save_weights(tmp_path / "x.safetensors", tensors, GOOD | dict(mean=[0.5], std=[0.25]))
    assert load_detector(tmp_path / "x.safetensors").model.transform.image_mean == [0.5] * 3


def test_unknown_option_in_the_metadata_is_refused(tmp_path, tensors):
    save_weights(tmp_path / "x.safetensors", tensors, GOOD | {"detector_args": {"nms_tresh": 0.5}})
    with pytest.raises(ValueError, match="retinanet has no option 'nms_tresh'; did you mean 'nms_thresh'"):
        load_detector(tmp_path / "x.safetensors")


@pytest.mark.parametrize("key", ["detector", "model", "classes", "out_indices", "extra", "min_size", "frozen_norms"])
def test_missing_metadata_are_named(key):
    with pytest.raises(ValueError, match=f"x: {key} is missing in the metadata. Give a file that metamix train wrote"):
        DetectorSpec.from_dict({name: value for name, value in GOOD.items() if name != key}, "x")


def test_eval_and_fine_tuning_check_the_metadata(few, tensors, tmp_path):
    file = tmp_path / "x.safetensors"
    save_weights(file, tensors, GOOD | {"out_indices": "all"})
    for start in (
        lambda: Detection.for_evaluation(DetectionEvalOptions(data_dir=str(few), checkpoint=str(file))),
        lambda: Detection(DetectionOptions(**SMALL, data_dir=str(few), checkpoint=str(file))).model.build(),
    ):
        with pytest.raises(ValueError, match="x.safetensors: out_indices in the metadata is 'all'"):
            start()
