"""Draws ``docs/rooms.svg``: the rooms of ``hscc``, who imports whom, as the code has it: ``python docs/rooms.py``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "hscc"
KERNELS = "hscc_kernels"
WIDTH, ROW, BOX, GAP = 1080, 168, 126, 24
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.files { fill: #59636e; font-size: 11px; }
rect { fill: #f6f8fa; stroke: #8c959f; rx: 6px; }
path { stroke: #57606a; fill: none; }
marker path { fill: #57606a; stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .files { fill: #9198a1; } rect { fill: #161b22; stroke: #656c76; }
  path { stroke: #9198a1; } marker path { fill: #9198a1; stroke: none; }
}
"""


def modules() -> dict[str, Path]:
    """Dotted names below the package, without ``__init__`` and its like."""
    files = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in files.items() if not name.rpartition(".")[2].startswith("_")}


def imports(name: str, path: Path) -> Iterator[str]:
    """Modules of the package, or :data:`KERNELS`, that a file imports, anywhere in it."""
    known, home = modules(), public()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            yield from [KERNELS] if node.module.split(".")[0] == KERNELS else []
            continue
        parts = [*name.split(".")[: -node.level], *(node.module.split(".") if node.module else [])]
        if ".".join(parts) in known:
            yield ".".join(parts)
        else:  # modules of a room, or public names
            found = (".".join([*parts, alias.name]) for alias in node.names)
            yield from (home.get(one, one) for one in found if home.get(one, one) in known)


def public() -> dict[str, str]:
    """The module of each public name, from ``hscc.__init__``."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES":
            return {name: home for home, names in ast.literal_eval(node.value).items() for name in names}
    raise LookupError("hscc/__init__.py: got no _HOMES")


def arrows() -> dict[str, set[str]]:
    """The rooms, and those that each imports; a file at the top is a room of its own."""
    found: dict[str, set[str]] = {KERNELS: set()}
    for name, path in modules().items():
        room = name.split(".")[0]
        found.setdefault(room, set()).update(one.split(".")[0] for one in imports(name, path))
    return {room: others - {room} for room, others in found.items()}


def needed(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others."""

    def reach(room: str) -> set[str]:
        return graph[room].union(*map(reach, graph[room]))

    return {room: others - set().union(*map(reach, others)) for room, others in graph.items()}


def rows(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from the top down, each below all that import it, and about under them."""
    importers = {room: [other for other in graph if room in graph[other]] for room in graph}

    def depth(room: str) -> int:
        return max((1 + depth(other) for other in importers[room]), default=0)

    found, place = [], {}
    for level in range(1 + max(map(depth, graph))):
        several = [room for room in graph if depth(room) == level]
        above = {room: [place[other] for other in needed(graph) if room in needed(graph)[other]] for room in several}
        several.sort(key=lambda room: sum(above[room]) / max(len(above[room]), 1))
        place |= {room: (i + 0.5) / len(several) for i, room in enumerate(several)}
        found.append(several)
    return found


def told(room: str) -> tuple[str, str]:
    """(what a room is for, its files)."""
    folder = ROOT / KERNELS if room == KERNELS else PACKAGE / room
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    sentence = ast.get_docstring(ast.parse(file.read_text())).splitlines()[0].rstrip(".").replace("`", "")
    names = dict.fromkeys(name.split(".")[1] for name in modules() if name.startswith(f"{room}."))
    return sentence, ", ".join(names)


def lines(text: str, width: float) -> list[str]:
    """Words in lines of about ``width`` pixels."""
    found = [""]
    for word in text.split():
        if len(found[-1]) + len(word) > width / 6.7:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    return found


def svg() -> str:
    graph = needed(arrows())
    boxes, parts, curves, levels = {}, [], [], rows(arrows())
    for level, several in enumerate(levels):
        width = min(380, (WIDTH - GAP * (len(several) + 1)) / len(several))
        start = (WIDTH - len(several) * width - (len(several) - 1) * GAP) / 2
        for i, room in enumerate(several):
            x, y = start + i * (width + GAP), 12 + level * ROW
            sentence, files = (lines(text, width) for text in told(room))
            parts.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX}"/>')
            kinds = ["title", *["plain"] * len(sentence), *["files"] * len(files)]
            for n, (kind, text) in enumerate(zip(kinds, [room, *sentence, *files], strict=True)):
                parts.append(f'<text class="{kind}" x="{x + 10:.0f}" y="{y + 18 + 15 * n}">{escape(text)}</text>')
            boxes[room] = x + width / 2, y
    for room, others in graph.items():
        for other in sorted(others):
            (x, y), (u, v) = boxes[room], boxes[other]
            start, middle, end = y + BOX, (y + BOX + v) / 2, v - 2
            curve = f"M{x:.0f} {start} C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {end}"
            curves.append(f'<path marker-end="url(#head)" d="{curve}"/>')
    head = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head = f'<defs>{head}<path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    size = f'viewBox="0 0 {WIDTH} {len(levels) * ROW - ROW + BOX + 24}"'
    top = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>'
    return "\n".join([top, head, *curves, *parts, "</svg>\n"])


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(svg())
