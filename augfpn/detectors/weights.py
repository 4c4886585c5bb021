"""Pretrained weights of a backbone: timm's by their tag, a file, or a URL.

What is fetched from a URL is kept in a folder, ``$AUGFPN_WEIGHTS`` or ``~/.cache/augfpn/weights``. Without a network,
files can be put there by hand; the errors say which and where:

    <name>.<tag>.safetensors    timm's weights of that tag, before they are looked for in Hugging Face's cache
    <host>/<path>               what http(s)://<host>/<path> names

What a URL names is verified each time it is used: by the SHA-256 that the URL ends in (``…/weights.pth#sha256=…``), or
else by the beginning of it that torchvision's files have in their names (``resnet50-0676ba61.pth``). Where there is
neither, a warning says what would verify it. Files are read as tensors, never as the code that a pickle can be.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from augfpn.errors import UserError
from augfpn.experiments.paper import unknown
from augfpn.files import written_whole

# Around a backbone's own names: data parallelism, detectors, and timm's and this package's wrappers.
_WRAPPERS = ("module.", "backbone.", "body.", "model.")
_CLASSIFIERS = ("fc", "classifier", "head", "last.linear")
# The tag that stands for the one that timm takes itself; for these, for the paper's.
DEFAULT = "default"
_OF_THE_PAPER = {"resnet50": "tv_in1k", "resnet101": "tv_in1k"}
# torchvision's way of naming a file: resnet50-0676ba61.pth begins so in SHA-256. A URL can end in all of it.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_FRAGMENT = re.compile(r"sha256=([0-9a-f]{64})")
# A server that says nothing for so many seconds is given up.
_PATIENCE = 60


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
    """The file of a URL, which is fetched at its first use and verified at each."""
    address, _, fragment = url.partition("#")
    path = _kept_at(address)
    if fragment and not _FRAGMENT.fullmatch(fragment):
        raise UserError(f"Behind the # of a URL stands the file's SHA-256, sha256= and 64 hexadecimal digits: {url}.")
    promise = _FRAGMENT.fullmatch(fragment) or _HASH.search(path.name)
    beginning = promise[1] if promise else ""
    if not os.path.isfile(path):
        _fetch(address, path, beginning)
    elif promise and not (found := _sha256(path)).startswith(beginning):
        raise UserError(f"{path} is not what {url} names: its SHA-256 is {found}. Delete it to have it fetched again.")
    return path


def _kept_at(url: str) -> Path:
    """Where the file of a URL is kept: by host and path, because many files are called model.safetensors."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").strip("."), parts.port
    except ValueError as error:
        raise UserError(f"{url} is no URL ({error}).") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"Weights are fetched by http and https only, not by {url}. Name a file or a URL of that kind.")
    # Of two files that differ in the query only, each has its own name.
    query = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-" if parts.query else ""
    inside = [part for part in unquote(parts.path).split("/") if part not in ("", ".", "..")]
    if not inside:
        raise UserError(f"{url} names no file.")
    return _cache().joinpath(host, *inside[:-1], query + inside[-1])


def _fetch(url: str, path: Path, beginning: str) -> None:
    """Fetches a URL to a file, which is there once it is whole and its SHA-256 begins as it should."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "augfpn"})
        with written_whole(path) as temporary, urllib.request.urlopen(request, timeout=_PATIENCE) as response:
            size = response.headers["Content-Length"]
            bar = tqdm(total=size and int(size), unit="B", unit_scale=True, disable=not sys.stderr.isatty())
            with temporary.open("wb") as file, bar:
                for part in iter(partial(response.read, 2**20), b""):
                    bar.update(file.write(part))
            # A connection that breaks off is otherwise no error.
            if size and temporary.stat().st_size != int(size):
                raise OSError(f"{temporary.stat().st_size} of {size} bytes came")
            found = _sha256(temporary)
            if not found.startswith(beginning):
                raise ValueError(f"its SHA-256 is {found}, and should begin with {beginning}")
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"The weights could not be fetched ({error}). Fetch {url} and put it at {path}.") from error
    if not beginning:
        warnings.warn(
            f"{path} could not be verified, because nobody says what it should be. Its SHA-256 is {found}; with "
            f"{url}#sha256={found} it is verified from now on.",
            stacklevel=2,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    given = [theirs[key] for key in needed & theirs.keys()]
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
            ("not of real numbers", [name for name in given if not found[name].is_floating_point()]),
            ("with infinite numbers or none", [name for name in given if not found[name].isfinite().all()]),
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
    except Exception as error:
        # PyTorch raises whatever it comes upon in a broken file: struct.error, IndexError, AssertionError …
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a file of weights: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {key: value for key, value in content.items() if _is_plain(value)} if _is_named(content) else {}
    if not tensors:
        raise UserError(
            f"{path} holds no state dict: expected tensors by their names, directly or under 'state_dict' or 'model'; "
            f"found {type(content).__name__}."
        )
    return tensors


def _is_named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(key, str) for key in content)


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with its numbers in it: neither sparse, nor quantised, nor a mere shape."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not value.is_quantized and not value.is_meta


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
