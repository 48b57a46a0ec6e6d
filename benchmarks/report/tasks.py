"""Make the tables of detection, segmentation, transfer, minimal attention and restoration, from results/ and cards."""

from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.markdown import table, wrap
from benchmarks.measure import memory
from benchmarks.measure.collect import MINATTN_DATA, SCORES
from benchmarks.measure.restoration import FILE, SIDE
from benchmarks.paths import read_json
from benchmarks.report.deploy import mixer_of
from benchmarks.weight_cards import load_cards
from metamix.models.minattn import ROWS, variant
from metamix.utils.text import plural, short_count

# A third party's reproduction: (similarity, MLP, heads) -> accuracy in % on MNIST and CIFAR-10.
REPRODUCTION = {
    ("full", True, 1): (98.33, 68.19),
    ("full", True, 4): (98.73, 67.72),
    ("collapsed", True, 1): (98.39, None),
    ("minimal", True, 1): (98.22, 65.14),
    ("full", False, 1): (97.55, 57.08),
    ("full", False, 4): (98.24, 61.37),
    ("symmetric", False, 1): (82.02, 9.84),
    ("symmetric", False, 4): (97.49, 46.84),
    ("collapsed", False, 1): (97.69, 56.19),
    ("minimal", False, 1): (94.45, 47.44),
}
# Data sets of the transfer table, by folder.
DATA = dict(grocery="Grocery Store", grocery5="five images a class", caltech="Caltech101")
DATA |= dict(bccd="blood cells", cards_coco="cards", camvid="CamVid")
NAMES = {"bsd68": "BSD68", "set12": "Set12", "set5/hr": "Set5", "set14": "Set14"}
# Mean PSNR in dB over the images, as the papers print it. The papers may round images differently than we do.
REFERENCES = {
    "bsd68": "BM3D 28.57, DnCNN-S 29.23",
    "set12": "BM3D 29.97, DnCNN-S 30.43",
    "set5/hr": "bicubic 33.66, SRCNN 36.66, VDSR 37.53",
    "set14": "bicubic 30.24, SRCNN 32.45, VDSR 33.03",
}


