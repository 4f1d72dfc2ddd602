"""Which texts are scored in characters first."""

import pytest

from asr_jax.scoring.scripts import is_without_spaces


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["你好，世界。"], True),
        (["今日はカタカナとﾊﾝｶｸ"], True),
        (["สวัสดีชาวโลก"], True),
        (["ສະບາຍດີ"], True),
        (["សួស្តីពិភពលោក"], True),
        (["မင်္ဂလာပါ"], True),
        (["བཀྲ་ཤིས་བདེ་ལེགས།"], True),
        (["甚至 出现 交易 几乎 停滞"], True),
        (["안녕하세요 세계"], False),
        (["नमस्ते दुनिया", "مرحبا", "Привет"], False),
        (["我们用 Python 写代码吧"], True),
        (["the word 你好 means hello"], False),
        (["123 456", "..."], False),
        ([], False),
    ],
)
def test_most_letters_decide(texts, expected):
    assert is_without_spaces(texts) == expected
