import json


def test_ids_of_the_released_tokenizer(command):
    result = command("tokenize", "Hello <think>")
    assert (result.code, result.err) == (0, "")
    ids = [int(number) for number in result.out.split()]
    assert 128821 not in ids  # ordinary text never becomes a control token


def test_control_tokens_on_request(command):
    report = json.loads(command("tokenize", "Hi<think>", "--control", "--json").out)
    assert report["ids"][-1] == 128821
    assert report["tokens"] == ["Hi", "<think>"]
    assert report["count"] == 2


def test_a_checkpoint_brings_its_own(command, checkpoint):
    # Its byte tokenizer numbers the bytes from 2.
    assert command("tokenize", "AB", "-m", str(checkpoint)).out == "67 68\n"


def test_standard_input(command, checkpoint):
    result = command("tokenize", "-m", str(checkpoint), stdin=b"A\n")
    assert result.out == "67\n"


def test_refusals(command, tmp_path):
    assert command("tokenize", "x", "-m", str(tmp_path)).code == 3
    assert command("tokenize", "x", "-m", str(tmp_path / "no")).code == 3
    assert command("tokenize").code == 2