def detection_table(results: dict) -> str:
    """Make the table of COCO scores, one line for each backbone with its weights, with a note on the recipe."""
    rows, recipe = results["rows"], results["recipe"]
    classes, samples = list(rows[0]["classes"]), rows[0]["samples"]
    header = ["backbone", "AP", "AP50", "AP75", *(f"AP50 {name}" for name in classes), "params", "seeds"]
    by_model: dict[str, list[dict]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    lines = []
    for model, runs in sorted(by_model.items(), key=lambda item: -mean(row["AP"] for row in item[1])):
        scores = [[row[name] for row in runs] for name in ("AP", "AP50", "AP75")]
        scores += [[row["classes"][name]["AP50"] for row in runs] for name in classes]
        lines.append([f"`{model}`", *map(over_seeds, scores), f"{runs[0]['parameters'] / 1e6:.2f} M", len(runs)])
    note = (
        f"The detectors were trained on {samples['train']} images for {recipe['epochs']} epochs, and tested on "
        f"{samples['test']} images, all of {recipe['min_size']}x{recipe['max_size']} pixels. A backbone with a tag "
        f"starts from the weights of that name; the other backbones start from random weights. COCO scores are in "
        f"percent. Rows are sorted by AP. If there are several seeds, a cell gives the mean and the standard deviation."
    )
    return f"{table(header, lines)}\n\n{wrap(note)}"


def over_seeds(scores: Sequence[float]) -> str:
    """Format the mean of scores, and their standard deviation if there are several; "" if there are none."""
    return (f"{mean(scores):.1f}" if scores else "") + (f" ± {stdev(scores):.1f}" if len(scores) > 1 else "")


def detection_memory_table() -> str:
    """Make the table of RetinaNet's peak memory by mixer."""
    rows = read_json(memory.DETECTION)["rows"]
    header = ["mixer of the backbone", "before", "one image of 800x1216", "training step, two images of 480x640"]
    cells = [
        [f"`{row['mixer']}`", *(f"{row[f'{what}_gib']:.2f} GiB" for what in ("without", "eval", "train"))]
        for row in rows
    ]
    return table(header, cells)


def segmentation_table(rows: Sequence[dict]) -> str:
    """Make the table of segmenters, in the order of `rows`."""
    measures = ("mean IoU", "pixel accuracy", "mean accuracy", "boundary F")
    header = ("backbone", "head", *measures, "params", "GMACs of a crop", "epochs")
    lines = []
    for row in rows:
        scores = [f"{row[key]:.1f}" for key in ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")]
        cost = f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.1f}", row["epochs"]
        lines.append([f"`{row['model']}`", row["head"], *scores, *cost])
    return table(header, lines)


def transfer_table(rows: Sequence[dict]) -> str:
    """Make the table of fine-tuned backbones, one line for each pair of model and initial weights."""
    tasks = {row["data"]: row["task"] for row in rows}
    columns = [data for data in DATA if data in tasks]
    runs: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        runs.setdefault((row["model"], row["start"], row["data"]), []).append(row["score"])
    lines = [
        [f"`{mixer_of(model)}`", start, *(over_seeds(runs.get((model, start, data), ())) for data in columns)]
        for model, start in dict.fromkeys(key[:2] for key in runs)
    ]
    macs = [sorted({round(row["macs"] / 1e6) for row in rows if row["data"] == data}) for data in columns]
    ranges = (" to ".join(map(str, each[:: len(each) - 1 or 1])) for each in macs)
    lines.append(["multiply-adds, millions", "", *ranges])
    header = ["mixer or model", "starts from", *(f"{DATA[data]}, {SCORES[tasks[data]]}" for data in columns)]
    return table(header, lines)


def minattn_table(results: dict) -> str:
    """Make the table of our accuracy beside the accuracy of a reproduction, with a note on both recipes."""
    rows = []
    for row in ROWS:
        similarity, mlp, heads = row
        cells = [similarity, "yes" if mlp else "no", heads]
        for data, theirs in zip(MINATTN_DATA, REPRODUCTION[row]):
            ours = results.get(data, {"rows": {}})["rows"].get(variant(*row, data))
            cells += [f"{ours['parameters']:,}", f"{ours['top1']:.2f}"] if ours else ["", "not trained"]
            cells.append("" if theirs is None else f"{theirs:.2f}")
        rows.append(cells)
    columns = [
        f"{title}, {what}" for title in MINATTN_DATA.values() for what in ("parameters", "ours, %", "reproduction, %")
    ]
    notes = [
        "The table gives the test accuracy after the last epoch, with one seed. Full attention has matrices for query, "
        "key, value and projection. Collapsed has one matrix for query and key. Minimal is like collapsed, but without "
        "value and projection. Symmetric has one Cholesky factor for query and key. A third party made the "
        "reproduction, with post-norm and a class token, in 100 epochs of Adam at 1e-3, with batches of 64 and no "
        "augmentation. Our models have a norm before attention and before the MLP, and average over tokens."
    ]
    for data, part in results.items():
        recipe = part["recipe"]
        copy = " (JPEG copy)" if recipe["data"] == "folder" else ""
        notes.append(
            f"On {MINATTN_DATA[data]}{copy}, they were trained for {recipe['epochs']} epochs with "
            f"{recipe['optimizer']} at {recipe['lr']:g}, with batches of {recipe['batch_size']} and "
            f"{augmentation(recipe)}."
        )
    return f"{table(['similarity', 'MLP', 'heads', *columns], rows)}\n\n{wrap(' '.join(notes))}"


def augmentation(recipe: dict) -> str:
    used = [key for key in ("flip", "padding", "cutmix", "mixup", "cutout", "erase") if recipe[key]]
    used += [recipe["auto_augment"]] * (recipe["auto_augment"] != "none")
    return f"augmentation by {', '.join(used)}" if used else "no augmentation"


def restoration_table() -> str:
    """Make the table of scores by weights and set of images, with notes on how they were measured."""
    scored = [row for row in read_json(FILE)["rows"] if row["set"] in NAMES]
    lines = [(row["name"], NAMES[row["set"]], REFERENCES[row["set"]], row) for row in scored]
    others = [card for card in load_cards(task="restoration") if card["name"] not in {row["name"] for row in scored}]
    lines += [(card["name"], card["test_data"], "", card) for card in others]
    cells = []
    for name, images, published, scores in lines:
        ensemble = f"{scores['psnr_x8']:.2f}" if "psnr_x8" in scores else ""
        psnr = f"{scores['input_psnr']:.2f}", f"{scores['psnr']:.2f}", ensemble
        cells.append([f"`{name}`", images, *psnr, f"{scores['ssim']:.4f}", published])
    header = ["weights", "images", "PSNR of the input, dB", "PSNR, dB", "with x8 ensemble, dB", "SSIM", "published, dB"]
    names: dict[str, list[str]] = {}
    for row in scored:
        names.setdefault(row["measured"], []).append(NAMES[row["set"]])
    notes = [f"{', '.join(dict.fromkeys(sets))}: {measured}." for measured, sets in names.items()]
    note = f"{' '.join(notes)} Published numbers: BM3D and DnCNN (arXiv 1608.03981), SRCNN and VDSR (1511.04587)."
    return f"{table(header, cells)}\n\n{wrap(note)}"


def restoration_cost_table() -> str:
    """Make the table of parameters and costs of the restoration weights."""
    result = read_json(FILE)
    ms = {row["name"]: row["ms"] for row in result["rows"] if row["set"] == "speed"}
    cells = []
    for card in load_cards(task="restoration"):
        latency = f"{ms[card['name']]:.0f}" if card["name"] in ms else "not measured"
        macs, minutes = f"{per_pixel(card) / 1000:.0f} k", f"{card['seconds'] / 60:.0f}"
        cells.append([f"`{card['name']}`", short_count(card["parameters"]), macs, latency, minutes])
    latency = f"ms for a result of {SIDE} x {SIDE}"
    header = ["weights", "parameters", "multiply-adds per pixel of the result", latency, "minutes of training"]
    note = f"Inference in float32 on {cpu(result['machine'])}."
    return f"{table(header, cells)}\n\n{wrap(note)}"


def restoration_memory_table() -> str:
    """Make the table of time and memory by image size."""
    result = read_json(memory.RESTORATION)
    cells = []
    for row in result["rows"]:
        tiles, pixels = f"of {row['tile']}" if row["tile"] else "none", row["width"] * row["height"]
        seconds = f"{row['seconds']:,.2f}" if row["seconds"] < 10 else f"{row['seconds']:,.0f}"
        spent = seconds, f"{1e6 * row['seconds'] / pixels:.2f}", f"{row['adds_mib']:,}"
        cells.append([f"`{row['model']}`", f"{row['width']:,} x {row['height']:,}", tiles, *spent])
    header = ["model", "pixels of the input", "tiles", "seconds", "microseconds per pixel", "memory, MiB"]
    note = (
        f"One image in float32 on {cpu(result['machine'])}. Memory is what the pass adds to the peak of a "
        "process that holds torch, the weights and the image."
    )
    return f"{table(header, cells)}\n\n{wrap(note)}"


def cpu(machine: dict) -> str:
    """Name the CPU and the number of its threads that were used."""
    return f"{plural(machine['threads'], 'thread')} of an {machine['cpu']}"


def per_pixel(card: dict) -> float:
    """Return the multiply-adds for each pixel of the restored image."""
    return card["macs"] / card["crop"] ** 2
