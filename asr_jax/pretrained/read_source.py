"""A pretrained model, read from a .nemo archive or from a folder of transformers."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asr_jax.config import Config
from asr_jax.export.origin import Origin
from asr_jax.pretrained import nemo_archive, nemo_config, transformers_config
from asr_jax.pretrained.config_of_source import Source, config_of_source
from asr_jax.pretrained.fields import Fields
from asr_jax.pretrained.license import stated_license
from asr_jax.pretrained.nemo_archive import Archive
from asr_jax.pretrained.nemo_config import read_yaml
from asr_jax.pretrained.nemo_names import renamed
from asr_jax.pretrained.parameters import Parameters, parameters, require_readable
from asr_jax.pretrained.sizes import Sizes, sizes_of
from asr_jax.pretrained.tokenizer import model_of_json, read_tokenizer
from asr_jax.pretrained.torch_checkpoint import read_checkpoint
from asr_jax.pretrained.transformers_folder import read_json, read_weights
from asr_jax.pretrained.weights import Weights
from asr_jax.text import Tokenizer

_CARD = "README.md"


class Pretrained(NamedTuple):
    """A model in the form of this package, whose parameters are read when they are used."""

    config: Config
    tokenizer: Tokenizer
    parameters: Parameters
    origin: Origin


def read_source(path: Path) -> Pretrained:
    """Read a .nemo archive, or a folder with config.json and safetensors.

    Raises ValueError, naming the file, for one that is damaged, for another class of models, and
    for a field or tensor that would make another model than this package can express.
    """
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return _from_archive(path)


def _from_archive(path: Path) -> Pretrained:
    archive = Archive(path)
    fields = read_yaml(archive.read(nemo_archive.CONFIG), f"{path}: {nemo_archive.CONFIG}")
    card = _card_of_archive(archive)
    with _naming(path):
        nemo_config.require_class(fields)
        tokenizer = _tokenizer_of_archive(archive, fields)
    weights = renamed(read_checkpoint(archive.stored(nemo_archive.WEIGHTS)))
    with _naming(path):
        sizes = _checked_sizes(weights, tokenizer)
        source = nemo_config.nemo_source(fields, sizes)
        return _pretrained(source, weights, sizes, tokenizer, _origin(path, fields, card))


def _from_folder(path: Path) -> Pretrained:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: has no config.json; {_expected(path)}")
    fields = Fields("", read_json(path / "config.json"))
    processor = Fields("", read_json(path / "processor_config.json")).part("feature_extractor")
    if not processor.values:
        processor = Fields("", read_json(path / "preprocessor_config.json"))
    with _naming(path / "config.json"):
        transformers_config.require_class(fields)
    tokenizer = _tokenizer_of_folder(path)
    with _naming(path):
        weights = renamed(read_weights(path))
        sizes = _checked_sizes(weights, tokenizer)
        source = transformers_config.transformers_source(fields, processor, sizes)
        origin = _origin(path, fields, _text(path / _CARD))
        return _pretrained(source, weights, sizes, tokenizer, origin)


def _pretrained(
    source: Source, weights: Weights, sizes: Sizes, tokenizer: Tokenizer, origin: Origin
) -> Pretrained:
    config = config_of_source(source, sizes, tokenizer)
    scale = math.sqrt(sizes.width) if source.scale_input else 1.0
    return Pretrained(config, tokenizer, parameters(weights, sizes, scale=scale), origin)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to errors that do not name it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _checked_sizes(weights: Weights, tokenizer: Tokenizer) -> Sizes:
    sizes = sizes_of(weights)
    require_readable(weights, sizes)
    # The tokenizer has the blank as well.
    if tokenizer.vocabulary_size != sizes.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary_size - 1} pieces, and the weights have "
            f"{sizes.vocabulary - 1} labels besides the blank"
        )
    return sizes


def _tokenizer_of_archive(archive: Archive, fields: Fields) -> Tokenizer:
    tokenizer = fields.part("tokenizer")
    tokenizer.require("type", "bpe")
    name = str(tokenizer.stated("model_path") or "").removeprefix("nemo:")
    if name not in archive.names:
        raise tokenizer.error("model_path", "must name a SentencePiece model in the archive")
    return read_tokenizer(archive.read(name), f"{archive.path}: {name}")


def _tokenizer_of_folder(path: Path) -> Tokenizer:
    model, converted = path / "tokenizer.model", path / "tokenizer.json"
    if model.is_file():
        return read_tokenizer(model.read_bytes(), str(model))
    if not converted.is_file():
        raise ValueError(f"{path}: needs tokenizer.model or tokenizer.json, and has neither")
    return read_tokenizer(model_of_json(read_json(converted), str(converted)), str(converted))


def _origin(path: Path, fields: Fields, card: str) -> Origin:
    return Origin(path.resolve().name, *stated_license(fields.values, card))


def _card_of_archive(archive: Archive) -> str:
    """Return the model card in an archive, or the one beside it if it is alone in its folder."""
    if _CARD in archive.names:
        return archive.read(_CARD).decode(errors="replace")
    folder = archive.path.parent
    return _text(folder / _CARD) if len([*folder.glob("*.nemo")]) == 1 else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _expected(folder: Path) -> str:
    archives = sorted(folder.glob("*.nemo"))
    if archives:
        return f"to import the archive in it, pass {archives[0]}"
    return "must be a .nemo archive or a folder of transformers"
