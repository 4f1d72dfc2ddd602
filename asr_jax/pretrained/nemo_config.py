"""Facts about a model from NeMo's model_config.yaml, and refusals of what cannot be imported.

Defaults of fields that the file leaves out are those of NeMo's classes.
"""

import yaml

from asr_jax.config import FeaturesConfig
from asr_jax.features.mel import fft_samples
from asr_jax.pretrained.config_of_source import CTC_WEIGHT, DROPOUT, MOST_SYMBOLS, SIGMA, Source
from asr_jax.pretrained.fields import Fields
from asr_jax.pretrained.sizes import Sizes

# The loader in C is ten times faster; lists of labels are long.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CTC = "EncDecCTCModelBPE"
_CLASSES = (_CTC, "EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel")
# Fields that change nothing in recognition, or that are read from the weights.
_INERT = {
    "preprocessor": "_target_ sample_rate features dither pad_to n_window_size n_window_stride "
    "rng stft_exact_pad stft_conv use_torchaudio",
    "encoder": "_target_ feat_in feat_out n_layers d_model n_heads use_bias ff_expansion_factor "
    "subsampling_conv_channels subsampling_conv_chunking_factor pos_emb_max_len conv_kernel_size "
    "dropout dropout_att dropout_emb dropout_pre_encoder stochastic_depth_drop_prob "
    "stochastic_depth_mode stochastic_depth_start_layer att_context_probs reduction_position "
    "reduction_factor sync_max_audio_length use_pytorch_sdpa use_pytorch_sdpa_backends "
    "global_tokens_spacing",
}


