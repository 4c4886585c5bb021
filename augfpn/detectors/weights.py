"""Pretrained weights of a backbone: timm's by their tag, a file, or a URL.

What is fetched from a URL is kept in a folder, ``$AUGFPN_WEIGHTS`` or ``~/.cache/augfpn/weights``. Without a network,
files can be put there by hand; the errors say which and where:

    <name>.<tag>.safetensors    timm's weights of that tag, before they are looked for in Hugging Face's cache
    <host>/<path>               what http(s)://<host>/<path> names
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from augfpn.errors import UserError
from augfpn.experiments.paper import unknown
from augfpn.files import written_whole

# Around a backbone's own names: data parallelism, detectors, and timm's and this package's wrappers.
_WRAPPERS = ("module.", "backbone.", "body.", "model.")
_CLASSIFIERS = ("fc", "classifier", "head", "last.linear")
# The tag that stands for the one that timm takes itself; for these, for the paper's.
DEFAULT = "default"
_OF_THE_PAPER = {"resnet50": "tv_in1k", "resnet101": "tv_in1k"}
# torchvision's way of naming a file: resnet50-0676ba61.pth begins so in SHA-256.
_HASH = re.compile(r"-([0-9a-f]{8,})\.\w+$")


def find_weights(name: str, weights: str) -> Path:
    """The file of the weights of the architecture ``name``: of timm's tag, of an http(s) URL, or as it is named.

    What has a slash or a dot is a file. What has to be fetched is fetched; a UserError says what to do where it cannot.
    """
    if "://" in weights:
        return _of_url(weights)
    if "/" in weights or os.sep in weights or "." in weights:
        return Path(weights).expanduser()
    return _of_tag(name, weights)


def _cache() -> Path:
    return Path(os.environ.get("AUGFPN_WEIGHTS") or "~/.cache/augfpn/weights").expanduser().absolute()


def _of_tag(name: str, tag: str) -> Path:
    """In the cache folder, or else in Hugging Face's, which is filled where there is a network."""
    if tag == DEFAULT:
        default = timm.get_pretrained_cfg(name)
        tag = _OF_THE_PAPER.get(name) or (default.tag if default is not None else tag)
    full_name = f"{name}.{tag}"
    kept = _cache() / f"{full_name}.safetensors"
    if kept.is_file():
        return kept
    tags = [entry.removeprefix(f"{name}.") for entry in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        problem = unknown(f"tag of weights of {name}", tag, tags) if tags else f"timm has no weights of {name}"
        raise UserError(f"{problem}. Or name a file or an https URL (weights=, --backbone-weights).")
    source = timm.get_pretrained_cfg(full_name)
    if not source.hf_hub_id:
        return _of_url(source.url)
    file = source.hf_hub_filename or "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(source.hf_hub_id, file))
    except Exception as error:
        # Those of huggingface_hub and of the HTTP library below it have no class in common.
        raise UserError(
            f"The weights {full_name!r} could not be fetched ({type(error).__name__}). Fetch "
            f"https://huggingface.co/{source.hf_hub_id}/resolve/main/{file} and put it at {kept}, or name a file "
            "(weights=, --backbone-weights)."
        ) from error


def _of_url(url: str) -> Path:
    """The file of a URL, which is fetched at its first use."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"Weights are fetched by http and https only, not by {url}. Name a file or a URL of that kind.")
    # By host and path: many files are called model.safetensors.
    # Of two files that differ in the query only, each has its own name.
    query = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-" if parts.query else ""
    inside = [part for part in PurePosixPath(unquote(parts.path)).parts if part not in ("/", "..")]
    if not inside:
        raise UserError(f"{url} names no file.")
    path = _cache().joinpath(parts.hostname, *inside[:-1], query + inside[-1])
    if path.is_file():
        return path
    found = _HASH.search(path.name)
    try:
        with written_whole(path) as temporary:
            torch.hub.download_url_to_file(
                url, str(temporary), hash_prefix=found[1] if found else None, progress=sys.stderr.isatty()
            )
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: the content does not have the hash that its name promises.
        raise UserError(f"The weights could not be fetched ({error}). Fetch {url} and put it at {path}.") from error
    return path


def load_weights(body: nn.Module, name: str, path: Path) -> None:
    """Gives ``body``, timm's features of the architecture ``name``, the weights in a file.

    The file has all that the body has, by timm's names; besides, at most what the body was cut from (a classifier),
    counters of batch norm, and biases in front of it. Anything else is a UserError, which names what is missing,
    misshapen or unknown.
    """
    found, own = _state_dict(path), body.state_dict()
    theirs, ours = _canonical(found), _canonical(own)
    assert len(ours) == len(own), f"two tensors of {name} have the same canonical name"
    needed = {key for key in ours if not _is_counter(key)}
    missing = [ours[key] for key in needed - theirs.keys()]
    misshapen = [
        f"{theirs[key]} {tuple(found[theirs[key]].shape)} rather than {tuple(own[ours[key]].shape)}"
        for key in needed & theirs.keys()
        if found[theirs[key]].shape != own[ours[key]].shape
    ]
    others = {key for key in theirs.keys() - ours.keys() if not _is_counter(key) and not _is_of_classifier(key)}
    # Files made from Caffe's have biases in front of batch norm. mmcv, by which the release loads, drops them.
    biases = {key for key in others if key.endswith(".bias") and f"{key.removesuffix('bias')}weight" in needed}
    if others > biases:
        others -= _names_of_whole(name)
    problems = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("unknown", [theirs[key] for key in others - biases]),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{path} does not hold the weights of {name}, which are {len(needed)} tensors by timm's names. "
            f"{'; '.join(problems)}. Name another file, or the backbone that it is of."
        )
    if any(found[theirs[key]].any() for key in biases):
        warnings.warn(f"{path}: {len(biases)} biases of which {name} has none are left out.", stacklevel=2)
    body.load_state_dict({ours[key]: found[theirs[key]] for key in needed}, strict=False)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names."""
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}. A tag of timm's has neither slash nor dot.")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to run the code.
        if "GLOBAL" not in str(error):
            raise UserError(f"{path} cannot be read as a file of weights: it is not one of PyTorch's.") from error
        raise UserError(
            f"{path} holds more than tensors, and reading it would run code of whoever made it. Where you trust it, "
            "save its state dict alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a file of weights: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)} if _is_named(content) else {}
    if not tensors:
        raise UserError(
            f"{path} holds no state dict: expected tensors by their names, directly or under 'state_dict' or 'model'; "
            f"found {type(content).__name__}."
        )
    return tensors


def _is_named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(key, str) for key in content)


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """The names of tensors by those that they have in the backbone alone, with dots for underscores.

    timm's features are called ``stages_0`` where the whole model has ``stages.0``. Where some names are inside a
    wrapper, the others are not of the backbone, such as the heads of a detector.
    """
    canonical = {name.replace("_", "."): name for name in names}
    while inside := next((wrapper for wrapper in _WRAPPERS if any(key.startswith(wrapper) for key in canonical)), None):
        canonical = {key.removeprefix(inside): name for key, name in canonical.items() if key.startswith(inside)}
    return canonical


def _is_counter(key: str) -> bool:
    # Frozen batch norm has none, nor have files older than PyTorch 0.4.1.
    return key.endswith("num.batches.tracked")


def _is_of_classifier(key: str) -> bool:
    return key.startswith(tuple(f"{classifier}." for classifier in _CLASSIFIERS))


def _names_of_whole(name: str) -> set[str]:
    """What the whole model has, of which timm's features are a part."""
    with torch.device("meta"):
        return set(_canonical(timm.create_model(name).state_dict()))
