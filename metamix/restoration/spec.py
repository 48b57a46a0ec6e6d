"""Describe image restoration for the registry of tasks."""

from metamix.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="restoration",
    about="restore images",
    task="metamix.restoration.task:Restoration",
    load="metamix.restoration.load:load_restorer",
    predict="metamix.restoration.predict:RestoreImages",
    verify="metamix.restoration.verify:VerifyPairs",
    export="metamix.restoration.export:open_restorer",
    exported="metamix.restoration.export:exported_restorer",
    pipeline="image-to-image",
    less_memory="give smaller tiles, such as --tile 256",
    takes_names=True,
    models="metamix.models.image_models:image_model_names",
    suffixes=(".npz",),
    folders=(frozenset({"input", "target"}),),
)
