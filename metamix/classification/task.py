"""Image classification: any timm model on any set of labelled images, scored by top-1 and top-5 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from metamix.data import (
    Augment,
    DataOptions,
    Normalize,
    Source,
    SourceOptions,
    channel_statistics,
    eval_loader,
    image_size,
    open_data,
    train_loader,
)
from metamix.data.memory import in_memory
from metamix.models import count_macs
from metamix.models.registry import check_model, check_published
from metamix.models.weights import adapt_checkpoint
from metamix.training.recipe import option
from metamix.utils.figures import plain, save_figure
from metamix.utils.tensor_files import load_into, load_weights


def data_name(options: SourceOptions) -> str:
    """What the data are called in titles and metadata: the set's name or, of a folder, the folder's."""
    return Path(options.data_dir or "").resolve().name if options.data == "folder" else options.data


@dataclass
class ModelOptions(SourceOptions):
    """Model and data."""

    model: str = option(
        "metaformer_pooling_nano",
        "a model of metamix or timm; train.py takes several, a,b,c, and trains and compares them",
        group="model",
    )
    model_args: dict = option({}, "further arguments of the model, as YAML: '{mixer: raft}'", group="model")
    pretrained: bool = option(False, "begin from the model's published weights", group="model")
    checkpoint: str | None = option(
        None, "begin from the weights in this file; a head for other classes is made anew", group="model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.checkpoint:
            raise ValueError(f"pretrained and checkpoint ({self.checkpoint}) both say where to begin; give one of them")


@dataclass
class EvalOptions(ModelOptions):
    """Model and data, as eval.py takes them: what is not given is as it was in training."""

    holdout: float | None = option(None, "share of train that is kept out; none: as in training", group="data")
    memory: Literal["auto", "yes", "no"] | None = option(
        None, "decode the set at the start; none: as in training", group="data"
    )
    img_size: int | None = option(None, "side of the images in pixels; none: as in training", group="data")
    interpolation: Literal["bicubic", "bilinear", "nearest"] | None = option(
        None, "how images are resized; none: as in training", group="data"
    )
    mean: tuple[float, ...] | None = option(None, "per channel, of values 0 to 1; none: as in training", group="data")
    crop_pct: float | None = option(
        None,
        "streamed sets: share of the shorter side that the centre crop keeps; none: as in training",
        group="data",
    )

    def __post_init__(self) -> None:
        ModelOptions(**self.given())  # refuses what is out of range

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class ClassificationOptions(ModelOptions, DataOptions):
    """Classification: how a classifier is trained."""

    linear_probe: bool = option(False, "train the head alone, on features that stand still", group="model")
    drop_rate: float = option(0.0, "dropout before the head", group="model")
    drop_path: float = option(0.0, "stochastic depth: rate of the last block, from 0 in the first", group="model")

    loss: Literal["ce", "bce"] = option(
        "ce", "cross-entropy, or binary cross-entropy for each class", group="loss", on_resume="say"
    )
    smoothing: float = option(0.0, "label smoothing", group="loss", on_resume="say")
    teacher: str | None = option(None, "distil from this model of metamix or timm", group="loss")
    teacher_checkpoint: str | None = option(None, "the teacher's weights; none: its published ones", group="loss")
    distill: float = option(0.5, "share of the teacher in the loss, 0 to 1", group="loss", on_resume="say")
    temperature: float = option(
        1.0, "softens teacher and student before they are compared", group="loss", on_resume="say"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("smoothing", "distill", "drop_rate", "drop_path"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be between 0 and 1")
        if self.teacher_checkpoint and not self.teacher:
            raise ValueError(f"teacher_checkpoint is {self.teacher_checkpoint}, but no --teacher says of which model")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, but it must be above 0")
        sources = {"num_classes": "the data", "in_chans": "the data"}
        sources |= {"img_size": "--img-size", "pretrained": "--pretrained"}
        sources |= {"drop_rate": "--drop-rate"} if self.drop_rate else {}
        sources |= {"drop_path_rate": "--drop-path"} if self.drop_path else {}
        for name in self.model_args:
            if name in sources:
                raise ValueError(f"model_args has {name}, which comes from {sources[name]}; leave it out of model_args")


class Classification:
    """The classification task: assembles data, model, loss, metric and pictures."""

    Options, EvalOptions = ClassificationOptions, EvalOptions
    one_shape = True

    def __init__(self, options: ModelOptions, seed: int = 0, metadata: dict[str, Any] | None = None):
        """Open the data.

        Args:
            options: `ClassificationOptions` to train, `ModelOptions` only to evaluate.
            metadata: of weights to evaluate; the data must have as many classes and channels.
        """
        self.options = options
        self.data = ClassificationData(options, seed, metadata)
        self.title = f"{self.data.name.replace('/', '-')}-{options.model}"
        self.model = ClassificationModel(options, self.data)
        self.loss = ClassificationLoss(options, self.model)
        self.metric = ClassificationMetric(self.data)
        self.pictures = ClassificationPictures(self.data.classes)

    @property
    def notes(self) -> list[str]:
        return [*self.data.notes, *self.model.notes]

    @classmethod
    def trained(cls, options: EvalOptions) -> tuple[Classification, nn.Module, dict[str, Any]]:
        """For eval.py: the model of `checkpoint`, or with its published weights, built as it was trained, and the task
        with the statistics and image size that it was trained with, where `options` do not say otherwise."""
        check_model(options.model)
        if options.checkpoint:
            tensors, about = load_classifier(options.checkpoint)
            if about.get("model", options.model).partition(".")[0] != options.model.partition(".")[0]:
                raise ValueError(
                    f"{options.checkpoint} holds the weights of {about['model']}, not of {options.model}; "
                    f"give --model {about['model']}"
                )
            shape = {key: about[key] for key in ("num_classes", "in_chans", "img_size") if key in about}
            arguments = shape | about.get("model_args", {}) | options.model_args
            model = create_model(options.model, **arguments)
            if not shape:  # tensors alone, whose names may be their authors'
                sizes = {tensor.numel() for tensor in tensors.values()}
                tensors = adapt_checkpoint(model, tensors, options.checkpoint)
                if other := next((name for name, tensor in tensors.items() if tensor.numel() not in sizes), None):
                    raise ValueError(
                        f"{options.checkpoint} was made for images of another size than {options.model} ({other} has "
                        f"another shape); give that size, --model-args '{{img_size: N}}'"
                    )
                model = create_model(options.model, **{"num_classes": _count_classes(tensors, options)} | arguments)
            load_into(model, tensors, options.checkpoint)
        elif options.pretrained:
            model = create_model(options.model, **{"pretrained": True} | options.model_args)
            about = {}
        else:
            raise ValueError(
                "there are no weights to evaluate: give --checkpoint FILE, or --pretrained for published ones"
            )
        model_args = about.get("model_args", {}) | options.model_args
        config = timm.data.resolve_model_data_config(model)
        config |= {
            "img_size": model_args.get("img_size", config["input_size"][-1]),
            "in_chans": model_args.get("in_chans", config["input_size"][0]),
            "num_classes": model.num_classes,
        } | about
        as_trained = {key: config[key] for key in ("img_size", "interpolation", "crop_pct")}
        as_trained |= {key: tuple(config[key]) for key in ("mean", "std")}
        as_trained |= {"memory": about["memory"]} if "memory" in about else {}
        if about.get("data") == data_name(options) and "holdout" in about:
            if options.holdout not in (None, about["holdout"]):
                raise ValueError(
                    f"holdout is {options.holdout}, but {options.checkpoint} was trained with {about['holdout']}, and "
                    f"so on images of that slice: leave it out"
                )
            as_trained["holdout"] = about["holdout"]
        options = ModelOptions(**as_trained | options.given() | {"model_args": model_args})
        return cls(options, metadata=config), model, about


class ClassificationData:
    """Splits, loaders and augmentation of a set of labelled images."""

    def __init__(self, options: ModelOptions, seed: int = 0, metadata: dict[str, Any] | None = None):
        self.options = options
        self.notes: list[str] = []
        self.splits = open_data(
            options.data,
            root=options.data_dir,
            holdout=options.holdout,
            download=options.download,
            memory=options.memory,
        )
        self.classes = self.splits.classes
        if metadata is not None:
            self._check_trained_for(metadata)
        self.size = image_size(self.splits.train, options)
        self.mean, self.std = channel_statistics(self.splits.train, options)
        if isinstance(options, ClassificationOptions):
            self.transform = Augment(
                options, seed=seed, mean=self.mean, std=self.std, size=self.size, num_classes=len(self.classes)
            )
        self.name = data_name(options)
        self.identity = {
            "samples": {split: len(source) for split, source in self._sources().items()},
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def train_loader(self, batch_size: int, rank: int, world_size: int, seed: int):
        share, options = batch_size // world_size, self.options
        if share % 2 and (options.mixup or options.cutmix):
            raise ValueError(
                f"mixup and cutmix pair neighbours, and batch_size {batch_size} leaves each of {world_size} processes "
                f"an odd number of samples, {share}: take a multiple of {2 * world_size}"
            )
        return train_loader(self.splits.train, options, batch_size=batch_size, rank=rank, world=world_size, seed=seed)

    def eval_loaders(self, batch_size: int, rank: int, world_size: int):
        return {
            split: eval_loader(source, self.options, batch_size=batch_size, rank=rank, world=world_size)
            for split, source in self._sources().items()
            if split != "train"
        }

    def augment(self, batch: dict[str, Any], epoch: int, step: int, rank: int, world_size: int) -> dict[str, Any]:
        return self.transform(batch, epoch, step, rank, world_size)

    def _check_trained_for(self, metadata: dict[str, Any]) -> None:
        options = self.options
        for what, has, key in (
            ("classes", len(self.classes), "num_classes"),
            ("channels", self.splits.in_chans, "in_chans"),
        ):
            if has != metadata[key]:
                raise ValueError(
                    f"{options.model} was trained for {metadata[key]} {what} and {options.data} has {has}; give "
                    f"other --data, or fine-tune first: train.py --checkpoint {options.checkpoint or 'FILE'}"
                )
        for theirs, own in zip(metadata.get("classes", ()), self.classes):
            if theirs != own:
                self.notes.append(f"class {theirs!r} of the model is {own!r} here: classes are matched by their order")
                break

    def _sources(self) -> dict[str, Source]:
        splits = {"train": self.splits.train, "holdout": self.splits.holdout, "test": self.splits.test}
        return {split: source for split, source in splits.items() if source is not None}


class ClassificationModel:
    """Builds the classifier and, for distillation, its teacher."""

    def __init__(self, options: ModelOptions, data: ClassificationData):
        self.options, self.data = options, data
        self.frozen_helpers: tuple[nn.Module, ...] = ()
        self.notes: list[str] = []

    def build(self, metadata: dict[str, Any] | None = None) -> nn.Module:
        options, data = self.options, self.data
        shape = {"num_classes": len(data.classes), "in_chans": data.splits.in_chans, "img_size": data.size}
        rates = {"drop_rate": options.drop_rate, "drop_path_rate": options.drop_path}
        model = create_model(
            options.model,
            pretrained=options.pretrained and metadata is None,
            **shape,
            **options.model_args,
            **{name: rate for name, rate in rates.items() if rate},
        )
        if options.checkpoint and metadata is None:
            new = load_pretrained(model, options.checkpoint, list(data.classes))
            self.notes.append(f"weights from {options.checkpoint}" + (f"; made anew: {', '.join(new)}" if new else ""))
        if options.linear_probe:
            model.requires_grad_(False)
            heads = model.get_classifier()  # two of a distilled model
            for head in heads if isinstance(heads, tuple) else (heads,):
                head.requires_grad_(True)
        if options.teacher:
            self.frozen_helpers = (self._teacher(shape),)
        return model

    def describe(self, model: nn.Module) -> dict[str, Any]:
        options, data = self.options, self.data
        small = in_memory(data.splits.test, options)  # such images are not cropped in scoring
        return {
            "task": "classification",
            "model": options.model,
            "model_args": options.model_args,
            "num_classes": len(data.classes),
            "in_chans": data.splits.in_chans,
            "img_size": data.size,
            "interpolation": options.interpolation,
            "crop_pct": 1.0 if small else options.crop_pct,
            "memory": "auto" if small else "no",
            "holdout": options.holdout,
            "data": data.name,
            **data.identity,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "macs": count_macs(model, (data.splits.in_chans, data.size, data.size)),
        }

    def _teacher(self, shape: dict[str, int]) -> Teacher:
        options, data = self.options, self.data
        if options.teacher_checkpoint:
            tensors, about = load_weights(options.teacher_checkpoint)
            shape |= {key: about[key] for key in shape if key in about}
            model = create_model(options.teacher, **shape, **about.get("model_args", {}))
            load_into(model, tensors, options.teacher_checkpoint)
            mean, std = about.get("mean", data.mean), about.get("std", data.std)
            classes = about.get("classes", data.classes)
        else:
            model = create_model(options.teacher, pretrained=True, in_chans=shape["in_chans"])
            classes = data.classes
            mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        if (model.num_classes, len(mean)) != (len(data.classes), data.splits.in_chans):
            raise ValueError(
                f"the teacher {options.teacher} knows {model.num_classes} classes of images of {len(mean)} channels, "
                f"and {options.data} has {len(data.classes)} of {data.splits.in_chans}; give --teacher-checkpoint "
                f"of one that was trained on such data"
            )
        for theirs, ours in zip(classes, data.classes):
            if theirs != ours:
                raise ValueError(
                    f"the teacher {options.teacher_checkpoint} has the class {theirs!r} where {options.data} has "
                    f"{ours!r}; give --teacher-checkpoint of one that was trained on such data"
                )
        teacher = Teacher(model, data.mean, data.std, mean, std)
        try:
            with torch.no_grad():
                teacher.eval()(torch.zeros(1, data.splits.in_chans, data.size, data.size))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"the teacher {options.teacher} does not take the images of {data.size} pixels that the student sees: "
                f"{error}. Give another --teacher, or --img-size"
            ) from None
        return teacher


class ClassificationLoss:
    """Cross-entropy or binary cross-entropy, with label smoothing and distillation."""

    def __init__(self, options: ModelOptions, model: ClassificationModel):
        self.options, self.model = options, model

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logits, target = model(batch["image"]), batch["target"]  # (n, classes); (n,) labels or (n, classes) shares
        loss = self._loss(logits.float(), target)
        if self.model.frozen_helpers:
            loss = (1 - self.options.distill) * loss + self.options.distill * self._distance(batch["image"], logits)
        labels = target if target.ndim == 1 else target.argmax(1)
        return loss, {"top1": 100 * (logits.argmax(1) == labels).float().mean()}

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.options.loss == "ce":
            return F.cross_entropy(logits, target, label_smoothing=self.options.smoothing)
        shares = F.one_hot(target, logits.shape[1]).to(logits) if target.ndim == 1 else target
        shares = shares * (1 - self.options.smoothing) + self.options.smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, shares)

    def _distance(self, image: Tensor, logits: Tensor) -> Tensor:
        """Hinton, Vinyals and Dean, arXiv 1503.02531: KL divergence to the teacher at temperature T, times T^2."""
        t = self.options.temperature
        (teacher,) = self.model.frozen_helpers
        return t**2 * F.kl_div(
            (logits.float() / t).log_softmax(1),
            (teacher(image) / t).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )


class ClassificationMetric:
    """Top-1 and top-5 accuracy and cross-entropy."""

    def __init__(self, data: ClassificationData):
        self.classes, self.normalize = data.classes, Normalize(mean=data.mean, std=data.std)

    def start(self) -> dict[str, Any]:
        classes = len(self.classes)
        return {
            "confusion": torch.zeros(classes, classes, dtype=torch.int64),  # [label, prediction]
            "in_top5": torch.zeros((), dtype=torch.int64),
            "loss": torch.zeros(()),
            "unreadable": torch.zeros((), dtype=torch.int64),  # images, in none of the scores
        }

    def update(self, state: dict[str, Any], model: nn.Module, batch: dict[str, Any]) -> None:
        was_read = batch["index"] >= 0
        logits = model(self.normalize(batch)["image"]).float()[was_read]
        label, classes = batch["label"][was_read], len(self.classes)
        best = logits.topk(min(5, classes)).indices  # (n, 5)
        state["confusion"] += torch.bincount(label * classes + best[:, 0], minlength=classes**2).view(classes, classes)
        state["in_top5"] += (best == label[:, None]).sum()
        state["loss"] += F.cross_entropy(logits, label, reduction="sum")
        state["unreadable"] += (~was_read).sum()

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        confusion = sum(state["confusion"] for state in states)
        count = int(confusion.sum())
        return {
            "top1": 100 * int(confusion.trace()) / count,
            "top5": 100 * sum(int(state["in_top5"]) for state in states) / count,
            "loss": sum(float(state["loss"]) for state in states) / count,
        }


class ClassificationPictures:
    """The confusion matrix."""

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes

    def draw(self, states: list[dict[str, Any]], folder: Path) -> list[Path]:
        path = Path(folder) / "test_confusion.png"
        draw_confusion(path, sum(state["confusion"] for state in states), self.classes)
        return [path]

    def report(self, states: list[dict[str, Any]]) -> str:
        scored, unreadable = (sum(int(state[key].sum()) for state in states) for key in ("confusion", "unreadable"))
        return f"{scored:,} images were scored; {unreadable:,} could not be read" if unreadable else ""


class Teacher(nn.Module):
    """A model that sees images normalised its own way, made from ours: (x std + mean - its mean) / its std."""

    def __init__(self, model: nn.Module, mean, std, its_mean, its_std):
        super().__init__()
        mean, std, its_mean, its_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (mean, std, its_mean, its_std)
        )
        self.model = model
        self.register_buffer("scale", std / its_std)
        self.register_buffer("shift", (mean - its_mean) / its_std)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:  # (n, C, H, W) -> (n, classes)
        return self.model(image * self.scale + self.shift).float()


def create_model(name: str, /, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's model of that name, which may have a tag.

    Raises:
        ValueError: an unknown name, with the nearest one; weights that nobody published; foreign arguments.
    """
    check_model(name)
    if pretrained:
        check_published(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if "img_size" in str(error) and "img_size" in arguments:  # a model for any size, such as timm's resnet18
            del arguments["img_size"]
            return create_model(name, pretrained, **arguments)
        raise ValueError(f"model {name} does not take {arguments}: {error}") from None


def _count_classes(tensors: dict[str, Tensor], options: ModelOptions) -> int:
    """Outputs of the head in a file that does not say what it holds."""
    head = timm.models.get_pretrained_cfg_value(options.model, "classifier")
    if f"{head}.weight" not in tensors:
        raise ValueError(
            f"{options.checkpoint} has no weights of the head of {options.model} ({head}); is it another model?"
        )
    return len(tensors[f"{head}.weight"])


def load_classifier(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and what is known of them; ValueError where the file says that it holds a detector."""
    tensors, about = load_weights(source)
    if about.get("task") == "detection":
        raise ValueError(f"{source} holds a detector: add --task detection")
    return tensors, about


def load_pretrained(model: nn.Module, source: str, classes: list[str]) -> list[str]:
    """Loads weights for fine-tuning. All must fit but the head's, which is made anew for other classes.

    Returns the names of the weights that were made anew.
    """
    tensors, about = load_classifier(source)
    tensors = adapt_checkpoint(model, tensors, source)
    head = model.pretrained_cfg.get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    if about.get("classes", classes) != classes:  # as many, perhaps, but others
        tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in head}
    return load_into(model, tensors, source, head=head)


def draw_confusion(path: Path, confusion: Tensor, classes: tuple[str, ...]) -> None:
    """Share of each label's samples (rows) by prediction (columns), in percent, with counts where there is room."""
    shares = 100 * confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(classes)
    side = min(12.0, 3.0 + 0.4 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    names = [plain(name) for name in classes]
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the label's samples", shrink=0.8)
    accuracy = 100 * confusion.trace().item() / max(1, confusion.sum().item())
    axes.set(xlabel="prediction", ylabel="label", title=f"{int(confusion.sum()):,} samples, top-1 {accuracy:.2f} %")
    if count <= 40:
        axes.set_xticks(range(count), names, **({"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}))
        axes.set_yticks(range(count), names)
    if count <= 20:
        for label, row in enumerate(confusion.tolist()):
            for prediction, number in enumerate(row):
                if number:
                    axes.text(
                        prediction,
                        label,
                        number,
                        ha="center",
                        va="center",
                        fontsize="small",
                        color="white" if shares[label, prediction] > 50 else "black",
                    )
    save_figure(path, figure)
