"""`boomspec export`: sizes of a run for others to use, as folders of Hugging Face models."""

import sys
from pathlib import Path
from typing import Any

import click

from boomspec.commands import options, shared
from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.sizes import Member, compact_plan, shown_bytes
from boomspec.models.family_file import size_folders
from boomspec.models.push import Upload, find_repository, is_exported, planned_upload, upload
from boomspec.plan.run import Run, check_runners, open_run
from boomspec.store import Where

_PATH = click.Path(path_type=Path)
_ALL = "all"
_GGUF, _STORED = ("f32", "f16", "bf16", "q8_0"), "stored"


@click.command("export")
@click.argument("run", type=_PATH, shell_complete=options.offered("runs_and_specs"))
@click.argument("places", nargs=-1, metavar="[SIZE] FOLDER", shell_complete=options.offered("sizes_and_folders"))
@options.store_option
@click.option("--all", "every", is_flag=True, help="Every size, each in a folder of its own below FOLDER.")
@click.option("--family", is_flag=True, help="Every size, in one FOLDER whose sizes share the files of their weights.")
@click.option(
    "--gguf",
    type=click.Choice([*_GGUF, _STORED]),
    is_flag=False,
    flag_value=_STORED,
    metavar="[TYPE]",
    help=f"Write GGUF files: {', '.join(_GGUF)}. Without a type: as the weights are stored.",
)
@click.option("--push", metavar="OWNER/NAME", help="Upload to this repository of the Hugging Face hub, with --yes.")
@click.option("--public", is_flag=True, help="With --push: a repository that everyone can read. Default: private.")
@click.option("--yes", is_flag=True, help="With --push: upload; without it, what would be uploaded is shown.")
@click.option("--force", is_flag=True, help="Replace the model, or the family, that is in the folder.")
@options.json_option
def command(
    run: Path,
    places: tuple[str, ...],
    store: Where | None,
    every: bool,
    family: bool,
    gguf: str | None,
    push: str | None,
    public: bool,
    yes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write one SIZE of RUN (a spec or the folder of a run) into FOLDER, as a Hugging Face model with a model card.

    SIZE: student, teacher, or 24 layers, 3B, 80%, 6GiB (the largest size not above it; the spec need not list it).

    --gguf writes one file that llama.cpp reads, for architectures and tokenizers that are known to come out right.

    --push shows what would be uploaded to the hub, and uploads it with --yes: what was written just now, or, where RUN
    is a folder that was exported before, that folder. The repository is private unless --public is given.

    --all writes every size, with one card of them all and index.json beside them. --family writes them into one folder
    that takes little more than teacher and student: boomspec.family("FOLDER").model("80%") loads one of them.

    \b
    Examples:
      boomspec export specs/quickstart.yaml '6 layers' model
      boomspec export specs/quickstart.yaml --all models
      boomspec export specs/quickstart.yaml --family family
      boomspec export specs/qwen3-4b.yaml 80% small --gguf q8_0
      boomspec export family --push me/family
    """
    if push is None and (public or yes):
        raise BoomspecError(f"{'--public' if public else '--yes'} goes with --push")
    to = None if push is None else find_repository(push, public=public)  # before anything is written
    exported = to is not None and not places and is_exported(run)
    folder = run
    if exported:
        _refuse_idle(run, {"--all": every, "--family": family, "--gguf": gguf is not None, "--force": force})
    else:
        size, folder = _asked(places, every=every, family=family)
        if gguf is not None and family:
            raise BoomspecError("--gguf and --family: one of them", hint="a GGUF file holds one size: --gguf --all")
        finished = open_run(run, store)
        options.warn(f"{line}; the model card leaves out their results" for line in shared.unchecked(finished.graph))
        check_runners()
        members = finished.every() if size is None else (finished.member(size),)
        given: dict[str, Any] = {
            "plan": None if size is None else members[0].to_json()["plan"],
            "force": force,
            "json": as_json,
        }
        given |= {"store": finished.store.address, "folder": folder.absolute(), "shared": family, "gguf": gguf}
        if code := shared.wait_for("runners.cli.export", finished.graph, **given):
            sys.exit(code)
        written = _written(finished, folder, members, one=size is not None, family=family, gguf=gguf is not None)
        if as_json and to is None:
            listed = [{"folder": str(path.absolute()), **member.to_json()} for path, member in written.items()]
            click.echo(json_text(listed if size is None else listed[0]))
        for path, member in written.items() if not as_json else ():
            sizes = f"{member.layers} layers, {member.parameters:,} parameters"
            click.echo(f"{path}: {sizes}, {compact_plan(member.plan)}")
    if to is not None:
        _push(planned_upload(folder, to), yes=yes, as_json=as_json)


def _refuse_idle(folder: Path, given: dict[str, bool]) -> None:
    """Raise BoomspecError for an option of writing where nothing is written."""
    if idle := next((option for option, is_given in given.items() if is_given), None):
        message = f"{idle} is for writing sizes, and {folder} has been exported: it is uploaded as it is"
        raise BoomspecError(message, hint=f"leave {idle} out, or name the run, and a folder to write into")


def _push(planned: Upload, *, yes: bool, as_json: bool) -> None:
    """Show what would be uploaded, and upload it with `yes`, or where a person at a terminal says so."""
    if not as_json:
        click.echo("\n".join(planned.lines()))
    if not yes and not as_json and sys.stdin.isatty():
        yes = click.confirm("Upload?")
    if yes and not as_json:
        click.echo(f"uploading {shown_bytes(planned.bytes)} ...")
    address = upload(planned) if yes else None
    if as_json:
        click.echo(json_text({**planned.to_json(), "uploaded": address}))
    elif address is not None:
        click.echo(f"uploaded: {address}")
    else:
        click.echo(f"nothing was uploaded; this does it: {planned.command}")


def _asked(places: tuple[str, ...], *, every: bool, family: bool) -> tuple[str | None, Path]:
    """The size, or None for all, and the folder. Raises BoomspecError for a call that means nothing."""
    if every and family:
        raise BoomspecError("--all and --family: one of them", hint="--family shares the files of the weights")
    if every or family:
        option = "--all" if every else "--family"
        if len(places) != 1:
            message = f"{option} takes a folder and no size: {len(places)} arguments follow the run"
            raise BoomspecError(message, hint=f"boomspec export RUN {option} FOLDER")
        return None, Path(places[0])
    if len(places) != 2:
        message = f"a size and a folder follow the run: {len(places)} arguments do"
        raise BoomspecError(message, hint="boomspec export RUN SIZE FOLDER, or: boomspec export RUN --all FOLDER")
    size, folder = places
    return None if size == _ALL else size, Path(folder)


def _written(
    finished: Run, folder: Path, members: tuple[Member, ...], *, one: bool, family: bool, gguf: bool
) -> dict[Path, Member]:
    """Where each size lies."""
    every = size_folders(finished.lineage())
    if gguf:
        files = (
            (folder / f"{finished.graph.name}-{name}-{kind}.gguf", every[name]) for name in every for kind in _GGUF
        )
        return {path: member for path, member in files if path.is_file()}
    if one:
        return {folder: members[0]}
    return {folder / name: member for name, member in every.items() if family or member in members}
