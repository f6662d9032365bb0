"""Items of the task stdlib_questions: the answer to a question, among those to three others."""

import json
import random
from pathlib import Path

import datasets

QUESTIONS = Path(__file__).parents[2] / "texts" / "stdlib-chat.jsonl"
HELD_OUT_EVERY = 5  # the split of specs/adapt-toy.yaml, so that no model has been trained on these
CHOICES = 4
LONGEST = 160  # characters of an answer: with its question it fits into the toy's 128 positions


def load(**_: object) -> dict[str, datasets.Dataset]:
    """The split "test" of documents {prompt, choices, label}: the same at every call."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()[::HELD_OUT_EVERY]
    rows = [row for row in map(json.loads, lines) if len(row["response"]) <= LONGEST]
    draw, documents = random.Random(0), []
    for number, row in enumerate(rows):
        others = draw.sample([other for i, other in enumerate(rows) if i != number], CHOICES - 1)
        choices = [other["response"] for other in others]
        label = draw.randrange(CHOICES)
        choices.insert(label, row["response"])
        documents.append({"prompt": row["prompt"], "choices": choices, "label": label})
    return {"test": datasets.Dataset.from_list(documents)}
