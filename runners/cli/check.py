"""`python -m runners.cli.check`: checks of families, {task id: record} as JSON on stdin; their answers on stdout."""

import contextlib
import json
import os
import sys
import warnings

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Check


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    answers = {}
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        from runners.checking.family import check_family  # transformers reads the environment when it is imported

        for task_id, record in json.load(sys.stdin).items():
            try:
                notes = check_family(Check.model_validate(record))
                answers[task_id] = {"refused": "", "hint": None, "notes": notes}
            except BoomspecError as error:
                answers[task_id] = {"refused": error.message, "hint": error.hint, "notes": []}
    print(json.dumps(answers, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
