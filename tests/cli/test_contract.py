"""What scripts rely on of `run`, line by line, and the tests that hold it."""

import ast
from pathlib import Path

import pytest

CONTRACT = {
    "the prompt comes from the argument, a file or standard input": [
        "test_run::test_prompt_sources",
        "test_run::test_prompt_file_leaves_stdin_alone",
    ],
    "an argument and standard input are joined by a blank line": ["test_run::test_prompt_sources"],
    "- forces standard input": ["test_run::test_a_dash_reads_even_a_terminal"],
    "a terminal with no prompt is a usage error, never a hang": [
        "test_run::test_a_terminal_without_a_prompt_is_a_usage_error",
        "test_run_contract::test_a_terminal_without_a_prompt_is_not_waited_for",
        "test_run::test_a_terminal_is_not_read_beside_an_argument",
    ],
    "any bytes may come: a megabyte, no end, NUL, CRLF, a byte order mark, no text": [
        "test_run::test_prompt_sources",
        "test_run::test_usage_errors_are_one_sentence_and_code_2",
        "test_run::test_a_prompt_that_never_ends_is_not_read_for_ever",
        "test_run::test_a_prompt_of_any_characters_is_answered",
        "test_run_contract::test_a_megabyte_of_stdin_is_refused_with_both_numbers",
    ],
    "stdout carries the answer and nothing else": [
        "test_run::test_stdout_carries_the_answer_and_nothing_else",
        "test_run_contract::test_one_answer_in_every_form",
        "test_run_contract::test_output_is_utf8_in_every_locale",
    ],
    "thinking, progress, statistics and warnings go to stderr": [
        "test_run::test_quiet_and_verbose",
        "test_run::test_the_length_of_the_prompt_is_said_before_it_is_read",
        "test_run::test_what_the_library_logs_is_a_warning_of_the_command",
        "test_run_contract::test_thinking_goes_to_stderr",
    ],
    "--format text, json, jsonl": [
        "test_run_forms::test_json",
        "test_run_forms::test_jsonl_has_a_line_for_each_part",
        "test_run_forms::test_jsonl_comes_as_it_is_made",
        "test_run_forms::test_a_tool_call_is_never_lost",
        "test_run_contract::test_one_answer_in_every_form",
    ],
    "every flag acts": [
        "test_run::test_flags_reach_the_engine",
        "test_flags::test_every_flag_is_tried",
        "test_flags::test_a_flag_of_run_does_something",
    ],
    "--raw has no template": [
        "test_run::test_raw_sends_the_text_as_it_is",
        "test_run::test_raw_refuses_what_only_a_template_has",
    ],
    "thinking is what the checkpoint says, unless set": [
        "test_run::test_thinking_is_the_checkpoints_unless_set"
    ],
    "a Base checkpoint is sent to run --raw": ["test_run::test_a_base_checkpoint_is_sent_to_raw"],
    "0: done": ["test_run::test_stdout_carries_the_answer_and_nothing_else"],
    "1: failed": ["test_run::test_exit_codes"],
    "2: usage": ["test_run::test_usage_errors_are_one_sentence_and_code_2"],
    "3: model missing or damaged": [
        "test_run::test_exit_codes",
        "test_run::test_a_missing_model_is_code_3",
    ],
    "4: not enough memory or disk": [
        "test_run::test_exit_codes",
        "test_run_contract::test_an_answer_finds_no_room",
        "test_run_contract::test_a_full_disk",
    ],
    "124: timeout, and the partial text stays": [
        "test_run::test_timeout_keeps_the_partial_text",
        "test_run_contract::test_the_time_limit",
    ],
    "130: interrupted, and the partial text stays": [
        "test_run::test_signals_keep_the_partial_text",
        "test_run_contract::test_a_signal_keeps_the_partial_text",
    ],
    "a closed pipe ends quietly": [
        "test_run_contract::test_a_closed_pipe_ends_quietly",
        "test_run_contract::test_a_pipe_closed_before_the_end",
    ],
    "standard streams may be closed": [
        "test_run_contract::test_closed_standard_streams",
        "test_run_contract::test_stdin_and_stderr_may_be_closed",
    ],
    "an error is one sentence with what to do next": [
        "test_run::test_usage_errors_are_one_sentence_and_code_2",
        "test_run::test_a_full_disk_names_the_cache_unless_it_is_another_file",
    ],
    "a traceback comes with -vv only": [
        "test_run::test_exit_codes",
        "test_run::test_two_vs_show_the_traceback",
    ],
    "--logprobs": ["test_run_forms::test_logprobs_are_given_for_every_sampled_token"],
    "--tools": [
        "test_run_forms::test_tools_are_offered",
        "test_tools_file::test_what_is_wrong_is_one_sentence_with_the_place",
    ],
    "--prompts: a line for each prompt, checked before the model is opened": [
        "test_run_prompts::test_a_line_for_each_prompt_with_all_that_json_has",
        "test_run_prompts::test_a_bad_line_is_one_sentence_before_the_model_is_opened",
    ],
    "--prompts: the answers are those of single runs": [
        "test_many::test_answers_are_those_of_single_runs"
    ],
    "--output: what is complete stays, and a later start goes on": [
        "test_run_output::test_what_is_complete_stays_when_it_is_stopped",
        "test_run_output::test_a_full_disk_leaves_whole_lines",
        "test_results_file::test_a_file_cut_off_anywhere_ends_up_the_same",
        "test_run_contract::test_many_prompts_survive_a_kill",
    ],
}


@pytest.mark.parametrize("line", CONTRACT)
def test_a_line_of_the_contract_has_its_tests(line):
    assert CONTRACT[line]
    for name in CONTRACT[line]:
        module, _, function = name.partition("::")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
