"""Describe detection for the registry of tasks."""

from metamix.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="detection",
    about="find objects",
    task="metamix.detection.task:Detection",
    load="metamix.detection.load:load_detector",
    predict="metamix.detection.predict:FindObjects",
    verify="metamix.detection.verify:VerifyAnnotations",
    export="metamix.detection.export:open_detector",
    exported="metamix.detection.export:exported_detector",
    explain="metamix.detection.explain:explain_object",
    pipeline="object-detection",
    convert="metamix.detection.convert:FORMATS",
    less_memory="give --device cpu, or smaller images",
    folders=(frozenset({"annotations"}),),
    data_sets=("coco",),
)
