"""What happens to turns before rendering: merge users, sort tool results, drop old thinking.

Pure functions on immutable turns. Source: section 3 of the chat encoding specification.
"""

from collections.abc import Sequence
from dataclasses import replace

from localv4.encoding.messages import Block, Turn


def merge_user_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Join runs of tool results and user texts into one user turn each (section 3a).

    Text is not joined to a turn that asks for a task, tool results are.
    """
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        starts_with_result = bool(turn.blocks) and turn.blocks[0].is_tool_result
        if (
            last is not None
            and last.role == turn.role == "user"
            and (starts_with_result or last.task is None)
        ):
            merged[-1] = replace(last, blocks=last.blocks + turn.blocks)
        else:
            merged.append(turn)
    return merged


def sort_tool_results(turns: Sequence[Turn]) -> list[Turn]:
    """Put the tool results of a turn in the order of the calls they answer (section 3b).

    Texts keep their places. A result with an unknown id sorts as if it answered the first call.
    """
    order: dict[str, int] = {}
    result = []
    for turn in turns:
        if turn.calls:
            order = {call.id: index for index, call in enumerate(turn.calls) if call.id}
        elif order and turn.role == "user":
            turn = replace(turn, blocks=_sorted_blocks(turn.blocks, order))
        result.append(turn)
    return result


def _sorted_blocks(blocks: tuple[Block, ...], order: dict[str, int]) -> tuple[Block, ...]:
    results = (block for block in blocks if block.is_tool_result)
    in_order = iter(sorted(results, key=lambda block: order.get(block.call_id, 0)))
    return tuple(next(in_order) if block.is_tool_result else block for block in blocks)


def last_question(turns: Sequence[Turn]) -> int:
    """Return the index of the last user or developer turn, -1 if there is none."""
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].role in ("user", "developer"):
            return index
    return -1


def drop_old_developers(turns: Sequence[Turn]) -> list[Turn]:
    """Remove the developer turns before the last question (section 3d).

    That section also strips old reasoning, which needs no step here: with thinking dropped,
    rendering never writes the reasoning of an answer before the last question.
    """
    last = last_question(turns)
    return [turn for index, turn in enumerate(turns) if index >= last or turn.role != "developer"]
