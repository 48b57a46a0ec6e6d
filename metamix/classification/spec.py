"""Describe classification for the registry of tasks."""

from metamix.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="classification",
    about="label images",
    task="metamix.classification.task:Classification",
    load="metamix.classification.load:load_classifier",
    predict="metamix.classification.predict:LabelImages",
    verify="metamix.classification.verify:VerifyImages",
    export="metamix.classification.export:open_classifier",
    exported="metamix.classification.export:exported_classifier",
    publish="metamix.classification.publish:write_config",
    explain="metamix.classification.explain:explain_label",
    pipeline="image-classification",
    convert="metamix.classification.convert:FORMATS",
    less_memory="give a smaller --batch-size",
    takes_names=True,
)
