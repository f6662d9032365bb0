"""Make the tokenizer of a token artifact: train it on the text or copy it, and find which tokens begin a text."""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import CODE, Source
from boomspec.core.identity import file_digest
from boomspec.core.tasks import TrainTokenizer
from boomspec.models.code import CONFIGS, check_native
from boomspec.models.folder import CONFIG, CONTEXT, is_tokenizer_file
from runners.modeling.foreign_code import forget_code, tokenizer_of
from runners.modeling.models import model_folder
from runners.runtime.context import Progress
from runners.runtime.job import Input

EOS = "<|endoftext|>"
_PROBE = "a"  # a text that every tokenizer knows
# A repository need not have the file; loading the tokenizer itself reports what is wrong.
_OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


class TextTokenizer(NamedTuple):
    """Turns text into tokens. `prefix`: the tokens that begin every text."""

    fast: Tokenizer
    eos: int
    prefix: tuple[int, ...]
    vocabulary: int

    def encoded(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without any that are added around it."""
        return [encoding.ids for encoding in self.fast.encode_batch_fast(texts, add_special_tokens=False)]


def train_tokenizer(wanted: TrainTokenizer, texts: Iterator[str], folder: Path, progress: Progress) -> None:
    """Train a byte-level BPE tokenizer; the same text gives the same tokenizer."""

    def first_bytes() -> Iterator[str]:
        """The texts until so many UTF-8 bytes; the last one is cut."""
        done = 0
        for text in texts:
            data = text.encode("utf-8")[: wanted.bytes - done]
            done += len(data)
            progress.update(done, wanted.bytes, unit="bytes", phase="training the tokenizer")
            yield data.decode("utf-8", errors="ignore")  # drops a character that is cut in two
            if done == wanted.bytes:
                return

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"special_tokens": [EOS], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(first_bytes(), trainers.BpeTrainer(vocab_size=wanted.vocabulary, **options))
    if tokenizer.get_vocab_size() < wanted.vocabulary:
        progress.note(f"the text gives {tokenizer.get_vocab_size()} of the {wanted.vocabulary} entries asked for")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(folder)


def unlearned_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """What renders conversations before the tokenizer is trained on them: it has the special tokens of that one."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=EOS)
    tokenizer.chat_template = template
    return tokenizer


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Copy a tokenizer's files; checks those of a folder against the digests in the source's identity.

    The own code of one of the hub runs if it is trusted, in the version of the commit.
    """
    code = source.identity.get(CODE, {})
    if (hub := source.identity.get("hub")) is not None:
        if code:
            tokenizer_of(model_folder(Input(source.id, source=source)), code.values()).save_pretrained(folder)
            return
        revision = source.identity["revision"]
        if (config := cached_file(hub, CONFIGS["tokenizer"], revision=revision, **_OPTIONAL)) is not None:
            check_native(Path(config).parent, "tokenizer", hub)
        AutoTokenizer.from_pretrained(hub, revision=revision, trust_remote_code=False).save_pretrained(folder)
        forget_code(folder)
        return
    origin = Path(source.location["folder"])
    if not code:
        check_native(origin, "tokenizer", str(origin))
    folder.mkdir()
    for name, sha256 in sorted({**source.identity["sha256"], **code}.items()):
        if not is_tokenizer_file(name) and not code:  # a tokenizer's own code may read other files
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(origin / name, folder / name)
        except OSError as error:
            raise BoomspecError(f"{origin / name}: cannot be read: {error.strerror}") from error
        if file_digest(folder / name) != sha256:
            message = f"{origin / name}: the file has changed since the spec was compiled"
            raise BoomspecError(message, hint="compile the spec again: another tokenizer makes new artifacts")
    if not any(folder.iterdir()):
        raise BoomspecError(f"{origin}: has no tokenizer files", hint="tokenizer.save_pretrained(folder)")
    if not code:
        forget_code(folder)
    if context := source.identity.get(CONTEXT):  # fields of the model's config that decide the tokenizer's class
        (folder / CONFIG).write_text(json.dumps(context, indent=2) + "\n", encoding="utf-8")


@contextmanager
def tokenizer_folder(given: Input | None, own: Path) -> Iterator[Path]:
    """A folder with the tokenizer that a task is given, or else with a model's own."""
    if given is None:
        yield own
        return
    assert given.source is not None
    with TemporaryDirectory(prefix="boomspec-tokenizer-") as temporary:
        copy_tokenizer(given.source, folder := Path(temporary, "tokenizer"))
        yield folder


def load_tokenizer(folder: Path, code: Collection[str], *, bos: bool | None) -> TextTokenizer:
    """The fast tokenizer, as a reader of the artifact will load it.

    `bos`: whether texts begin with its beginning-of-sequence token; None: as the tokenizer itself begins them.
    """
    tokenizer = tokenizer_of(folder, code)
    if tokenizer.eos_token_id is None:
        message = "the tokenizer has no end-of-text token (eos_token), which separates documents"
        raise BoomspecError(message, hint="set eos_token in its tokenizer_config.json")
    if not tokenizer.is_fast:
        raise BoomspecError(f"the tokenizer ({type(tokenizer).__name__}) is not a fast one of the tokenizers library")
    if bos and tokenizer.bos_token_id is None:
        message = "data.bos is true, but the tokenizer has no beginning-of-sequence token (bos_token)"
        raise BoomspecError(
            message, hint="leave data.bos out: documents then begin as the tokenizer itself begins them"
        )
    # Before special tokens become text.
    prefix = special_tokens_around(tokenizer)[0] if bos is None else (int(tokenizer.bos_token_id),) if bos else ()
    fast: Tokenizer = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
    eos = int(tokenizer.eos_token_id)
    # Special tokens inside of a text are text, and never written. As `boomspec.models.tokenizer` counts.
    special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    written = set(fast.get_vocab(with_added_tokens=True).values()) - special | {eos, *prefix}
    return TextTokenizer(fast, eos, prefix, max(written) + 1)


def special_tokens_around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a tokenizer puts before every text, and after it. Raises BoomspecError where that is unclear."""
    plain = tokenizer.encode(_PROBE, add_special_tokens=False)
    whole = tokenizer.encode(_PROBE, add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        end = start + len(plain)
        if whole[start:end] == plain and (plain or not whole):
            return tuple(map(int, whole[:start])), tuple(map(int, whole[end:]))
    message = f"how the tokenizer begins a text is unclear: {_PROBE!r} becomes {whole}, without special tokens {plain}"
    raise BoomspecError(message, hint="set data.bos to true or false")
