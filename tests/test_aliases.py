from localv4.aliases import ALIASES, alias_of, find_alias
from localv4.synthetic_config import FULL_WIDTH

FLASH = "deepseek-ai/DeepSeek-V4-Flash"


def test_names_in_any_case():
    for name in ("flash", "Flash", "DeepSeek-V4-Flash"):
        alias = find_alias(name)
        assert alias is not None
        assert (alias.repo_id, alias.think) == (FLASH, None)
    assert find_alias("flash ") is None
    assert find_alias("") is None


def test_the_names_of_the_api_imply_thinking():
    chat, reasoner = ALIASES["deepseek-chat"], ALIASES["deepseek-reasoner"]
    assert (chat.repo_id, chat.think) == (FLASH, "off")
    assert (reasoner.repo_id, reasoner.think) == (FLASH, "high")


def test_the_shortest_name_of_a_repo_is_told():
    assert alias_of(FLASH) == "flash"
    assert alias_of("deepseek-ai/DeepSeek-V4-Pro-0813") == "pro-0813"
    assert alias_of("deepseek-ai/DeepSeek-V3") is None
    for name in FULL_WIDTH:
        assert alias_of(ALIASES[name].repo_id) == name
