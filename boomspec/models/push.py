"""Upload what was exported to a repository on the Hugging Face hub: first look, then act. No weights are read here.

The client of huggingface_hub does the uploading. What is there already is not sent again, so that an upload that was
cut off goes on where it stopped when it is called again. The token is that of HF_TOKEN or `hf auth login`; it is in no
message.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boomspec.core.errors import BoomspecError
from boomspec.core.sizes import shown_bytes
from boomspec.models.family_file import CARD, FAMILY_FILE, INDEX_FILE
from boomspec.models.folder import CONFIG

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"{_PART}/{_PART}")
_TOKEN_HINT = "set HF_TOKEN, or log in: hf auth login (a token that may write: https://huggingface.co/settings/tokens)"
_UNWRITTEN = (".cache", ".git")  # folders of the client, which are not uploaded
_LISTED = 12  # files


@dataclass(frozen=True)
class Repository:
    """A repository as the hub has it now. `public`: as it will be, where it does not exist yet."""

    name: str
    user: str
    exists: bool
    public: bool
    asked_public: bool = False


@dataclass(frozen=True)
class Upload:
    """What an upload would send where."""

    folder: Path
    to: Repository
    files: tuple[tuple[str, int], ...]  # names, relative to the folder, and bytes
    license: str | None
    base_model: str | None

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)

    @property
    def command(self) -> str:
        """What does the upload, or the rest of it."""
        return f"boomspec export {self.folder} --push {self.to.name}{' --public' if self.to.public else ''} --yes"

    def to_json(self) -> dict[str, Any]:
        files = [{"path": name, "bytes": size} for name, size in self.files]
        repository = {"repository": self.to.name, "exists": self.to.exists, "public": self.to.public}
        named = {"license": self.license, "base_model": self.base_model}
        return {"folder": str(self.folder), **repository, **named, "bytes": self.bytes, "files": files}

    def lines(self) -> list[str]:
        """The same for people."""
        visibility = "public: everyone can read it" if self.to.public else "private"
        state = "it exists, files of these names are replaced" if self.to.exists else "it will be created"
        if self.to.asked_public and not self.to.public:
            state += "; --public makes no repository public that exists: do that in its settings"
        licence = self.license or "not found in the card: set it before others use it"
        base = f" (of the base model {self.base_model})" if self.base_model and self.license else ""
        shown = [f"  {shown_bytes(size):>10}  {name}" for name, size in self.files[:_LISTED]]
        if (more := len(self.files) - _LISTED) > 0:
            shown.append(f"  and {more} more files")
        return [
            f"repository  {self.to.name}, {visibility}; {state}",
            f"as          {self.to.user}",
            f"licence     {licence}{base}",
            f"files       {len(self.files)}, {shown_bytes(self.bytes)}",
            *shown,
        ]


def check_name(name: str) -> None:
    """Raise BoomspecError for what is no name of a repository."""
    if _NAME.fullmatch(name) is None or "--" in name or ".." in name or len(name) > 96:
        hint = "OWNER/NAME: letters, digits, '-', '_' and '.', as in https://huggingface.co/OWNER/NAME"
        raise BoomspecError(f"'{name}' is no name of a repository", hint=hint)


def find_repository(name: str, *, public: bool) -> Repository:
    """Ask the hub who we are and what is at `name`. Raises BoomspecError where nothing could be uploaded there."""
    check_name(name)
    hub = importlib.import_module("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    if hub.get_token() is None:
        raise BoomspecError("there is no token for the hub", hint=_TOKEN_HINT)
    api = hub.HfApi()
    with _reported(name):
        who = api.whoami()
        try:
            found = api.model_info(name)
        except errors.RepositoryNotFoundError:
            found = None
    owner, user = name.split("/")[0], str(who["name"])
    owners = [user, *(str(one["name"]) for one in who.get("orgs", ()))]
    if owner not in owners:
        message = f"{name}: the token is of {user}, who cannot write for {owner}"
        raise BoomspecError(message, hint=f"owners that it can write for: {', '.join(owners)}")
    if found is None:
        return Repository(name, user, exists=False, public=public)
    is_public = not found.private
    if is_public and not public:
        raise BoomspecError(f"{name} exists and is public", hint="give --public, or another name")
    return Repository(name, user, exists=True, public=is_public, asked_public=public)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds what `boomspec export` writes."""
    names = (CONFIG, FAMILY_FILE, INDEX_FILE)
    return folder.is_dir() and (any((folder / n).is_file() for n in names) or any(folder.glob("*.gguf")))


def planned_upload(folder: Path, to: Repository) -> Upload:
    """What uploading a folder would send."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder), path.stat().st_size) for path in found]
    files = tuple((name.as_posix(), size) for name, size in names if name.parts[0] not in _UNWRITTEN)
    card = _front_matter(folder / CARD)
    licence, base = (card.get(key) for key in ("license", "base_model"))
    return Upload(folder, to, files, None if licence is None else str(licence), None if base is None else str(base))


def upload(planned: Upload) -> str:
    """Create the repository where there is none, and upload. Returns where it is. Raises BoomspecError if it fails."""
    hub = importlib.import_module("huggingface_hub")
    api, name = hub.HfApi(), planned.to.name
    hint = f"what has arrived stays there; the rest is sent by: {planned.command}"
    with _reported(name, hint, failed="the upload has stopped"):
        if not planned.to.exists:
            api.create_repo(name, private=not planned.to.public, exist_ok=True)
        ignored = [f"{part}/*" for part in _UNWRITTEN]
        message = f"Upload {planned.folder.name} with boomspec"
        api.upload_folder(repo_id=name, folder_path=planned.folder, commit_message=message, ignore_patterns=ignored)
    return f"{api.endpoint}/{name}"


def _front_matter(card: Path) -> dict[str, Any]:
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"\s*---\n(.*?)\n---", text, re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found is not None else None
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else {}


@contextmanager
def _reported(name: str, hint: str | None = None, *, failed: str = "the hub cannot be reached") -> Iterator[None]:
    """Say in one line what the hub has answered, or what has `failed`, without the token."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        refusals = {401: "the hub does not accept the token", 403: "the token may not write there"}
        said = refusals.get(code or 0) or f"the hub answered {code}: {_one_line(error)}"
        raise BoomspecError(f"{name}: {said}", hint=_TOKEN_HINT if code in refusals else hint) from error
    except errors.LocalTokenNotFoundError as error:
        raise BoomspecError("there is no token for the hub", hint=_TOKEN_HINT) from error
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        if isinstance(error, BoomspecError):
            raise
        message = f"{name}: {failed}: {_one_line(error.__cause__ or error)}"
        raise BoomspecError(message, hint=hint or "check the network and HF_ENDPOINT") from error


def _one_line(error: BaseException) -> str:
    token = importlib.import_module("huggingface_hub").get_token()
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(token, "<token>")[:300] if token else text[:300]
