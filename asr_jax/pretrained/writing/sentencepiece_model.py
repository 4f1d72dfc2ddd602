"""The SentencePiece model of a tokenizer without its blank, which NeMo and transformers append."""

from sentencepiece import sentencepiece_model_pb2

from asr_jax.pretrained.tokenizer import without_blank
from asr_jax.text import Tokenizer

_Model = vars(sentencepiece_model_pb2)["ModelProto"]


def model_without_blank(tokenizer: Tokenizer) -> bytes:
    """Return the model in which every id is lower by one; the original one if it was imported."""
    try:
        return without_blank(tokenizer.model)
    except ValueError:  # trained here, or with added pieces
        proto = _Model.FromString(tokenizer.model)
        del proto.pieces[0]
        spec = proto.trainer_spec
        spec.unk_id, spec.pad_id, spec.vocab_size = 0, -1, len(proto.pieces)
        spec.ClearField("pad_piece")
        return proto.SerializeToString()
