"""Test torchvision's detectors with backbones from the zoo: training, predictions and wrong arguments."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

import metamix  # noqa: F401  registers the models
from metamix.detection import build_backbone, build_detector
from metamix.detection.anchors import Anchors
from metamix.detection.detectors import roi_align

TINY = dict(depths=(1, 1, 1), dims=(24, 24, 48), out_channels=64)
NAMES = ("retinanet", "fcos", "faster_rcnn", "mask_rcnn")
SLOW_MASKS = [*NAMES[:3], pytest.param("mask_rcnn", marks=pytest.mark.slow)]


def detector(name="retinanet", backbone="metaformer_pooling_nano", num_classes=3, **options):
    args = dict(depth=2, out_channels=64) if "minattn" in backbone else TINY
    torch.manual_seed(0)
    return build_detector(
        name,
        backbone=backbone,
        num_classes=num_classes,
        backbone_args=args,
        **(dict(min_size=64, max_size=96) | options),
    )


def batch(*counts, masks=False):
    """Make images of different sizes with the given numbers of boxes."""
    images, targets = [], []
    for i, count in enumerate(counts):
        h, w = 64 + 8 * i, 90 - 10 * i
        corner = torch.rand(count, 2) * 30
        images.append(torch.rand(3, h, w))
        targets.append(dict(boxes=torch.cat([corner, corner + 20], 1), labels=torch.randint(1, 4, (count,))))
        if masks:
            targets[-1]["masks"] = torch.ones(count, h, w, dtype=torch.uint8)
    return images, targets


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "backbone, counts",
    [
        ("metaformer_pooling_nano", (2, 0)),
        ("metaformer_pooling_nano", (0,)),
        ("metaformer_pooling_nano", (1,)),
        ("minattn_symmetric_nomlp_h4_mnist", (2, 0)),
    ],
)
def test_every_parameter_gets_a_gradient(name, backbone, counts):
    model = detector(name, backbone)
    losses = model(*batch(*counts, masks=name == "mask_rcnn"))
    loss = sum(losses.values())
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", SLOW_MASKS)
def test_predictions_lie_inside_the_images(name):
    model = detector(name).eval()
    threshold = model.roi_heads if "rcnn" in name else model
    threshold.score_thresh = 0.0
    images, _ = batch(1, 1)
    with torch.no_grad():
        predictions = model(images)
    for image, prediction in zip(images, predictions, strict=True):
        h, w = image.shape[-2:]
        boxes = prediction["boxes"]
        assert len(boxes) and boxes.min() >= 0 and (boxes <= torch.tensor([w, h, w, h])).all()
        assert prediction["labels"].min() >= 1 or name in ("retinanet", "fcos")
        assert prediction["labels"].max() <= 3
        if name == "mask_rcnn":
            assert prediction["masks"].shape == (len(boxes), 1, h, w)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_detector_learns_one_image(name):
    """An orange square on dark noise is found after 60 steps, but not before training."""
    model = detector(name, num_classes=1)
    image = torch.rand(3, 64, 96) * 0.2
    image[0, 20:50, 30:62], image[1, 20:50, 30:62] = 1.0, 0.5
    target = dict(boxes=torch.tensor([[30.0, 20, 62, 50]]), labels=torch.tensor([1]))

    def overlap():
        with torch.no_grad():
            boxes = model.eval()([image])[0]["boxes"]
        return box_iou(boxes[:1], target["boxes"]).item() if len(boxes) else 0.0

    before = overlap()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model.train()
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        optimizer.step()
    assert before < 0.3 and overlap() > 0.6


def test_a_copied_detector_gives_the_same_predictions():
    model = detector("fcos", score_thresh=0.0).eval()  # an untrained head gives low scores
    images, _ = batch(1)
    with torch.no_grad():
        for other in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
            torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)
            with torch.autocast("cpu", torch.bfloat16):
                (prediction,) = other(images)
            boxes = prediction["boxes"]
            assert len(boxes) and boxes.dtype == torch.float32  # copied hooks cast the outputs


@pytest.mark.parametrize("name", SLOW_MASKS)
def test_losses_under_autocast_are_float32_and_close_to_fp32(name):
    model = detector(name)
    data = batch(2, 1, masks=name == "mask_rcnn")
    torch.manual_seed(1)
    exact = model(*data)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*data)
    assert {x.dtype for x in half.values()} == {torch.float32}
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.05)


def test_retinanet_has_the_anchor_sizes_of_the_paper():
    def sizes(**options):
        return [[round(size) for size in level] for level in detector(**options).anchor_generator.sizes]

    assert sizes() == [[32, 40, 51], [64, 81, 102], [128, 161, 203], [256, 323, 406], [512, 645, 813]]
    assert sizes(anchor_scale=2)[0] == [16, 20, 25]


def test_boxes_of_fcos_are_in_units_of_the_stride():
    assert detector("fcos").anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))


@pytest.mark.parametrize("size, resized", [((40, 60), (64, 96)), ((40, 80), (48, 96)), ((200, 50), (96, 24))])
def test_the_shorter_side_becomes_min_size_unless_the_longer_side_would_exceed_max_size(size, resized):
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]])}
    model = detector(min_size=(48, 64)).eval()  # training draws one of the sides; evaluation takes the last
    original = torch.rand(3, *size)
    image, target = model.transform.resize(original, target)
    assert torch.equal(image, F.interpolate(original[None], resized, mode="bilinear", antialias=True)[0])
    assert target["boxes"][0, 2:].tolist() == pytest.approx([10 * resized[1] / size[1], 10 * resized[0] / size[0]])


def image_list(h, w):
    return ImageList(torch.zeros(1, 3, h, w), [(h, w)])


def test_anchors_use_exact_strides():
    strides = (3.5, 7, 14)
    anchors = Anchors(strides, [[8]] * 3, (1.0,))
    maps = [torch.zeros(1, 1, round(1204 / s), 400, dtype=torch.bfloat16) for s in strides]
    (boxes,) = anchors(image_list(1204, 1400), maps)
    assert boxes.dtype == torch.float32
    row = boxes.view(-1, 400, 4)  # rows of 400 boxes, level after level
    torch.testing.assert_close(row[0, :, :2].mean(1), 1.75 * torch.arange(400) - 4)
    torch.testing.assert_close(row[344, :, 0], 7.0 * torch.arange(400) - 4)

    theirs = AnchorGenerator(((8,),) * 3, ((1.0,),) * 3)
    (wrong,) = theirs(image_list(1204, 1400), maps)
    assert wrong.dtype == torch.bfloat16 and not torch.equal(wrong.view(-1, 400, 4)[344], row[344].bfloat16())


def test_roi_align_takes_a_stride_of_seven():
    backbone = build_backbone("minattn_minimal_mlp_h1_mnist", depth=1, out_channels=1)
    align = roi_align(backbone, 1)
    maps = {}
    for name, s in zip(backbone.levels, backbone.strides):  # each place of a map holds its x coordinate in the image
        x = torch.arange(round(224 / s)) * s
        maps[name] = x.expand(1, 1, len(x), -1).contiguous()
    box = torch.tensor([[40.0, 60, 96, 130]])  # the centre has x = 68
    assert align(maps, [box], [(224, 224)]).item() == pytest.approx(68, abs=0.1)
    coarse = roi_align(build_backbone("minattn_minimal_mlp_h1_mnist", depth=1, out_channels=1, out_indices=(1, 2)), 1)
    assert (align.map_levels.k_min, align.map_levels.k_max) == (2, 5)
    assert (coarse.map_levels.k_min, coarse.map_levels.k_max) == (3, 4)
    align.scales = None  # torchvision then guesses the scales
    assert abs(align(maps, [box], [(224, 224)]).item() - 68) > 5


@pytest.mark.parametrize("backbone", ["metaformer_raft_nano", "resnet18"])
def test_parameter_groups_run_from_stem_to_head(backbone):
    model = build_detector("retinanet", backbone=backbone, num_classes=3)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {n for n, _ in model.named_parameters()}
    body = [layer for name, layer in layers.items() if "backbone.body" in name]
    rest = {layer for name, layer in layers.items() if "backbone.body" not in name}
    assert body == sorted(body) and min(body) == 0 and rest == {max(body) + 1}
    if backbone == "metaformer_raft_nano":
        assert max(body) == 8  # the stem, then the blocks; a transition belongs to the block after it
        model.set_grad_checkpointing()
        assert model.backbone.body.model.stages[0].blocks[0].grad_checkpointing


def test_mean_and_std_come_from_the_backbone():
    cfg, transform = timm.get_pretrained_cfg("metaformer_pooling_nano"), detector().transform
    assert (transform.image_mean, transform.image_std) == (cfg.mean, cfg.std) and cfg.mean != (0.5,) * 3
    assert detector("fcos", image_mean=[0.5] * 3).transform.image_mean == [0.5] * 3


@pytest.mark.parametrize("name", NAMES)
def test_labels_out_of_range_are_refused(name):
    images, targets = batch(2, masks=name == "mask_rcnn")
    targets[0]["labels"] = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="labels range from 0 to 4, but this detector has 3 classes: .* from 1"):
        detector(name)(images, targets)


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(name="retinet"), "detector is 'retinet'; did you mean 'retinanet'"),
        (dict(num_classes=0), "num_classes is 0; a detector needs at least 1 class"),
        (dict(min_siz=400), "retinanet has no option 'min_siz'; did you mean 'min_size'"),
        (dict(name="mask_rcnn", score_thresh=0.1), "no option 'score_thresh'; did you mean '.*score_thresh'"),
        (dict(backbone=torch.nn.Conv2d(3, 8, 1)), "backbone is a Conv2d; give a model's name"),
        (dict(name="fcos", backbone_args=dict(out_channels=48)), "out_channels is 48, but fcos takes multiples of 32"),
        (dict(anchor_generator=None), "no option 'anchor_generator'.* metamix makes anchor_generator and head"),
    ],
)
def test_wrong_arguments_are_refused(args, words):
    with pytest.raises(ValueError, match=words):
        build_detector(**(dict(name="retinanet", backbone="resnet18", num_classes=3) | args))


def test_backbone_args_of_a_built_backbone_are_refused():
    backbone = build_backbone("metaformer_pooling_nano", **TINY)
    with pytest.raises(ValueError, match="is already built: drop them"):
        build_detector("fcos", backbone=backbone, num_classes=1, backbone_args=dict(out_channels=8))


@pytest.mark.parametrize("option", ["pretrained", "in_chans", "mixer", "dynamic_img_size", "img_size"])
def test_backbone_arguments_given_to_the_detector_are_refused(option):
    with pytest.raises(ValueError, match=f"no option '{option}'.*Arguments of the backbone go into backbone_args"):
        build_detector("fcos", backbone="metaformer_pooling_nano", num_classes=1, **{option: 1})


@pytest.mark.parametrize("in_chans", [1, 4])
def test_detectors_take_grey_and_four_channel_images(in_chans):
    torch.manual_seed(0)
    model = build_detector(
        "fcos",
        backbone="metaformer_pooling_nano",
        num_classes=1,
        backbone_args=TINY | dict(in_chans=in_chans),
        min_size=64,
        max_size=96,
    )
    mean = timm.get_pretrained_cfg("metaformer_pooling_nano").mean
    expected = [sum(mean) / 3] if in_chans == 1 else [*mean, mean[0]]
    assert list(model.transform.image_mean) == pytest.approx(expected)
    assert len(model.transform.image_std) == in_chans
    image = torch.rand(in_chans, 64, 96)
    target = dict(boxes=torch.tensor([[30.0, 20, 62, 50]]), labels=torch.tensor([1]))
    assert sum(model([image], [target]).values()).isfinite()
    model.eval()
    assert model([image])[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_are_not_finite_are_refused(name):
    """torchvision drops boxes whose score is NaN, so such a model would find nothing."""
    model = detector(name).eval()
    assert "boxes" in model([torch.rand(3, 64, 96)])[0]
    next(model.backbone.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model returns NaN or infinity: use other weights"):
        model([torch.rand(3, 64, 96)])
