"""What an annotation file of COCO's format must hold, said in words: of its fields, its ids and its segmentations.

Training refuses the first thing that is wrong, `metamix.detection.verify` lists them all.
"""

from collections.abc import Iterator

INTEGER = (int,), "an integer"  # True is none, and pycocotools walks through a text id letter by letter
TEXT = (str,), "text"
NUMBER = (int, float, type(None)), "a number, where it is given"
FLAG = (int, bool, type(None)), "0 or 1, where it is given"

FIELDS = {
    "images": {"id": INTEGER, "file_name": TEXT, "width": NUMBER, "height": NUMBER},
    "annotations": {"id": INTEGER, "image_id": INTEGER, "category_id": INTEGER, "area": NUMBER, "iscrowd": FLAG},
    "categories": {"id": INTEGER, "name": TEXT},
}


def field_problems(data: dict[str, list[dict]]) -> Iterator[str]:
    for key, fields in FIELDS.items():
        for place, entry in enumerate(data[key]):
            for field, (types, accepted) in fields.items():
                value = entry.get(field)
                if type(value) not in types:
                    found = f"no {field}" if value is None else f"the {field} {value!r}"
                    yield f"{key}[{place}] has {found}; it must be {accepted}"


def repeated(data: dict[str, list[dict]]) -> Iterator[str]:
    """Ids that stand twice: one image would have the boxes of another. And names: two classes would be scored as
    one."""
    for key, field in (("images", "id"), ("annotations", "id"), ("categories", "id"), ("categories", "name")):
        seen = set()
        for entry in data[key]:
            if entry[field] in seen:
                yield f"the {field} {entry[field]} stands twice in {key}"
            seen.add(entry[field])


def with_area(segmentation: list | dict | None) -> list | dict | None:
    """A segmentation without its polygons of fewer than three points, of which pycocotools takes a first one for a
    box."""
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if not isinstance(polygon, list) or len(polygon) >= 6]


def segmentation_problem(segmentation: list | dict | None, image: dict) -> str | None:
    """What keeps a segmentation from being drawn as a mask, or None: pycocotools fails at it, or reads past its end."""
    if not segmentation:
        return "it has neither a polygon of three points or more nor run lengths"
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        known = [image.get("height"), image.get("width")]
        if None not in known and size != known:
            return f"its segmentation is of height and width {size}, but the image of {known}"
        if not isinstance(counts, str):  # which is packed
            if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
                return "its segmentation has no counts, a list of integers or text"
            if None not in known and sum(counts) != known[0] * known[1]:
                return f"its segmentation counts {sum(counts)} pixels, but the image has {known[0] * known[1]}"
        return None
    if not isinstance(segmentation, list):
        return f"its segmentation is {segmentation!r}; polygons or run lengths are needed"
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            return f"its segmentation has the polygon {polygon}; x and y of three points or more are needed"
    return None
