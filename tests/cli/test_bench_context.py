import json

import pytest


def test_what_a_context_costs(command):
    flags = "--contexts 256,4100 --seconds 0.01 --threads 1"
    result = command("bench", "context", *flags.split(), "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [row["context"] for row in report["contexts"]] == [256, 4096]
    for row in report["contexts"]:
        assert row["index"]["keys"] == row["context"] // 4
        assert row["csa"]["entries"] == min(512, row["context"] // 4)
        assert row["hca"]["entries"] == row["context"] // 128
        parts = [row["csa"]["seconds"], row["index"]["score_s"], row["index"]["choose_s"]]
        assert row["layers_s"] == pytest.approx(21 * sum(parts) + 20 * row["hca"]["seconds"])
    table = command("bench", "context", *flags.split()).out
    assert "4,096" in table


@pytest.mark.parametrize("contexts", ["", "127", "many", "256,", "-256", "2000000"])
def test_contexts_that_cannot_be(command, contexts):
    result = command("bench", "context", "--contexts", contexts)
    assert result.code == 2
    assert "--contexts has" in result.err
