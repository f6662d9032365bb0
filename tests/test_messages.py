"""Messages are held word for word in tests/golden/messages.yaml alone; a test names the entry and gives its fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.messages import MESSAGES

TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))
LONGEST = 5  # words that an assertion may quote


def quoted(test: ast.AST) -> Iterator[ast.Constant]:
    """The texts that an assertion compares with `==` or `in`, and the patterns of `pytest.raises`."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            for compared in (inner for inner in ast.walk(node.test) if isinstance(inner, ast.Compare)):
                yield from (side for side in (compared.left, *compared.comparators) if isinstance(side, ast.Constant))
        elif isinstance(node, ast.Call):
            yield from (
                keyword.value
                for keyword in node.keywords
                if keyword.arg == "match" and isinstance(keyword.value, ast.Constant)
            )


def test_no_assertion_quotes_a_sentence() -> None:
    found = [
        f"{file.name}:{text.lineno}: {text.value}"
        for file in TESTS
        for text in quoted(ast.parse(file.read_text()))
        if isinstance(text.value, str) and len(re.findall(r"(?<!\S)[A-Za-z]{2,}[,.:;]?(?!\S)", text.value)) > LONGEST
    ]
    assert not found, "move these to tests/golden/messages.yaml:\n" + "\n".join(found)


def test_every_entry_is_used() -> None:
    named = set(re.findall(r'wording\(\s*"([\w.]+)"', "\n".join(file.read_text() for file in TESTS)))
    assert named == {f"{group}.{name}" for group, entries in MESSAGES.items() for name in entries}
