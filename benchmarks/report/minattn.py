"""Make the table of the minimal attention variants, from results/minattn.json."""

import json

from benchmarks.markdown import table, wrap
from benchmarks.measure.minattn import DATA, FILE
from metamix.models.minattn import ROWS, variant

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


def variants_table() -> str:
    return render(json.loads(FILE.read_text()))


def render(results: dict) -> str:
    """Make the table of our accuracy beside the reproduction's, with a note on both recipes."""
    rows = []
    for row in ROWS:
        similarity, mlp, heads = row
        cells = [similarity, "yes" if mlp else "no", heads]
        for data, theirs in zip(DATA, REPRODUCTION[row]):
            ours = results.get(data, {"rows": {}})["rows"].get(variant(*row, data))
            cells += [f"{ours['parameters']:,}", f"{ours['top1']:.2f}"] if ours else ["", "not trained"]
            cells.append("" if theirs is None else f"{theirs:.2f}")
        rows.append(cells)
    columns = [f"{title}, {what}" for title in DATA.values() for what in ("parameters", "ours, %", "reproduction, %")]
    said = [
        "Test accuracy after the last epoch, one seed. Full: query, key, value and projection. Collapsed: query and "
        "key are one matrix. Minimal: collapsed, without value and projection. Symmetric: query and key are one "
        "Cholesky factor. The reproduction is a third party's: post-norm, a class token, 100 epochs of Adam at 1e-3, "
        "batches of 64, no augmentation. Ours has a norm before "
        "attention and before the MLP, and averages over tokens."
    ]
    for data, found in results.items():
        recipe = found["recipe"]
        copy = " (JPEG copy)" if recipe["data"] == "folder" else ""
        said.append(
            f"{DATA[data]}{copy}: {recipe['epochs']} epochs of {recipe['optimizer']} at {recipe['lr']:g}, batches of "
            f"{recipe['batch_size']}, {augmentation(recipe)}."
        )
    return f"{table(['similarity', 'MLP', 'heads', *columns], rows)}\n\n{wrap(' '.join(said))}"


def augmentation(recipe: dict) -> str:
    used = [key for key in ("flip", "padding", "cutmix", "mixup", "cutout", "erase") if recipe[key]]
    used += [recipe["auto_augment"]] * (recipe["auto_augment"] != "none")
    return f"augmented by {', '.join(used)}" if used else "no augmentation"
