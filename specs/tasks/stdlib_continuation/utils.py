"""Items of the task stdlib_continuation: the true continuation of a piece of code, among four.

The three false ones come from three other files. Contexts and choices come from held-out files only
(every 20th file, the split of the training data in specs/quickstart.yaml), so no model has seen them.
Every choice starts at a space between two words and has the same length: only its content tells it apart.
"""

import random

import datasets

from boomspec.corpus import python_stdlib

HELD_OUT_EVERY = 20
CONTEXT = 140  # characters
CONTINUATION = 90
CHOICES = 4
MINIMUM_PLACES = 100  # leaves out files of a few lines, which would give the same item again and again


def load(*, items: int = 400, **_: object) -> dict[str, datasets.Dataset]:
    """The split "test" of `items` documents {context, choices, label}: the same at every call."""
    texts = [path.read_text(encoding="utf-8") for path in python_stdlib()[::HELD_OUT_EVERY]]
    long_enough = [text for text in texts if len(_places(text)) >= MINIMUM_PLACES]
    return {"test": datasets.Dataset.from_list(_items(long_enough, items))}


def _places(text: str) -> list[int]:
    """Positions of single spaces between two words that have room for a context and a continuation."""
    inside = range(CONTEXT, len(text) - CONTINUATION)
    return [i for i in inside if text[i] == " " and not text[i - 1].isspace() and not text[i + 1].isspace()]


def _items(texts: list[str], items: int) -> list[dict[str, object]]:
    places = [_places(text) for text in texts]
    draw = random.Random(0)
    documents: list[dict[str, object]] = []
    seen: set[tuple[int, int]] = set()
    while len(documents) < items:
        files = draw.sample(range(len(texts)), CHOICES)
        starts = [draw.choice(places[file]) for file in files]
        choices = [texts[file][start : start + CONTINUATION] for file, start in zip(files, starts, strict=True)]
        true = (files[0], starts[0])
        if true in seen or len(set(choices)) < CHOICES:
            continue
        seen.add(true)
        label = draw.randrange(CHOICES)
        choices[0], choices[label] = choices[label], choices[0]
        context = texts[true[0]][true[1] - CONTEXT : true[1]]
        documents.append({"context": context, "choices": choices, "label": label})
    return documents
