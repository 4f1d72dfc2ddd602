"""Scripts that are written without spaces between words, where characters are counted first."""

import re
from collections import Counter
from collections.abc import Iterable

# Chinese and Japanese (with Bopomofo and Yi), and the scripts of South-East Asia and Tibet in which
# spaces or marks separate phrases or syllables. Korean has spaces between words.
_WITHOUT_SPACES = re.compile(
    "[\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf"
    "\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    "\u0e00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaadf\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\u1b00-\u1b7f\ua980-\ua9df]"
)


def is_without_spaces(texts: Iterable[str]) -> bool:
    """Return whether more than half of the letters are of a script without spaces between words."""
    letters, without_spaces = 0, 0
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    for character, count in characters.items():
        if character.isalpha():
            letters += count
            without_spaces += count * bool(_WITHOUT_SPACES.match(character))
    return 2 * without_spaces > letters
