"""Make the tables that compare the classifiers, from the cards in weights/, paired.json and image_sizes.json."""

from collections.abc import Sequence

from benchmarks.markdown import table, table_of_filled, wrap
from benchmarks.measure.accuracy import IMAGE_SIZES, PAIRS
from benchmarks.paths import read_json
from benchmarks.runs import differences
from benchmarks.weight_cards import by_mixer, image_size, load_cards, model_of, standard_error
from metamix import list_mixers
from metamix.utils.text import short_count

COLUMNS = ["test accuracy, %", "parameters", "MACs", "training, img/s", "inference, img/s", "memory, MiB"]
# Accuracy in % that a paper reports for its model, on the data of the shipped weights.
PUBLISHED = {"wavemixlite_8_10": 99, "wavemixlite_32_7": 80}


def family_table(tag: str) -> str:
    """Make the full table of the mixers on one data set, with a note. Columns without a number are left out."""
    family = by_mixer(load_cards(tag))
    baseline = family["identity"].get("cost")
    rows = [
        model_row(f"`{mixer}`", family[mixer], baseline)
        if mixer in family
        else [f"`{mixer}`", "not trained", *[""] * (len(COLUMNS) - 1)]
        for mixer in list_mixers()
    ]
    return f"{table_of_filled(['mixer', *COLUMNS], rows)}\n\n{notes(list(family.values()))}"


def model_row(name: str, card: dict, baseline: dict | None) -> list[str]:
    """Make a row: `name`, then `COLUMNS`. Speeds are also given relative to `baseline`, the cost of identity."""
    cells = [name, f"{card['top1']:.2f}", short_count(card["parameters"]), short_count(card["macs"])]
    if "cost" not in card:
        return [*cells, "", "", ""]
    cost = card["cost"]
    for key in ("train_img_per_s", "infer_img_per_s"):
        cells.append(f"{cost[key]:,.0f}" + (f" ({cost[key] / baseline[key]:.2f})" if baseline else ""))
    return [*cells, f"{cost['train_mib']:,} / {cost['infer_mib']:,}"]


def notes(cards: Sequence[dict]) -> str:
    """Explain the numbers of the cards in a table: data, uncertainty, recipe and how speed was measured."""
    card, samples = cards[0], cards[0]["samples"]
    error = max(standard_error(card["top1"], card["samples"]["test"]) for card in cards)
    said = [
        f"Data: {card['data']}, {samples['train']:,} training and {samples['test']:,} test images of "
        f"{image_size(card)} pixels in {card['pretrained_cfg']['num_classes']} classes. The test split was scored "
        f"once, after training. Two standard errors of an accuracy are {2 * error:.2f} points."
    ]
    differing = {key for other in cards for key in differences(card["recipe"], other["recipe"])} - {"model"}
    if differing:
        said.append(f"The recipes differ in {', '.join(f'`{key}`' for key in sorted(differing))}; see the cards.")
    elif len(cards) > 1:
        said.append(f"All models follow one recipe of {card['recipe']['epochs']} epochs; the cards have the commands.")
    said.append("Each model was trained with one seed.")
    if cost := card.get("cost"):
        said.append(
            f"Speed is the median over interleaved steps on {cost['cpu']} with {cost['threads']} threads, in "
            f"{cost['precision']}, with batches of {cost['batch_size']} random images. A training step is a forward "
            "pass, a backward pass and an SGD update. The speed relative to identity is in brackets. Memory is what "
            "training / inference adds to a process that holds torch and the model."
        )
    return wrap(" ".join(said))


def sizes_table(tag: str) -> str:
    """Make the table of accuracy at other image sizes, measured in four ways. Columns without a value are left out."""
    sizes, rows = read_json(IMAGE_SIZES)[tag]["sizes"], []
    for name, scores in sorted(sizes.items(), key=lambda item: list_mixers().index(item[0].split("_")[1])):
        sides = list(scores["resized"])
        tuned = {side: run["top1"] for side, run in scores.get("tuned", {}).items()}
        forms = [scores["top1"], scores["made"], scores["resized"], tuned]
        cells = [f"{form[side]:.1f}" if side in form else "" for side in sides for form in forms]
        rows.append([f"`{name.split('_')[1]}`", *cells])
    (trained_at,) = scores["top1"].keys() - sides  # the sides are the same in all rows
    header = ["mixer"]
    for side in sides:
        header += [f"{side} px: unchanged", "built for it", f"resized to {trained_at}", "fine-tuned"]
    return table_of_filled(header, rows)


def made_for_sizes_table(tag: str) -> str:
    """Make the table of accuracy of models that are built for each image size."""
    made = {name.split("_")[1]: scores["made"] for name, scores in read_json(IMAGE_SIZES)[tag]["sizes"].items()}
    rows = [[f"`{m}`", *(f"{top1:.1f}" for top1 in made[m].values())] for m in list_mixers() if m in made]
    return table(["mixer", *(f"{side} px, %" for side in next(iter(made.values())))], rows)


def pairs_table(tag: str) -> str:
    """Make the table of accuracy from one view and from six, and of McNemar's test against identity and pooling."""
    result = read_json(PAIRS)[tag]
    others = [mixer for mixer in ("identity", "pooling") if mixer in result["top1"]]
    rows = [
        [
            f"`{mixer}`",
            f"{top1['one_view']:.2f}",
            f"{top1['six_views']:.2f}" if "six_views" in top1 else "",
            *("" if mixer == other else against(mixer, other, result["pairs"]) for other in others),
        ]
        for mixer, top1 in result["top1"].items()
    ]
    header = ["mixer", "accuracy from one view, %", "from six views, %", *(f"against `{other}`" for other in others)]
    return table_of_filled(header, rows)


def against(mixer: str, other: str, pairs: Sequence[dict]) -> str:
    """Format the numbers of images that only one of two mixers classifies correctly, and the p-value of their test.

    An example is "412 : 305, p 7e-05".
    """
    for pair in pairs:
        if {pair["first"], pair["second"]} == {mixer, other}:
            counts = pair["only_first"], pair["only_second"]
            mine, theirs = counts if pair["first"] == mixer else counts[::-1]
            return f"{mine} : {theirs}, p {pair['p']:.1g}"
    raise ValueError(f"{PAIRS.name} does not compare {mixer} with {other}: measure it again")


def published_table() -> str:
    """Make the table of the papers' models in weights/, beside the accuracy that the papers report."""
    cards = [card for card in load_cards() if model_of(card) in PUBLISHED]
    rows = []
    for card in cards:
        name, error = model_of(card), 2 * standard_error(card["top1"], card["samples"]["test"])
        cost = card["recipe"]["epochs"], f"{card['parameters']:,}", short_count(card["macs"])
        rows.append([f"`{name}`", card["data"], f"{card['top1']:.2f} ± {error:.2f}", PUBLISHED[name], *cost])
    header = ["model", "data", "test accuracy, %", "in the paper, %", "epochs", "parameters", "MACs"]
    return f"{table(header, rows)}\n\nEach model was trained with one seed; ± is two standard errors."
