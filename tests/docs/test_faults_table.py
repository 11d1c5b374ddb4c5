"""docs/design/faults.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    text = (ROOT / "docs" / "design" / "faults.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert len(rows) >= 79
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for row in rows:
        shown_by = row.rsplit(" | ", 1)[1]
        assert all(name in there for name in re.findall(r"test_\w+\.py", shown_by)), row
        for name in re.findall(r"`([a-z]\w+?)(?:_?\.\.\.)?`", shown_by):
            assert any(f"def test_{name}" in source for source in there.values()), f"{name} in {row}"
