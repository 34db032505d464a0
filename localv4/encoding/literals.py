# ruff: noqa: RUF001  (the fullwidth bars are the format's own)
"""The fixed strings of the DeepSeek-V4 chat format, byte for byte.

Source: sections 0, 1 and 4 of the chat encoding specification. Knows nothing of messages or of
token ids; the tokenizer looks control tokens up by their literal.
"""

from typing import Final

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
THINK: Final = "<think>"
ENDTHINK: Final = "</think>"
DSML: Final = "｜DSML｜"
"""Only this part of a DSML tag is a control token; its brackets and name are ordinary text."""
REMINDER: Final = "<｜latest_reminder｜>"

TASKS: Final[dict[str, str]] = {
    task: f"<｜{task}｜>"
    for task in ("action", "query", "authority", "domain", "title", "read_url")
}
"""Task name -> the control token that asks for it."""

CONTROL_LITERALS: Final[tuple[str, ...]] = (
    *(BOS, EOS, USER, ASSISTANT, THINK, ENDTHINK, DSML, REMINDER),
    *TASKS.values(),
)
"""Every control token that the encoder writes. None is a part of another."""

EFFORT_THOROUGH: Final = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n"
)
EFFORT_RELENTLESS: Final = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal "
    "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple "
    "angles and are certain that no assumption remains unchecked and no error remains "
    "undiscovered.\n\n"
)

TOOLS_BEFORE_SCHEMAS: Final = f"""\
## Tools

You have access to a set of tools to help answer the user's question. \
You can invoke tools by writing a "<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. \
For all other types (numbers, booleans, arrays, objects), \
pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), \
you MUST output your complete reasoning inside {THINK}...{ENDTHINK} \
BEFORE any tool calls or final response.

Otherwise, output directly after {ENDTHINK} with tool calls or final response.

### Available Tool Schemas

"""
TOOLS_AFTER_SCHEMAS: Final = (
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas "
    "to invoke tool calls.\n"
)
RESPONSE_FORMAT: Final = (
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)

CALLS_OPEN: Final = f"<{DSML}tool_calls"
CALLS_CLOSE: Final = f"</{DSML}tool_calls>"
INVOKE_OPEN: Final = f"<{DSML}invoke"
INVOKE_CLOSE: Final = f"</{DSML}invoke"
PARAMETER_OPEN: Final = f"<{DSML}parameter"
PARAMETER_END: Final = f"/{DSML}parameter"
"""Ends a parameter's value; the ``<`` before it is matched with the value."""
