"""`python -m runners.cli.export GRAPH.json --store DIR --plan "s0 s1 t4" --folder DIR`: write one size out, or all.

    one size    an ordinary Hugging Face model with a model card
    all         a folder for each size, with one card and `index.json` beside them
    --shared    all in one folder whose sizes share the files of their weights (`boomspec.models.family_file`)
    --gguf      a GGUF file for each size, with one card

The folder appears by one rename, whole or not at all.
Exit codes: 0 written, 1 it could not be written, 2 the input is wrong, 130 interrupted.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from boomspec.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, BoomspecError, print_error, redact
from boomspec.core.files import locked_folder, replace_folder
from boomspec.core.graph import TaskGraph
from boomspec.core.graph_file import read_graph
from boomspec.core.json_text import json_text
from boomspec.core.layers import STUDENT, TEACHER, layers_text
from boomspec.core.sizes import Member
from boomspec.core.tasks import Tokenize, Transfer
from boomspec.models.facts import read_facts
from boomspec.models.family_file import CARD, FAMILY_FILE, INDEX_FILE, FamilyFile, size_folders
from boomspec.models.folder import CONFIG
from boomspec.models.trust import trusted_code, warnings
from boomspec.store import Store, open_store
from runners.runtime import environment
from runners.runtime.task_errors import named


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.cli.export", description="Write one size of a family.")
    parser.add_argument("graph", type=Path, metavar="GRAPH.json")
    parser.add_argument("--store", required=True, help="folder or URL of the artifacts")
    parser.add_argument("--plan", help='a layer plan of the family: "s0 s1 t4 t5"; without one every size is written')
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="where the model is written")
    parser.add_argument("--force", action="store_true", help="replace a model that is there")
    parser.add_argument("--shared", action="store_true", help="every size, in one folder that shares weights")
    parser.add_argument("--gguf", metavar="TYPE", help="write GGUF files: f32, f16, bf16, q8_0, or stored")
    parser.add_argument("--json", action="store_true", help="print what is wrong as JSON")
    options = parser.parse_args(arguments)
    try:
        graph, store = read_graph(options.graph), open_store(options.store)
        for line in warnings(graph):
            print(f"warning: {line}", file=sys.stderr)
        environment.apply(environment.variables(store.root, hub=graph.reads_hub))
        with store.using():
            # Many folders are never replaced at once.
            force = options.force and (options.plan is not None or options.shared)
            export(graph, store, options.plan, options.folder, force=force, shared=options.shared, gguf=options.gguf)
    except BoomspecError as error:
        return print_error(error, as_json=options.json)
    except OSError as error:
        print_error(_unwritten(Path(error.filename or options.folder), error), as_json=options.json)
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def _unwritten(place: Path, error: OSError) -> BoomspecError:
    return BoomspecError(f"{place}: cannot be written: {error.strerror or error}", hint="give another folder")


def export(
    graph: TaskGraph,
    store: Store,
    plan: str | None,
    target: Path,
    *,
    force: bool = False,
    shared: bool = False,
    gguf: str | None = None,
) -> None:
    """Write the member of this layer plan ("s0 s1 t4") into the folder `target`.

    Without a plan every size is written in one pass over the weights, each into a folder of its own, or `shared`.
    `gguf`: as GGUF files of this type instead ("stored": as the weights are). A model that is there already is replaced
    with `force`, and else, like any folder that is not empty, refused. Raises BoomspecError for that, and for what the
    store does not hold (yet).
    """
    target = target.absolute()
    check_target(target, force=force)
    with _appearing(target, force=force) as folder, named({folder: str(target)}):
        if gguf is not None:
            _write_gguf(graph, store, plan, folder, target.name, gguf)
        elif plan is not None:
            _write_size(graph, store, plan, folder, target.name)
        else:
            _write_all(graph, store, folder, target.name, shared=shared)
        if gguf is None:
            _add_chat_template(graph, folder)


def _add_chat_template(graph: TaskGraph, folder: Path) -> None:
    """Give every tokenizer below a folder the chat template that the data brought, where it did."""
    from runners.data.chat import add_template

    if (template := brought_template(graph)) is not None:
        for config in sorted(folder.rglob("tokenizer_config.json")):
            add_template(config.parent, template)


def brought_template(graph: TaskGraph) -> str | None:
    """The chat template that came with the text which the student was trained on.

    None: it is that of the teacher's tokenizer. So it is of a student that was transferred: the text was its base's.
    """
    from runners.modeling.models import lineage_of  # not at the top: see `_write_size`

    waiting, seen = [lineage_of(graph).student], set[str]()
    while waiting:
        task_id = waiting.pop()
        if task_id in seen or (node := graph.nodes.get(task_id)) is None:
            continue
        seen.add(task_id)
        record, inputs = node.task.record, node.task.inputs
        if isinstance(record, Tokenize) and record.chat is not None and record.chat.template is not None:
            return record.chat.template
        waiting += [inputs["teacher"]] if isinstance(record, Transfer) else inputs.values()
    return None


def _write_size(graph: TaskGraph, store: Store, plan: str, folder: Path, name: str) -> None:
    # Not at the top: these read the environment that `main` sets.
    from runners.modeling.models import built_folder
    from runners.report.model_card import model_card

    [chosen] = _chosen(graph, plan).values()
    if (built := built_folder(graph, store, chosen)) is not None:
        shutil.copytree(built, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    else:
        _assemble(graph, store, {folder: chosen})
    card = model_card(graph, store, chosen, folder=folder, name=name)
    (folder / CARD).write_text(redact(card), encoding="utf-8")


def _write_all(graph: TaskGraph, store: Store, folder: Path, name: str, *, shared: bool) -> None:
    from runners.assembly.family_folder import write_family
    from runners.modeling.models import fitted_weights, lineage_of, owner_folders
    from runners.report.family_card import base_of, family_card, index, results_of
    from runners.report.model_card import model_card

    lineage, results = lineage_of(graph), results_of(graph, store)
    if shared:
        sizes = size_folders(lineage)
        sources = owner_folders(graph, store, (TEACHER, STUDENT))
        base, facts = base_of(graph), {owner: read_facts(source) for owner, source in sources.items()}
        description = FamilyFile(
            name=graph.name,
            model_type=facts[TEACHER].model_type,
            family=lineage.to_json(),
            counts={owner: model.count for owner, model in facts.items()},
            sizes=(),
            results=tuple(results),
            base_model=base.get("base_model"),
            license=None if (licence := base.get("license")) is None else str(licence),
            graph=graph.id,
        )
        fitted = {size: fitted_weights(graph, store, member) for size, member in sizes.items()}
        write_family(sources, sizes, folder, description, rest=lineage.rest, fitted=fitted)
    else:
        sizes = _chosen(graph, None)
        _assemble(graph, store, {folder / size: member for size, member in sizes.items()})
        for size, member in sizes.items():
            card = model_card(graph, store, member, folder=folder / size, name=f"{name}/{size}")
            (folder / size / CARD).write_text(redact(card), encoding="utf-8")
        text = json_text(index(graph, sizes, results), indent=1, ensure_ascii=False)
        (folder / INDEX_FILE).write_text(redact(text) + "\n", encoding="utf-8")
    card = family_card(graph, store, sizes, results, kind="family" if shared else "folders", name=name)
    (folder / CARD).write_text(redact(card), encoding="utf-8")


def _write_gguf(graph: TaskGraph, store: Store, plan: str | None, folder: Path, name: str, kind: str) -> None:
    try:
        import gguf  # noqa: F401 - an extra
    except ImportError as error:
        raise BoomspecError("the package gguf is not installed", hint="pip install 'boomspec[gguf]'") from error
    from runners.cli.gguf_export import write_gguf_sizes

    write_gguf_sizes(
        graph,
        store,
        _chosen(graph, plan),
        folder,
        name,
        kind=kind,
        index_too=plan is None,
        template=brought_template(graph),
    )


def _chosen(graph: TaskGraph, plan: str | None) -> dict[str, Member]:
    """The sizes that are written, by their names: that of a plan, or all."""
    from runners.modeling.models import lineage_of

    lineage = lineage_of(graph)
    every = size_folders(lineage)
    found = {name: member for name, member in every.items() if layers_text(member.plan) == plan}
    if plan is not None and not found:
        raise BoomspecError(f"no model of this family has the layer plan {plan}")
    return found or {name: every[name] for name in every if every[name] in lineage.members}


def _assemble(graph: TaskGraph, store: Store, members: dict[Path, Member]) -> None:
    from runners.assembly.assemble import assemble_family
    from runners.modeling.models import fitted_weights, lineage_of, owner_folders

    owners = {TEACHER, *(layer.owner for member in members.values() for layer in member.plan)}
    plans = {folder: (member.plan, member.tied) for folder, member in members.items()}
    code, sources = trusted_code(graph.sources.values()), owner_folders(graph, store, owners)
    fitted = {folder: fitted_weights(graph, store, member) for folder, member in members.items()}
    assemble_family(sources, plans, code=code, rest=lineage_of(graph).rest, fitted=fitted)


def check_target(target: Path, *, force: bool) -> None:
    """Raise BoomspecError where something is at `target` that must not be replaced, or that cannot be looked at."""
    try:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
    except OSError as error:
        raise _unwritten(target, error) from error
    if not target.is_dir():
        raise BoomspecError(f"{target} is a file", hint="give a folder")
    if not force:
        raise BoomspecError(f"{target} is not empty", hint="give another folder, or replace the model there: --force")
    # --force must not delete a home folder
    if not any((target / name).is_file() for name in (CONFIG, FAMILY_FILE)) and not list(target.glob("*.gguf")):
        raise BoomspecError(f"{target} holds no model, so it is not replaced", hint="give another folder")


@contextmanager
def _appearing(target: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end. Nothing is changed where the body raises."""
    prefix = f".{target.name}.boomspec-export-"
    with ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = held.enter_context(locked_folder(target.parent, prefix))
        except OSError as error:
            raise _unwritten(target, error) from error
        yield folder
        folder.chmod(0o755)  # it was private
        check_target(target, force=force)  # something may have come there meanwhile
        replace_folder(folder, target)


if __name__ == "__main__":
    sys.exit(main())
