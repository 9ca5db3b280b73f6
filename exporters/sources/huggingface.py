"""A folder as Hugging Face lays it out: config.json and safetensors, never code from it and never the network.

The architecture is a class of the installed transformers. What the folder says of its use becomes the task: labels and a
tokenizer for texts, pooling for embeddings, mean and std for pictures; otherwise the model takes and gives plain tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporters.sources import pictures
from exporters.sources.calls import parameters_of
from exporters.sources.module import open_module
from exporters.sources.names import bundle_name
from exporters.sources.torch_export import root_cause, silence
from exporters.sources.torch_original import TorchOriginal
from exporters.sources.trial import UNKNOWN
from kit.bundle.manifest import Provenance
from kit.errors import BadInput, KitError, UsageError
from kit.system import files, plain_json
from kit.tasks.base import Task
from kit.tensors import BATCH, Axis, Signature, TensorSpec

SEQUENCE, SAMPLES = "sequence", "samples"
_MOST_BYTES = 64 * 2**20  # of one JSON file
_CONFIG, _MODULES, _WEIGHTS = "config.json", "modules.json", "model.safetensors"
_PREPROCESSOR = "preprocessor_config.json"
_CLASSIFIES_TEXT, _CLASSIFIES_PICTURES = "ForSequenceClassification", "ForImageClassification"
_TOKENS = (16, 64, 128)
_SECOND = 16_000  # samples of sound
_LONGEST = 10**6  # tokenizers write larger numbers for no bound
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
# Networks that take pictures of any size, so that their processors tell it.
_ANY_SIZE = frozenset(
    {"bit", "convnext", "convnextv2", "efficientnet", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet"}
)


def open_folder(
    folder: Path, *, name: str | None = None, task: Task | None = None, axes: Mapping[str, Axis] | None = None
) -> TorchOriginal:
    """Take a folder as an original, in evaluation mode, without a cache of past tokens.

    Raises:
        UsageError: It needs code of its own, or weights are there in another form only.
        BadInput: A file is missing or damaged.
    """
    sentences = _sentence_transformer(folder)
    place = sentences.folder if sentences is not None else folder
    config = _json(place / _CONFIG)
    _check(place, config)
    module = _loaded(place, config, is_encoder=sentences is not None)
    signature, fixed = _signature(module, config, place)
    opened = open_module(
        module,
        name=name or bundle_name(folder.resolve().name),
        record=Provenance(kind="huggingface", name=type(module).__name__, sha256=_sha256(place)),
        signature=signature,
        axes=axes,
        outputs=["last_hidden_state"] if sentences is not None and sentences.pooling != "none" else None,
        fixed=fixed,
    )
    opened.examples = None
    try:
        if task is None:
            task, remark = _task(folder, place, config, opened.signature, sentences)
            opened.remarks = (remark,) if remark else ()
        opened.task = task
    except BaseException:
        opened.close()
        raise
    return opened


def _json(path: Path) -> Any:
    try:
        return plain_json.read(path.read_bytes(), what=path.name, most_bytes=_MOST_BYTES, finite=False)
    except FileNotFoundError as error:
        raise BadInput(f"there is no {path.name} in {path.parent.name}") from error
    except OSError as error:
        raise BadInput(f"{path.name} cannot be read: {error.strerror or error}") from error
    except plain_json.PlainJsonError as error:
        raise BadInput(str(error)) from error


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    if "auto_map" in config:
        raise UsageError(
            f"{folder.name} brings Python code of its own ({_CONFIG} has an auto_map), which kit does not run",
            hint="build the model in a function of yours, and name it as package.module:function",
        )
    if _wants_backbone(config):
        raise UsageError(
            f"{folder.name} has a part of its weights fetched from elsewhere (use_pretrained_backbone in {_CONFIG})",
            hint="set it to false if the folder's own weights are whole",
        )
    _check_names(folder, config)
    has_weights = (folder / _WEIGHTS).is_file() or (folder / f"{_WEIGHTS}.index.json").is_file()
    if not has_weights:
        pickled = next(
            (one for one in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / one).is_file()), ""
        )
        if pickled:
            raise UsageError(
                f"{folder.name} has its weights in {pickled} alone, a pickle, which may hold code",
                hint="where you trust it: Model.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)",
            )
        raise BadInput(f"{folder.name} has no {_WEIGHTS}", hint="copy the whole folder, weights included")


def _wants_backbone(config: Any) -> bool:
    if isinstance(config, Mapping):
        return bool(config.get("use_pretrained_backbone")) or any(map(_wants_backbone, config.values()))
    return isinstance(config, list) and any(map(_wants_backbone, config))


def _check_names(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse names of weights that lead out of the folder, or to another kind of file."""
    index = folder / f"{_WEIGHTS}.index.json"
    named = [config["transformers_weights"]] if config.get("transformers_weights") else []
    if index.is_file():
        found = _json(index)
        parts = found.get("weight_map") if isinstance(found, Mapping) else None
        if not isinstance(parts, Mapping):
            raise BadInput(f"{index.name} has no weight_map", hint="copy the whole folder again")
        named += parts.values()
    for name in named:
        if not isinstance(name, str) or re.fullmatch(r"[\w-][\w.-]*\.safetensors(\.index\.json)?", name) is None:
            raise BadInput(
                f"{folder.name} names weights that are no safetensors file of its own: {name!r}",
                hint="copy the model into one folder",
            )


