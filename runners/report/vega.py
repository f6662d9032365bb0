"""Turn figures into PNG, SVG and PDF, and give the library that draws them on a page: Vega, Vega-Lite and Vega-Embed.

Both are vl-convert's, which runs the libraries without a browser or a network and brings its fonts along, for machines
that have none of these names. The same figure gives the same bytes where the fonts are the same.
"""

import re
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import vl_convert

from runners.report.chart import Figure, static

FORMATS = ("png", "svg", "pdf")
_ID = re.compile(r'(\bid="|url\(#)((?:clip|gradient_?)\d+)')
_NAMES = re.compile(rb"(/\w+ <<\n)((?: +/\w+ \d+ 0 R\n){2,})")
_REFERENCE = re.compile(rb"(?<![0-9.])(\d+) 0 (R|obj)\b")
_DOTS = 144  # an inch, of a PNG: two for each of a page. 200 take twice as long to draw


def write_figure(figure: Figure, place: Path) -> None:
    """Write `place`.png, .svg and .pdf: white paper, text that stays text."""
    svg = _renumbered(vl_convert.vegalite_to_svg(static(figure)))
    place.with_name(f"{place.name}.svg").write_text(svg, encoding="utf-8")
    place.with_name(f"{place.name}.png").write_bytes(vl_convert.svg_to_png(svg, ppi=_DOTS))
    place.with_name(f"{place.name}.pdf").write_bytes(_ordered(vl_convert.svg_to_pdf(svg)))


def _renumbered(svg: str) -> str:
    """With ids that count from 0 in every figure: Vega counts those of all that a process draws."""
    ids: dict[str, str] = {}
    return _ID.sub(lambda found: found[1] + ids.setdefault(found[2], f"part{len(ids)}"), svg)


def _ordered(pdf: bytes) -> bytes:
    """With the names of every page's parts in order, and objects numbered as they are named first.

    The converter writes and numbers both in any order. Its files have one table of objects (PDF 1.7, 7.5.4).
    """
    pdf = _NAMES.sub(lambda found: found[1] + b"".join(sorted(found[2].splitlines(keepends=True))), pdf)
    start = int(pdf[pdf.rindex(b"startxref") :].split()[1])
    table, _, trailer = pdf[start:].partition(b"trailer")
    places = [int(line[:10]) for line in table.splitlines()[3:]]  # of the objects 1, 2, ...: 0 is none
    ends = dict(pairwise([*sorted(places), start]))
    objects = {number: pdf[place : ends[place]] for number, place in enumerate(places, start=1)}
    numbers: dict[int, int] = {}
    waiting = [trailer]
    while waiting:
        for found in _REFERENCE.finditer(waiting.pop(0).partition(b"stream")[0]):
            if (number := int(found[1])) not in numbers:
                numbers[number] = len(numbers) + 1
                waiting.append(objects[number])

    def renumbered(text: bytes) -> bytes:
        named, stream, rest = text.partition(b"stream")  # what a stream holds names nothing
        return _REFERENCE.sub(lambda found: b"%d 0 %s" % (numbers[int(found[1])], found[2]), named) + stream + rest

    parts = [renumbered(objects[number]) for number in numbers]
    offsets = list(accumulate(map(len, parts), initial=min(places)))
    rows = b"".join(b"%010d 00000 n\r\n" % offset for offset in offsets[:-1])
    head = b"xref\n0 %d\n0000000000 65535 f\r\n" % (len(parts) + 1)
    end = _REFERENCE.sub(lambda found: b"%d 0 %s" % (numbers[int(found[1])], found[2]), trailer)
    end = re.sub(rb"/Size \d+", b"/Size %d" % (len(parts) + 1), end)
    end = end.replace(b"%d\n%%%%EOF" % start, b"%d\n%%%%EOF" % offsets[-1])
    return pdf[: min(places)] + b"".join(parts) + head + rows + b"trailer" + end


@cache
def library() -> str:
    """The JavaScript that a page embeds. It takes a second to be put together, once in a process."""
    text: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return text


def library_version() -> str:
    """ "6.2.0, 6.4 and 7.0.2": of Vega, Vega-Lite and Vega-Embed."""
    lite = vl_convert.get_vegalite_versions()[-1]  # the newest, which is the default
    return f"{vl_convert.get_vega_version()}, {lite} and {vl_convert.get_vega_embed_version()}"
