"""Make stdlib-chat.jsonl: questions about Python's standard library, answered by its own docstrings.

    python specs/texts/stdlib_chat.py > specs/texts/stdlib-chat.jsonl

The file beside this one was made with Python 3.11, whose docstrings are under the PSF licence.
"""

import importlib
import inspect
import json
import re
import sys

_BYTES = 250_000  # of all rows
_ANSWER = range(40, 400)  # characters
_MODULES = """
argparse array ast asyncio base64 bisect bz2 calendar cmath code codecs collections concurrent.futures
configparser contextlib copy csv ctypes dataclasses datetime decimal difflib email.message enum fileinput
fnmatch fractions ftplib functools gc getpass glob gzip hashlib heapq hmac html.parser http.client http.cookies
inspect io ipaddress itertools json keyword linecache locale logging lzma mailbox math mimetypes multiprocessing
numbers operator os os.path pathlib pickle platform plistlib pprint queue random re sched secrets select shelve
shlex shutil signal smtplib socket sqlite3 ssl statistics string struct subprocess sys tarfile tempfile textwrap
threading time timeit token tokenize traceback types typing unicodedata unittest urllib.parse urllib.request
uuid warnings weakref xml.dom.minidom xml.etree.ElementTree zipfile zlib
""".split()  # noqa: SIM905


def rows() -> list[dict[str, str]]:
    """One row for each public function, class and method, without answers that are there already."""
    found, seen = [], set()
    for name in _MODULES:
        module = importlib.import_module(name)
        for path, thing in _documented(name, module):
            answer = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
            if len(answer) not in _ANSWER or answer in seen or not re.match(r"[A-Z]", answer):
                continue
            seen.add(answer)
            kind = "class" if inspect.isclass(thing) else "function"
            asked = f"What is the class {path} for?" if kind == "class" else f"What does {path} do?"
            found.append({"prompt": asked, "response": answer})
    return found


def _documented(name: str, module: object) -> list[tuple[str, object]]:
    found = []
    for own, thing in sorted(vars(module).items()):
        if own.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        found.append((f"{name}.{own}", thing))
        if inspect.isclass(thing):
            methods = sorted(vars(thing).items())
            found += [(f"{name}.{own}.{m}", f) for m, f in methods if not m.startswith("_") and inspect.isroutine(f)]
    return found


if __name__ == "__main__":
    size = 0
    for row in rows():
        line = json.dumps(row) + "\n"
        size += len(line)
        if size > _BYTES:
            break
        sys.stdout.write(line)
