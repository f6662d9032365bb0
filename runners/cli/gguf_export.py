"""What `runners.cli.export` does for --gguf: a GGUF file for each size, and a card."""

import sys
from pathlib import Path

from boomspec.core.errors import redact
from boomspec.core.graph import TaskGraph
from boomspec.core.json_text import json_text
from boomspec.core.layers import TEACHER, Owner
from boomspec.core.sizes import Member
from boomspec.models.facts import read_facts
from boomspec.models.family_file import CARD, INDEX_FILE
from boomspec.models.fit import Made
from boomspec.models.trust import trusted_code
from boomspec.store import Store


def write_gguf_sizes(
    graph: TaskGraph,
    store: Store,
    members: dict[str, Member],
    folder: Path,
    name: str,
    *,
    kind: str,
    index_too: bool,
    template: str | None = None,  # a chat template, in the place of the tokenizer's
) -> None:
    """Write each member into `folder` as NAME.gguf, in the type `kind` ("stored": that of its weights), and a card.

    Raises BoomspecError, before the first file is written, for a model or a tokenizer that is not written as GGUF.
    """
    # Not at the top: these read the environment that `main` sets.
    from runners.assembly.assemble import planned
    from runners.assembly.gguf_file import About, check_known, file_type, write_gguf
    from runners.assembly.gguf_vocabulary import vocabulary_of
    from runners.modeling.foreign_code import tokenizer_of
    from runners.modeling.models import built_folder, fitted_weights, lineage_of, owner_folders
    from runners.report.family_card import base_of, family_card, index, results_of

    lineage, base = lineage_of(graph), base_of(graph)
    code = trusted_code(graph.sources.values())
    wanted: set[Owner] = {TEACHER, *(layer.owner for member in members.values() for layer in member.plan)}
    sources = owner_folders(graph, store, wanted)
    facts = read_facts(sources[TEACHER])
    check_known(facts.model_type, graph.name)
    chosen = file_type(None if kind == "stored" else kind, facts.dtype)
    tokenizer = tokenizer_of(sources[TEACHER], code)
    if template is not None:
        tokenizer.chat_template = template
    vocabulary = vocabulary_of(tokenizer, sources[TEACHER])
    licence = {key: str(base[key]) for key in ("license", "license_name", "license_link") if base.get(key)}
    languages = base.get("language") or ()
    notes, files = dict[str, None](), dict[str, Member]()
    for size, member in members.items():
        about = About(
            name=f"{graph.name} {size.replace('-', ' ')}",
            parameters=member.parameters,
            base_model=base.get("base_model"),
            languages=(languages,) if isinstance(languages, str) else tuple(map(str, languages)),
            tags=("boomerang-distillation", "boomspec"),
            **licence,
        )
        made: list[Made]
        if (built := built_folder(graph, store, member)) is not None:
            own = read_facts(built)
            made, config = [(entry, entry) for entry in own.tensors(range(own.count), tied=own.tied)], dict(own.config)
        else:
            place = folder / size
            fitted = {place: fitted_weights(graph, store, member)}
            plans = {place: (member.plan, member.tied)}
            every, configs = planned(sources, plans, rest=lineage.rest, fitted=fitted)
            made, config = every[place], configs[place]
        file = f"{graph.name}-{size}-{chosen}.gguf"
        notes |= dict.fromkeys(write_gguf(made, config, vocabulary, folder / file, about=about, kind=chosen))
        files[file] = member
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    results = results_of(graph, store)
    if index_too:
        text = json_text(index(graph, files, results), indent=1, ensure_ascii=False)
        (folder / INDEX_FILE).write_text(redact(text) + "\n", encoding="utf-8")
    card = family_card(graph, store, files, results, kind="gguf", name=name)
    (folder / CARD).write_text(redact(card), encoding="utf-8")
