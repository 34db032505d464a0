"""Merging, sorting and dropping, on the cases where two rules meet."""

from typing import Any

from localv4.encoding.messages import Turn, read_turns
from localv4.encoding.preprocess import (
    drop_old_developers,
    last_question,
    merge_user_turns,
    sort_tool_results,
)


def message(role: str, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def caller(*ids: str) -> dict[str, Any]:
    calls = [{"id": name, "function": {"name": "f", "arguments": "{}"}} for name in ids]
    return message("assistant", tool_calls=calls)


def merged(*messages: dict[str, Any]) -> list[Turn]:
    return merge_user_turns(read_turns(messages, "message"))


def texts(turn: Turn) -> list[str]:
    return [block.text for block in turn.blocks]


def test_a_system_message_breaks_a_run_of_users() -> None:
    turns = merged(message("user", "a"), message("system"), message("user", "b"))
    assert [texts(turn) for turn in turns] == [["a"], [], ["b"]]


def test_text_does_not_join_a_task_but_a_tool_result_does() -> None:
    turns = merged(
        message("user", "a", task="query"),
        message("tool", "r"),
        message("user", "b", task="title"),
        message("user", "c"),
    )
    assert [texts(turn) for turn in turns] == [["a", "r"], ["b"], ["c"]]
    assert [turn.task for turn in turns] == ["query", "title", None]


def test_a_task_of_a_joined_user_is_lost() -> None:
    (turn,) = merged(message("tool", "r"), message("user", "a", task="query"))
    assert (texts(turn), turn.task) == (["r", "a"], None)


def test_results_are_sorted_around_the_texts() -> None:
    turns = merged(
        caller("A", "B"),
        message("tool", "b", tool_call_id="B"),
        message("user", "text"),
        message("tool", "a", tool_call_id="A"),
    )
    assert texts(sort_tool_results(turns)[1]) == ["a", "text", "b"]


def test_the_order_lasts_until_other_calls_replace_it() -> None:
    results = [message("tool", name, tool_call_id=name) for name in ("B", "A")]
    no_id = {"function": {"name": "f", "arguments": "{}"}}
    turns = merged(
        caller("A", "B"), message("assistant"), *results,
        caller("B", "A"), *results,
        message("assistant", tool_calls=[no_id]), *results,
    )  # fmt: skip
    found = [texts(turn) for turn in sort_tool_results(turns) if turn.role == "user"]
    assert found == [["A", "B"], ["B", "A"], ["B", "A"]]


def test_unknown_results_sort_with_the_first_call() -> None:
    names = ["B", "unknown", "A", ""]
    results = [message("tool", name, tool_call_id=name) for name in names]
    turns = merged(caller("A", "B"), *results)
    assert texts(sort_tool_results(turns)[1]) == ["unknown", "A", "", "B"]


def test_only_developers_before_the_last_question_go() -> None:
    turns = merged(
        message("developer", "old"), message("assistant"), message("developer", "now"),
        message("assistant"),
    )  # fmt: skip
    assert last_question(turns) == 2
    assert [turn.content for turn in drop_old_developers(turns)] == ["", "now", ""]
    assert last_question([Turn("assistant")]) == -1
