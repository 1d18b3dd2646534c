"""What `tailforge doctor` finds of other distributions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailforge import doctor


def test_another_distribution_with_a_package_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.namesakes()) == []
    other = tmp_path / "plumbing-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: plumbing\nVersion: 1.0\n")
    (other / "top_level.txt").write_text("pipeline\npipes\n")
    monkeypatch.syspath_prepend(tmp_path)
    [(name, said)] = doctor.namesakes()
    assert name == "pipeline" and said.startswith("plumbing has a package of this name too: ") and "\n" not in said
