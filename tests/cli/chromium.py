"""Pages as headless Chromium draws them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
"""The program; ``None`` where there is none."""
_RESULT = re.compile(r"<meta name=.found. content=.([0-9a-f]*).", re.DOTALL)


def drawn(page: Path, question: str, folder: Path, width: int = 1100) -> Any:
    """What the JavaScript expression ``question`` gives, evaluated in a window ``width`` pixels
    wide once ``page`` is drawn. A message on the console is an error."""
    assert CHROMIUM is not None
    script = """
<script>
addEventListener("load", () => {
  const bytes = new TextEncoder().encode(JSON.stringify(%s));
  const found = document.createElement("meta");
  found.name = "found";
  found.content = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  document.head.append(found);
});
</script>
"""
    asked = folder / f"asked-{width}.html"
    text = page.read_text(encoding="utf-8")
    asked.write_text(text + script % question, encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--dump-dom",
        asked.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in ended.stderr.splitlines() if ":CONSOLE" in line]
    assert not console, console
    found = _RESULT.search(ended.stdout)
    assert found is not None, ended.stderr
    return json.loads(bytes.fromhex(found[1]))
