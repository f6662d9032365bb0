"""The wording of boomspec's messages, as tests expect it: one file holds all of it, tests name its entries."""

from pathlib import Path

import yaml

MESSAGES: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "golden/messages.yaml").read_text())


def wording(key: str, /, **fields: object) -> str:
    """Return the text of an entry, `group.name`, with its `{fields}` filled in."""
    group, _, name = key.partition(".")
    return MESSAGES[group][name].format(**fields)
