"""The boomspec compiler: from a YAML experiment spec to a content-addressed task graph.

This package is light: it never imports torch, ray, transformers, datasets or numpy.
What executes a compiled graph lives in the sibling package `runners`.

For Python there are two functions, which need the runners and import them when they are called (docs/python.md):

    family = boomspec.family("specs/quickstart.yaml")          # every size, sharing weights
    family.sizes, family.results, family["80%"].model, family.generate("def ", size="6 layers")
    model = boomspec.load("specs/quickstart.yaml", "80%")      # one size: a transformers model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    import torch
    from transformers import PreTrainedModel

    from runners.api.family import Family

__version__ = "0.1.0"
_NEEDED = ("torch", "transformers", "accelerate", "pandas")  # of the extra `run`, by what the two functions do


def load(
    run: str | os.PathLike[str],
    size: str,
    *,
    store: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
) -> PreTrainedModel:
    """One size of a run, named by its spec, its folder or its name, as a transformers model on the device in use.

    Or of a family's folder, here or on the hub, as `family` takes it. `size`: "student", "teacher", or "24 layers",
    "3B", "80%", "6GiB" (the largest not above is taken); the spec need not list it. `dtype`: None means as stored.
    Raises BoomspecError for what there is not (yet).
    """
    from boomspec.models.family_file import is_family
    from boomspec.plan.run import check_runners, open_run

    check_runners(*_NEEDED)
    if is_family(run):
        return family(run, dtype=dtype).model(size)
    from runners.modeling.family import load_member

    opened = open_run(run, store)
    return load_member(opened.graph, opened.store, opened.member(size), dtype=dtype)


def family(
    run: str | os.PathLike[str], *, store: str | os.PathLike[str] | None = None, dtype: torch.dtype | str | None = None
) -> Family:
    """Every size of a finished run, named by its spec, its folder or its name: sizes, results, models, text.

    Or the family in a folder that `boomspec export --family` has written, here or on the hub ("OWNER/NAME"), which
    needs no spec and no store. Weights are read when a model is asked for; sizes share what they have in common.
    `dtype`: of the weights; None means as stored. Raises BoomspecError for a run that has not finished.
    """
    from boomspec.models.family_file import is_family
    from boomspec.plan.run import check_runners, open_run

    check_runners(*_NEEDED)
    from runners.api.family import Family
    from runners.api.origin import FromRun, from_folder

    if is_family(run):
        return Family(from_folder(run), dtype=dtype)
    opened = open_run(run, store)
    opened.every()
    return Family(FromRun(opened), dtype=dtype)