def _loaded(folder: Path, config: Mapping[str, Any], *, is_encoder: bool) -> nn.Module:
    """Load the module that the config names; of a sentence transformer the network alone, whatever head it was trained with."""
    with _offline():
        import transformers

        kind = transformers.AutoModel if is_encoder else _class_of(transformers, config)
        wanted = "auto" if config.get("torch_dtype", config.get("dtype")) in {"float16", "float64"} else torch.float32
        try:
            found, loading = kind.from_pretrained(
                str(folder),
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=wanted,
                **_attention(kind),
            )
        except Exception as error:  # transformers raises whatever its parts do
            raise BadInput(
                f"transformers {transformers.__version__} cannot open {folder.name}: {root_cause(error)}",
                hint="try it in Python: Auto...from_pretrained(FOLDER, local_files_only=True)",
            ) from error
    if is_encoder and any("pooler" in str(name) for name in loading.get("missing_keys") or ()):
        found.pooler = None  # its output would be that of weights drawn at random
    _check_weights(folder, loading, is_encoder=is_encoder)
    module: nn.Module = found.eval()
    return module


def _check_weights(folder: Path, loading: Mapping[str, Any], *, is_encoder: bool) -> None:
    """Refuse weights that the folder lacks: transformers draws them at random."""
    missing = sorted(map(str, loading.get("missing_keys") or ()))
    if is_encoder:  # only the tokens' vectors are read
        missing = [name for name in missing if "pooler" not in name]
    wrong = sorted(str(one[0] if isinstance(one, tuple) else one) for one in loading.get("mismatched_keys") or ())
    if missing or wrong:
        lacking = missing or wrong
        raise BadInput(
            f"{folder.name} lacks weights that its model needs, such as {lacking[0]} ({len(lacking)} in all): "
            "they would be drawn at random",
            hint="name the architecture that the weights are of in config.json, or save the whole model again",
        )


def _class_of(transformers: Any, config: Mapping[str, Any]) -> Any:
    names = config.get("architectures") or []
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, str(names[0]), None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UsageError(
            f"transformers {transformers.__version__} has no model {names[0]}",
            hint="install a version that has it, or build it in a function of yours: package.module:function",
        )
    return found


def _attention(kind: Any) -> dict[str, str]:
    """Ask for attention written out, which torch exports for every model; some models have nothing to choose."""
    return {"attn_implementation": "eager"} if hasattr(kind, "_supports_sdpa") else {}


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let the Hub's client stay away from the network, and keep quiet."""
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE  # read from the environment when it was imported, and never again
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    constants.HF_HUB_OFFLINE = True
    try:
        from transformers.utils import logging as own

        logging: Any = own

        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(50)  # critical
        logging.disable_progress_bar()
        try:
            with silence():
                yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _signature(module: nn.Module, config: Mapping[str, Any], folder: Path) -> tuple[Signature, dict[str, Any]]:
    own: Any = module.config
    parameters = parameters_of(module)
    main = str(getattr(module, "main_input_name", "input_ids"))
    fixed = {name: value for name, value in (("use_cache", False), ("return_dict", True)) if name in parameters}
    if main == "pixel_values":
        shape = _picture(own, folder)
        return _of(TensorSpec(name=main, dtype=_dtype(module), shape=(BATCH, *shape))), fixed
    if main == "input_values":
        sound = TensorSpec(name=main, dtype=_dtype(module), shape=(BATCH, SAMPLES))
        axes = {SAMPLES: Axis(least=_least_samples(own), typical=(_SECOND,))}
        return _of(sound, axes=axes), fixed
    if main != "input_ids":
        raise UsageError(
            f"{type(module).__name__} takes {main}, which kit cannot make up",
            hint="build it in a function that returns (module, example inputs): package.module:function",
        )
    return _of(*_token_inputs(own, parameters), axes=_token_axes(own, config, folder)), fixed


def _of(*specs: TensorSpec, axes: Mapping[str, Axis] | None = None) -> Signature:
    return Signature(inputs=specs, outputs=UNKNOWN, axes=dict(axes or {}))


def _dtype(module: nn.Module) -> str:
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def _token_inputs(config: Any, parameters: list[str]) -> list[TensorSpec]:
    shape = (BATCH, SEQUENCE)
    vocabulary = int(getattr(config, "vocab_size", 0)) or None
    specs = [TensorSpec(name="input_ids", dtype="int64", shape=shape, below=vocabulary)]
    if "attention_mask" in parameters:
        specs.append(TensorSpec(name="attention_mask", dtype="int64", shape=shape, below=2))
    kinds = int(getattr(config, "type_vocab_size", 0) or 0)
    if "token_type_ids" in parameters and kinds > 1:
        specs.append(TensorSpec(name="token_type_ids", dtype="int64", shape=shape, below=kinds))
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        specs.append(
            TensorSpec(name="decoder_input_ids", dtype="int64", shape=(BATCH, "decoder_sequence"), below=vocabulary)
        )
    return specs


def _token_axes(config: Any, files_config: Mapping[str, Any], folder: Path) -> dict[str, Axis]:
    most = _most_tokens(config, folder)
    typical = tuple(size for size in _TOKENS if most is None or size <= most) or ((most,) if most else ())
    axis = Axis(most=most, typical=typical)
    pair = files_config.get("is_encoder_decoder")
    return {SEQUENCE: axis, "decoder_sequence": axis} if pair else {SEQUENCE: axis}


def _most_tokens(config: Any, folder: Path) -> int | None:
    """Return the longest sequence: of the positions that were learned, without those that some models skip."""
    bounds = [int(getattr(config, name, 0) or 0) for name in ("max_position_embeddings", "n_positions")]
    most = min((one for one in bounds if one > 0), default=0)
    if most and getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}:
        most -= int(config.pad_token_id or 0) + 1
    if (folder / "tokenizer_config.json").is_file():
        longest = _json(folder / "tokenizer_config.json").get("model_max_length")
        if isinstance(longest, int) and 0 < longest < _LONGEST:
            most = min(most, longest) if most else longest
    return most or None


def _least_samples(config: Any) -> int:
    """Return how much sound the convolutions need for two frames."""
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    needed = 2
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=False):
        needed = (needed - 1) * stride + kernel
    return int(needed)


def _picture(config: Any, folder: Path) -> tuple[int, int, int]:
    """Return channels, height and width."""
    path = folder / _PREPROCESSOR
    told = pictures.seen(_json(path)) if path.is_file() else None
    size = pictures.pair(getattr(config, "image_size", None))
    if told is not None and (size is None or config.model_type in _ANY_SIZE):
        size = told
    if size is None:
        raise UsageError(
            "the model says nothing of the size of its pictures",
            hint="build it in a function that returns (module, example inputs)",
        )
    return int(getattr(config, "num_channels", 3)), *size


@dataclass(frozen=True, kw_only=True)
class _Sentences:
    """What a folder of sentence-transformers says: where the model lies, and what follows it."""

    folder: Path
    pooling: str
    normalize: bool
    options: dict[str, Any] = field(default_factory=dict)


