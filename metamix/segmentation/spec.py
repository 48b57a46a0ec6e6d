"""Describe semantic segmentation for the registry of tasks."""

from metamix.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="segmentation",
    about="label the pixels of images",
    task="metamix.segmentation.task:Segmentation",
    load="metamix.segmentation.load:load_segmenter",
    predict="metamix.segmentation.predict:LabelPixels",
    verify="metamix.segmentation.verify:VerifyMasks",
    export="metamix.segmentation.export:open_segmenter",
    exported="metamix.segmentation.export:exported_segmenter",
    pipeline="image-segmentation",
    convert="metamix.segmentation.convert:FORMATS",
    less_memory="give smaller tiles, such as --tile 256",
    folders=(frozenset({"images", "masks"}), frozenset({"leftImg8bit", "gtFine"})),
    data_sets=("ade20k", "cityscapes", "oxford_pets", "voc"),
)