def read_yaml(contents: bytes, location: str) -> Fields:
    """Read a YAML file of fields, without constructing any objects but plain values."""
    try:
        values = yaml.load(contents, _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{location}: not YAML of plain values: {message}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{location}: must hold an object of fields")
    return Fields("", values)


def require_class(fields: Fields) -> None:
    """Raise ValueError for a class of models that is not supported."""
    if _class(fields) not in _CLASSES:
        raise fields.error("target", f"must be one of {', '.join(_CLASSES)}")


def _class(fields: Fields) -> str:
    return str(fields.stated("target")).rpartition(".")[2]


def nemo_source(fields: Fields, sizes: Sizes) -> Source:
    """Return the facts of the config. Raises ValueError for a model that cannot be imported."""
    name = _class(fields)
    if (name == _CTC) == bool(sizes.lstm_layers):
        raise fields.error("target", "disagrees with the weights, which are of another class")
    _require_vocabulary(fields, sizes)
    encoder = fields.part("encoder")
    _require_encoder(encoder, sizes)
    is_chunked = encoder.stated("att_context_style") == "chunked_limited"
    source = Source(
        features=_features(fields.part("preprocessor"), encoder),
        kind="ctc",
        scale_input=encoder.stated("xscaling") is not False,
        context=_context(encoder, is_chunked=is_chunked),
        is_chunked=is_chunked,
        encoder_dropout=encoder.number("dropout", DROPOUT),
    )
    return source if name == _CTC else _with_transducer(source, fields, sizes)


def _require_vocabulary(fields: Fields, sizes: Sizes) -> None:
    """Raise ValueError where a number of labels is not that of the weights."""
    parts = {name: fields.part(name) for name in ("decoder", "joint")}
    parts["aux_ctc.decoder"] = fields.part("aux_ctc").part("decoder")
    for part in [fields, *parts.values()]:
        for name in ("num_classes", "vocab_size", "vocabulary", "labels"):
            value = part.stated(name)
            labels = len(value) if isinstance(value, list) else value
            if isinstance(labels, int) and labels > 0 and labels != sizes.vocabulary - 1:
                rule = f"the weights have {sizes.vocabulary - 1} labels besides the blank"
                raise part.error(name, rule)


def _require_encoder(encoder: Fields, sizes: Sizes) -> None:
    _require_target(encoder, "ConformerEncoder")
    encoder.require("subsampling", "dw_striding")
    encoder.require("subsampling_factor", sizes.factor)
    encoder.require("self_attention_model", "rel_pos", "rel_pos_local_attn")
    encoder.require("att_context_style", "regular", "chunked_limited")
    norms = ("batch_norm",) if sizes.has_statistics else ("layer_norm",)
    encoder.require("conv_norm_type", *norms)
    if not sizes.has_statistics and encoder.stated("conv_norm_type") is None:
        raise encoder.error("conv_norm_type", "the weights have no statistics of a batch_norm")
    is_chunked = encoder.stated("att_context_style") == "chunked_limited"
    half = sizes.kernel_frames // 2
    if is_chunked and encoder.stated("conv_context_size") is None:
        raise encoder.error("conv_context_size", "must be 'causal' with chunked_limited attention")
    encoder.require("conv_context_size", *(["causal"] if is_chunked else [[half, half]]))
    if is_chunked and not encoder.stated("causal_downsampling"):
        raise encoder.error("causal_downsampling", "must be true with chunked_limited attention")
    encoder.require("causal_downsampling", is_chunked)
    encoder.require("untie_biases", True)
    encoder.require("xscaling", True, False)
    encoder.require("reduction", None)
    encoder.require("global_tokens", 0)
    for name, size in {
        "n_layers": sizes.layers,
        "d_model": sizes.width,
        "n_heads": sizes.heads,
    }.items():
        encoder.require(name, size)
    encoder.require_known(
        *_INERT["encoder"].split(),
        *"subsampling subsampling_factor self_attention_model att_context_style xscaling".split(),
        *"att_context_size conv_norm_type conv_context_size causal_downsampling".split(),
        *"untie_biases".split(),
    )


def _require_target(fields: Fields, name: str) -> None:
    """Raise ValueError unless a part is of the class, if it states any."""
    target = fields.stated("_target_")
    if target is not None and str(target).rpartition(".")[2] != name:
        raise fields.error("_target_", f"must be {name}")


def _context(encoder: Fields, *, is_chunked: bool) -> tuple[tuple[int, int], ...]:
    """Return the pairs of frames before and after, the default first; () for all frames."""
    value = encoder.stated("att_context_size")
    if value is None:
        value = [-1, -1]
    sizes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    pairs: list[tuple[int, int]] = []
    for size in sizes:
        match size:
            case [int(before), int(after)] if min(before, after) >= 0:
                pairs.append((before, after))
            case [-1, -1] if not is_chunked and len(sizes) == 1:
                return ()
            case _:
                rule = "must be two numbers of frames" + (", or -1, -1" if not is_chunked else "")
                raise encoder.error("att_context_size", rule)
    if len(pairs) > 1 and not is_chunked:
        rule = "is not supported with several contexts where att_context_style is regular"
        raise encoder.error("att_context_size", rule)
    return tuple(pairs)


def _features(preprocessor: Fields, encoder: Fields) -> FeaturesConfig:
    _require_target(preprocessor, "AudioToMelSpectrogramPreprocessor")
    for name, supported in {
        "window": ("hann", "hamming"),
        "log": (True,),
        "log_zero_guard_type": ("add",),
        "log_zero_guard_value": (2.0**-24,),
        "mag_power": (2.0,),
        "mel_norm": ("slaney",),
        "frame_splicing": (1,),
        "exact_pad": (False,),
        "pad_value": (0.0,),
        "lowfreq": (0,),
        "normalize": ("per_feature", "NA", "none"),
    }.items():
        preprocessor.require(name, *supported)
    bins = preprocessor.integer("features", 64)
    encoder.require("feat_in", bins)
    rate_hz = preprocessor.integer("sample_rate", 16_000)
    preprocessor.require("highfreq", rate_hz / 2, 0)
    # null switches off what a missing field leaves at its default.
    stated = preprocessor.values
    normalizes = stated.get("normalize", "per_feature") == "per_feature"
    features = FeaturesConfig(
        layout="nemo",
        sample_rate_hz=rate_hz,
        window_ms=_milliseconds(preprocessor.number("window_size", 0.02)),
        hop_ms=_milliseconds(preprocessor.number("window_stride", 0.01)),
        window="hamming" if stated.get("window") == "hamming" else "hann",
        mel_bins=bins,
        mel_scale="slaney",
        low_hz=0.0,
        high_hz=0.0,
        preemphasis=preprocessor.number("preemph", 0.0 if "preemph" in stated else 0.97),
        remove_dc=False,
        normalization="utterance" if normalizes else "none",
    )
    preprocessor.require("n_fft", fft_samples(features))
    preprocessor.require_known(
        *_INERT["preprocessor"].split(),
        *"window log log_zero_guard_type log_zero_guard_value mag_power mel_norm".split(),
        *"frame_splicing lowfreq highfreq normalize window_size window_stride n_fft".split(),
        "preemph",
    )
    return features


def _milliseconds(seconds: float) -> float:
    """Return milliseconds without the error of a product: 0.025 s is 25.0 ms."""
    return round(1000 * seconds, 6)


def _with_transducer(source: Source, fields: Fields, sizes: Sizes) -> Source:
    decoder, joint = fields.part("decoder"), fields.part("joint")
    _require_target(decoder, "RNNTDecoder")
    _require_target(joint, "RNNTJoint")
    decoder.require("normalization_mode", None)
    decoder.require("blank_as_pad", True)
    jointnet, prednet = joint.part("jointnet"), decoder.part("prednet")
    jointnet.require("activation", "relu", "tanh")
    joint.require("num_extra_outputs", sizes.durations)
    durations = _durations(fields, sizes)
    loss = fields.part("loss").part("tdt_kwargs")
    return source._replace(
        kind="tdt" if sizes.durations else "transducer",
        activation="tanh" if jointnet.stated("activation") == "tanh" else "relu",
        durations=durations,
        sigma=loss.number("sigma", SIGMA),
        ctc_weight=_ctc_weight(fields.part("aux_ctc")) if sizes.has_ctc else 0.0,
        most_symbols=fields.part("decoding").part("greedy").integer("max_symbols", MOST_SYMBOLS),
        predictor_dropout=prednet.number("dropout", 0.0),
    )


def _durations(fields: Fields, sizes: Sizes) -> tuple[int, ...]:
    """Return the durations of a TDT model, as many as the weights have."""
    if not sizes.durations:
        return ()
    stated = {
        "tdt_durations": fields.part("model_defaults"),
        "durations": fields.part("decoding"),
    }
    for name, part in stated.items():
        if durations := part.integers(name):
            if len(durations) != sizes.durations:
                raise part.error(name, f"the weights have {sizes.durations} durations")
            return durations
    return tuple(range(sizes.durations))


def _ctc_weight(aux_ctc: Fields) -> float:
    """Return the weight beside a transducer loss of weight 1; NeMo's two weights add up to 1."""
    weight = aux_ctc.number("ctc_loss_weight", CTC_WEIGHT)
    if not 0 < weight < 1:
        weight = CTC_WEIGHT
    return weight / (1 - weight)