def _sentence_transformer(folder: Path) -> _Sentences | None:
    if not (folder / _MODULES).is_file():
        return None
    place, pooling, normalize = folder, "", False
    for one in _json(folder / _MODULES):
        kind = str(one.get("type", "")).rpartition(".")[2]
        where = folder / str(one.get("path", ""))
        if not where.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{_MODULES} leads out of the folder", hint="copy the model into one folder")
        if kind == "Transformer":
            place = where
        elif kind == "Pooling":
            pooling = _pooling(_json(where / _CONFIG))
        elif kind == "Normalize":
            normalize = True
        else:
            raise UsageError(
                f"{folder.name} has a step {kind!r}, which kit does not know",
                hint="build the whole in a function of yours: package.module:function",
            )
    options = {}
    if (place / "sentence_bert_config.json").is_file():
        longest = _json(place / "sentence_bert_config.json").get("max_seq_length")
        options = {"max_tokens": int(longest)} if longest else {}
    return _Sentences(folder=place, pooling=pooling or "none", normalize=normalize, options=options)


def _pooling(config: Mapping[str, Any]) -> str:
    chosen = [pooling for key, pooling in _POOLINGS.items() if config.get(key)]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [{"lasttoken": "last"}.get(config["pooling_mode"], config["pooling_mode"])]
    others = [key for key in config if key.startswith("pooling_mode_") and config[key] and key not in _POOLINGS]
    if len(chosen) != 1 or others:
        raise UsageError(f"kit knows one way of pooling at a time, found {', '.join([*chosen, *others]) or 'none'}")
    return chosen[0]


def _task(
    folder: Path, place: Path, config: Mapping[str, Any], signature: Signature, sentences: _Sentences | None
) -> tuple[Task | None, str]:
    """Return the task that the files tell of, and a remark if they tell of one that kit lacks; None: plain tensors."""
    architecture = str((config.get("architectures") or [""])[0])
    tokenizer = next((one for one in (place / "tokenizer.json", folder / "tokenizer.json") if one.is_file()), None)
    found: Any = None
    try:
        if sentences is not None and tokenizer is not None:
            from kit.tasks.text import TextEmbedding

            options = _text_options(place, signature, sentences)
            found = TextEmbedding(
                pooling=sentences.pooling, normalize=sentences.normalize, tokenizer=tokenizer, **options
            )
        elif architecture.endswith(_CLASSIFIES_TEXT) and tokenizer is not None and _labels(config, signature):
            from kit.tasks.text import TextClassification

            options = _text_options(place, signature, None)
            found = TextClassification(labels=_labels(config, signature), tokenizer=tokenizer, **options)
        elif architecture.endswith(_CLASSIFIES_PICTURES) and (place / _PREPROCESSOR).is_file():
            shape = signature.inputs[0].shape[1:]
            found, problem = pictures.described(_json(place / _PREPROCESSOR), _labels(config, signature), shape)
            if problem:
                return None, f"It takes plain tensors, and prepares no pictures: {problem}."
    except ValueError as error:
        raise UsageError(f"{folder.name} does not describe its use well: {error}", hint="choose one: --task") from error
    return (found if found is not None and _fits(found, signature) else None), ""


def _fits(task: Task, signature: Signature) -> bool:
    if task.prologue is not None:
        return True  # it is checked when the arithmetic is in the graph
    try:
        task.check(signature)
    except KitError:
        return False
    return True


def _text_options(place: Path, signature: Signature, sentences: _Sentences | None) -> dict[str, Any]:
    most = signature.axes[SEQUENCE].most
    options = dict(sentences.options) if sentences is not None else {}
    if most is not None:
        options["max_tokens"] = min(most, options.get("max_tokens", most))
    path = place / "tokenizer_config.json"
    pad = _json(path).get("pad_token") if path.is_file() else None
    pad = pad.get("content") if isinstance(pad, Mapping) else pad
    return {**options, "pad": str(pad)} if pad else options


def _labels(config: Mapping[str, Any], signature: Signature) -> tuple[str, ...]:
    """Return the names of the classes, in order; without names as many numbers as there are scores."""
    named = config.get("id2label")
    if isinstance(named, Mapping) and named:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    last = signature.outputs[0].shape[-1] if signature.outputs[0].shape else 0
    return tuple(f"LABEL_{place}" for place in range(last)) if isinstance(last, int) and last > 1 else ()


def _sha256(folder: Path) -> str:
    """Return the hash of the weights; of several files, that of their names and hashes."""
    path = folder / _WEIGHTS
    if path.is_file():
        return files.sha256(path)
    parts = sorted(folder.glob(f"{path.stem}-*{path.suffix}"))
    listed = "".join(f"{files.sha256(part)}  {part.name}\n" for part in parts)
    return hashlib.sha256(listed.encode()).hexdigest() if parts else ""
