"""Text files: UTF-8 that other programs wrote, and names in lines that they can read."""

import codecs
import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

BYTE_ORDER_MARK = "\ufeff"
WIDE_MARKS = (
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
)

# Which of the first four bytes differ from 0 in UTF-16 and UTF-32 without a mark.
WIDE_ASCII = {
    (True, False, True, False),
    (False, True, False, True),
    (True, False, False, False),
    (False, False, False, True),
}

# Characters that end a field or a line for some program, and halves of surrogate pairs, which stand
# for the bytes of a name that is not UTF-8.
SEPARATING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

GZIP_MAGIC = b"\x1f\x8b"


class EncodingError(ValueError):
    """An error of a file that is not UTF-8 text: its name, the line, and what to do."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Read the lines of a text file, optionally gzip, that are not blank, numbered from 1.

    A line ends at \n or \r\n only, and is returned without its end; every other separator, such as
    U+2028 or a lone \r, is white space within it. Byte-order marks of UTF-8 are dropped at the
    start of every line, since files may have been concatenated.

    Raises ValueError, naming the file, if it cannot be read, is damaged gzip, or ends its lines in
    \r alone, and EncodingError, naming file and line, if it is not UTF-8.
    """
    try:
        with path.open("rb") as stored:
            is_gzip = stored.peek(2).startswith(GZIP_MAGIC)
            file = gzip.GzipFile(fileobj=stored) if is_gzip else stored
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _check_first(path, line)
                text = _line(line, path, number)
                if text and not text.isspace():
                    yield number, text
    except EOFError as error:
        raise ValueError(f"{path}: truncated, the gzip stream has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupt gzip") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from error


def decoded(contents: bytes, location: str) -> str:
    """Return the text of a whole file. Raises EncodingError, naming `location`."""
    _require_narrow(contents, location)
    try:
        return contents.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise EncodingError(
            f"{location}: not UTF-8 text (byte 0x{contents[error.start]:02x} at position "
            f"{error.start + 1}); convert the file, for example by "
            "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from error


def transcript(text: str) -> str:
    """Return the text in Unicode's form NFC, each run of white space as one space, stripped.

    NFC writes a letter and its accent as one character where there is one. NUL counts as white
    space, because programs in C end or pad texts with it. Byte-order marks are dropped, because
    programs that put whole files into JSON or into a line after an id keep them.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace(BYTE_ORDER_MARK, ""))
    return " ".join(text.replace("\0", " ").split())


def escaped(text: str) -> str:
    r"""Return the text with every character that UTF-8 lacks as JSON's escape.

    A name that is not UTF-8 has such characters: \udce9 for the byte 0xe9. In a JSON string the
    escape is read back as the character.
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def one_line(text: str) -> str:
    r"""Return the text with separators of fields and lines as escapes, such as \t and \n."""
    return SEPARATING.sub(_escape, text)


def field(name: str) -> str:
    r"""Return a name as a field of a line: `one_line`, with each backslash doubled."""
    return one_line(name.replace("\\", r"\\"))


def json_line(fields: Mapping[str, object]) -> str:
    """Return fields as one line of JSON, with its end, for programs that split lines anywhere."""
    text = json.dumps(fields, ensure_ascii=False)
    return SEPARATING.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _line(line: bytes, path: Path, number: int) -> str:
    """Return a line without its end and mark."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = decoded(line, f"{path}:{number}")  # raises the error that names the byte
    return text.removeprefix(BYTE_ORDER_MARK).removesuffix("\n").removesuffix("\r")


def _check_first(path: Path, line: bytes) -> None:
    """Raise ValueError if the first line shows that the file has other lines or characters."""
    _require_narrow(line, str(path))
    if not line.endswith(b"\n") and b"\r" in line.strip():
        raise ValueError(
            f"{path}: its lines end in a carriage return alone; end them in a line feed, for "
            r"example by tr '\r' '\n' < OLD > NEW"
        )


def _require_narrow(contents: bytes, location: str) -> None:
    """Raise EncodingError for text in units of two or four bytes."""
    is_ascii_in_wide_units = tuple(map(bool, contents[:4])) in WIDE_ASCII
    if contents.startswith(WIDE_MARKS) or is_ascii_in_wide_units:
        raise EncodingError(
            f"{location}: not UTF-8 text but UTF-16 or UTF-32; convert the file, for example by "
            "iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )
