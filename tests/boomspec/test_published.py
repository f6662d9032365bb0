"""The layer mapping that a published student carries."""

import json

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.models.folder import read_student_mapping
from tests.messages import wording


def test_the_copied_layers_are_the_kept_ones(tmp_path):
    mapping = {"pruned_teacher_layers": [1, 3], "copied_teacher_layers": [0, 2, 4]}
    (tmp_path / "student_config.json").write_text(json.dumps(mapping))
    assert read_student_mapping(tmp_path) == (0, 2, 4)


def test_a_folder_without_a_mapping_is_an_error_that_says_what_else_to_do(tmp_path):
    with pytest.raises(BoomspecError, match=r"no readable student_config\.json(.|\n)*keep: \[0, 2"):
        read_student_mapping(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", wording("published.copied_teacher_layers_not")),
        ('{"copied_teacher_layers": [0, 2]}', wording("published.pruned_teacher_layers_not")),
        ('{"copied_teacher_layers": [0, true], "pruned_teacher_layers": [2]}', wording("published.not_list_layers")),
        (
            '{"copied_teacher_layers": [0, 1], "pruned_teacher_layers": [1, 2]}',
            wording("published.layer_both_copied_pruned"),
        ),
        (
            '{"copied_teacher_layers": [0, 2], "pruned_teacher_layers": [3]}',
            wording("published.not_together_all_teacher"),
        ),
        (
            '{"copied_teacher_layers": [0, 0], "pruned_teacher_layers": [1]}',
            wording("published.not_together_all_teacher"),
        ),
        (
            '{"copied_teacher_layers": [2, 0], "pruned_teacher_layers": [1]}',
            wording("published.copied_teacher_layers_not_order"),
        ),
    ],
)
def test_a_mapping_that_cannot_be_right_is_an_error(tmp_path, text, message):
    (tmp_path / "student_config.json").write_text(text)
    with pytest.raises(BoomspecError, match=message):
        read_student_mapping(tmp_path)
