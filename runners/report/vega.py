"""Turn figures into PNG, SVG and PDF, and give the library that draws them on a page: Vega, Vega-Lite and Vega-Embed.

Both are vl-convert's, which runs the libraries without a browser or a network and brings its fonts along: the same
figure gives the same bytes.
"""

import os
import re
import stat
import tempfile
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from boomspec.core.files import write_atomically
from runners.report.chart import Figure, static

FORMATS = ("png", "svg", "pdf")
_ID = re.compile(r'(\bid="|url\(#)((?:clip|gradient_?)\d+)')
_NAMES = re.compile(rb"(/\w+ <<\n)((?: +/\w+ \d+ 0 R\n){2,})")
_DOTS = 144  # an inch, of a PNG: two for each of a page. 200 take twice as long to draw


def write_figure(figure: Figure, place: Path) -> None:
    """Write `place`.png, .svg and .pdf: white paper, text that stays text."""
    svg = _renumbered(vl_convert.vegalite_to_svg(static(figure)))
    place.with_name(f"{place.name}.svg").write_text(svg, encoding="utf-8")
    place.with_name(f"{place.name}.png").write_bytes(vl_convert.svg_to_png(svg, ppi=_DOTS))
    place.with_name(f"{place.name}.pdf").write_bytes(_sorted(vl_convert.svg_to_pdf(svg)))


def _renumbered(svg: str) -> str:
    """With ids that count from 0 in every figure: Vega counts those of all that a process draws."""
    ids: dict[str, str] = {}
    return _ID.sub(lambda found: found[1] + ids.setdefault(found[2], f"part{len(ids)}"), svg)


def _sorted(pdf: bytes) -> bytes:
    """With the names of every page's parts in order: the converter writes them in any."""
    return _NAMES.sub(lambda found: found[1] + b"".join(sorted(found[2].splitlines(keepends=True))), pdf)


@cache
def library() -> str:
    """The JavaScript that a page embeds. It takes a second to be put together, so this machine keeps it."""
    folder = Path(tempfile.gettempdir()) / f"boomspec-{os.getuid()}"
    kept = folder / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_own(folder) and _is_own(kept):
            return kept.read_text(encoding="utf-8")
    text: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    with suppress(OSError):
        if _is_own(folder):
            write_atomically(kept, text)
    return text


def _is_own(path: Path) -> bool:
    """Whether it is there and this user's: others can write into the folder of temporary files, too."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and not stat.S_ISLNK(found.st_mode)


def library_version() -> str:
    """ "6.2.0, 6.4 and 7.0.2": of Vega, Vega-Lite and Vega-Embed."""
    lite = vl_convert.get_vegalite_versions()[-1]  # the newest, which is the default
    return f"{vl_convert.get_vega_version()}, {lite} and {vl_convert.get_vega_embed_version()}"
