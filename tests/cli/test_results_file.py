"""A file of results that was cut off anywhere is gone on with, and ends up the same."""

import pytest

from localv4.cli.answering import Parameters, Request
from localv4.cli.prompts_file import Entry
from localv4.cli.results_file import ResultsFile
from localv4.errors import InvalidInput

ENTRIES = [Entry(index, "é", f"key{index}", Request("x", Parameters())) for index in (0, 2, 3)]
LINES = [
    f'{ENTRIES[0].head}, "text": "ä"}}',
    f'{ENTRIES[1].head}, "error": "too long"}}',
    f'{ENTRIES[2].head}, "text": "\\n"}}',
]


def fill(path, lines):
    """Write what is not done yet, as a start does; return the places."""
    with ResultsFile(path, ENTRIES) as file:
        places = [place for place in range(len(ENTRIES)) if not file.is_done(place)]
        for place in places:
            file.put(place, lines[place])
        assert file.n_done == sum('"error": ' not in line for line in lines)
    return places


def test_a_file_cut_off_anywhere_ends_up_the_same(tmp_path):
    path = tmp_path / "results.jsonl"
    assert fill(path, LINES) == [0, 1, 2]
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        n_lines = whole[:n_bytes].count(b"\n")
        # the second one failed, and is tried again
        assert fill(path, LINES) == [place for place in range(3) if place >= min(n_lines, 1)]
        assert path.read_bytes() == whole


def test_a_failed_line_is_replaced_in_its_place(tmp_path):
    path = tmp_path / "results.jsonl"
    fill(path, LINES)
    better = [LINES[0], f'{ENTRIES[1].head}, "text": "error"}}', LINES[2]]
    assert fill(path, better) == [1]
    assert path.read_text().splitlines() == better
    assert fill(path, better) == []


def test_a_link_stays_a_link(tmp_path):
    link, path = tmp_path / "link", tmp_path / "results.jsonl"
    link.symlink_to(path)
    fill(link, LINES)
    fill(link, [LINES[0], f'{ENTRIES[1].head}, "text": ""}}', LINES[2]])
    assert link.is_symlink()
    assert len(path.read_text().splitlines()) == 3


def test_more_lines_than_prompts_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    fill(path, LINES)
    with pytest.raises(InvalidInput, match="has more lines than there are prompts, 2"):
        ResultsFile(path, ENTRIES[:2])
    # and the file can be opened again
    assert fill(path, LINES) == [1]
