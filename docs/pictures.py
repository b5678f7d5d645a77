"""Pictures of README and docs, from a report: ``python docs/pictures.py out/report.html`` (see ``make pictures``)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

DOCS = Path(__file__).resolve().parent
WIDTH, TALL = 1040, 4000  # of the window; what is empty is cut off
PICTURES = {"verdict": "report.png", "trade-offs": "pareto.png", "maps": "regions.png"}  # by section
ONLY = "<style>main {{ padding: 8px 20px }} main > :not(#{0}) {{ display: none }} #{0} {{ margin: 0 }}</style>"


def main(report: Path) -> None:
    """Writes a picture a section; a report without one of them is an error."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("pictures: got no Chromium, expected chromium on the path")
    text = report.read_text()
    for section, name in PICTURES.items():
        if f'id="{section}"' not in text:
            raise SystemExit(f"pictures: got no section {section!r} in {str(report)!r}, expected a report with points")
        shot(browser, text.replace("</head>", ONLY.format(section) + "</head>"), DOCS / name)
        print(f"Wrote {DOCS / name}.")


def shot(browser: str, page: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        file.write_text(page)
        options = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-gpu",
            "--force-device-scale-factor=1.5",
        ]
        options += [f"--user-data-dir={folder}/profile", "--blink-settings=preferredColorScheme=1"]
        command = [browser, *options, f"--window-size={WIDTH},{TALL}", f"--screenshot={picture}", file.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(picture).convert("RGB")
    ground = Image.new("RGB", image.size, image.getpixel((image.width - 1, image.height - 1)))
    left, top, right, bottom = ImageChops.difference(image, ground).getbbox()
    image.crop((left, top, right, bottom)).quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
