"""The Python blocks of docs/guides/ run as printed, those of one guide in one process, in order."""

import re

import pytest
from helpers import ROOT


@pytest.mark.all
@pytest.mark.parametrize("guide", sorted((ROOT / "docs" / "guides").glob("*.md")), ids=lambda path: path.stem)
def test_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = guide.read_text()
    assert text.count("\n") <= 100 and text.count("![") == 1
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{guide.name}, block {number}", "exec"), names)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (guide.parent / link).exists(), link
