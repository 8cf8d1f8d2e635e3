"""The short examples run, by their notebook, whose cells need no Jupyter here; what they print
holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

EXAMPLES = ROOT / "examples"


def test_the_cells_of_the_notebook_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 3
    code = "\n".join(["import sys", "sys.path.insert(0, 'examples')", *cells])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    talk = re.findall(r"^ ?\d+ \w+: \w", done.stdout, re.MULTILINE)
    assert len(talk) > 8 and f"{len(talk)} calls; of " in done.stdout
    watches = re.search(r"(\d+) watches came when the roster said, (\d+) did not", done.stdout)
    assert watches is not None and int(watches[1]) >= 16 and watches[2] == "0", done.stdout
    assert "16 of 16 tokens are the built-in kernel's" in done.stdout
