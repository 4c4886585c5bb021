"""Weights of a backbone that are none, do not fit, would run code, or are not what their URL names."""

import builtins
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import subprocess
import threading
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from augfpn.detectors.weights import find_weights, load_weights
from augfpn.errors import UserError
from tests.malformed.generation import repeatable


def body():
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3, bias=False), bn1=nn.BatchNorm2d(4)))


STATE = {**body().state_dict(), "fc.weight": torch.zeros(10, 4)}


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content):
    """As PyTorch saved before it had archives."""
    return saved(content, _use_new_zipfile_serialization=False)


def header(content, length=None, numbers=b""):
    """A safetensors file with a header, which may lie about its length, and numbers."""
    return struct.pack("<Q", len(content) if length is None else length) + content + numbers


def archive(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    return file.getvalue()


ZIPPED, LEGACY, SAFE = saved(STATE), legacy(STATE), save(STATE)
ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

NO_WEIGHTS = {
    **{f"{suffix} {what}": (content, suffix) for suffix in (".pth", ".safetensors") for what, content in {
        "of nothing": b"",
        "of zeros": bytes(100),
        "of a text": b"weights",
        "of a page": b"<!doctype html><title>404</title>",
        "of a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "of JSON": b'{"conv1.weight": [1, 2, 3]}',
        "of an archive of something else": archive({"readme.txt": "weights"}),
    }.items()},
    **{
        f"{what} cut off at {tenths * 10} %": (content[: len(content) * tenths // 10], suffix)
        for what, content, suffix in (
            ("an archive", ZIPPED, ".pth"),
            ("a pickle", LEGACY, ".pth"),
            ("safetensors", SAFE, ".safetensors"),
        )
        for tenths in range(1, 10)
    },
    "safetensors called otherwise": (SAFE, ".pth"),
    "an archive called safetensors": (ZIPPED, ".safetensors"),
    "an archive without its numbers": (archive({"archive/data.pkl": pickle.dumps({})}), ".pth"),
    "an archive of an empty pickle": (archive({"archive/data.pkl": b"", "archive/version": b"3"}), ".pth"),
    "an archive that leads out of its folder": (archive({"../../data.pkl": pickle.dumps({})}), ".pth"),
    "a header longer than the file": (header(ONE, 10**6, bytes(8)), ".safetensors"),
    "a header of 2^63 bytes": (header(ONE, 2**63, bytes(8)), ".safetensors"),
    "a header of 2^64 - 1 bytes": (header(ONE, 2**64 - 1, bytes(8)), ".safetensors"),
    "a header of no bytes": (header(b""), ".safetensors"),
    "a header that is too short": (header(ONE, len(ONE) - 1, bytes(8)), ".safetensors"),
    "a header that is no JSON": (header(b"{conv1}"), ".safetensors"),
    "a header that is a list": (header(b"[]"), ".safetensors"),
    "a header without tensors": (header(b"{}"), ".safetensors"),
    "a header without a type": (header(ONE.replace(b"dtype", b"dtyp"), None, bytes(8)), ".safetensors"),
    "a header of a type that there is not": (header(ONE.replace(b"F32", b"F31"), None, bytes(8)), ".safetensors"),
    "a header of a negative side": (header(ONE.replace(b"[2]", b"[-2]"), None, bytes(8)), ".safetensors"),
    "a header of too large a side": (header(ONE.replace(b"[2]", b"[4]"), None, bytes(8)), ".safetensors"),
    "a header of 2^62 numbers": (header(ONE.replace(b"[2]", b"[4611686018427387904]"), None, bytes(8)), ".safetensors"),
    "a header that points behind the file": (header(ONE.replace(b"[0,8]", b"[8,16]"), None, bytes(8)), ".safetensors"),
    "a header that points backwards": (header(ONE.replace(b"[0,8]", b"[8,0]"), None, bytes(8)), ".safetensors"),
    "fewer numbers than the header has": (header(ONE, None, bytes(7)), ".safetensors"),
    "more numbers than the header has": (header(ONE, None, bytes(9)), ".safetensors"),
    "a list": (saved([torch.zeros(1)]), ".pth"),
    "a tensor": (saved(torch.zeros(1)), ".pth"),
    "a number": (saved(3), ".pth"),
    "nothing that is saved": (saved(None), ".pth"),
    "an empty state dict": (saved({}), ".pth"),
    "numbers for names": (saved({1: torch.zeros(1)}), ".pth"),
    "a state dict without tensors": (saved({"epoch": 3, "conv1.weight": [1.0, 2.0]}), ".pth"),
    "a state dict that is a list": (saved({"state_dict": [torch.zeros(1)]}), ".pth"),
    "shapes without numbers": (saved({name: tensor.to("meta") for name, tensor in STATE.items()}), ".pth"),
    "sparse tensors": (saved({name: tensor.to_sparse() for name, tensor in STATE.items()}), ".pth"),
}  # fmt: skip

CHANGED = {
    "a tensor is missing": ({"bn1.weight": None}, r"1 missing: bn1\.weight"),
    "all but the classifier is missing": (dict.fromkeys(body().state_dict()), "5 missing"),
    "a tensor is unknown": ({"conv2.weight": torch.zeros(1)}, r"1 unknown: conv2\.weight"),
    "a shape is another": ({"conv1.weight": torch.zeros(4, 3, 5, 5)}, r"of another shape: conv1\.weight"),
    "a shape is turned": ({"conv1.weight": torch.zeros(3, 4, 3, 3)}, r"of another shape: conv1\.weight"),
    "a shape has a dimension more": ({"bn1.weight": torch.zeros(4, 1)}, r"of another shape: bn1\.weight"),
    "a shape has no dimension": ({"bn1.weight": torch.tensor(1.0)}, r"of another shape: bn1\.weight"),
    "a tensor is empty": ({"bn1.weight": torch.zeros(0)}, r"of another shape: bn1\.weight"),
    "numbers are integers": ({"bn1.weight": torch.ones(4, dtype=torch.int64)}, r"not of real numbers: bn1\.weight"),
    "numbers are truths": ({"bn1.weight": torch.ones(4, dtype=torch.bool)}, r"not of real numbers: bn1\.weight"),
    "numbers are bytes": ({"bn1.weight": torch.ones(4, dtype=torch.uint8)}, r"not of real numbers: bn1\.weight"),
    "numbers are complex": ({"bn1.weight": torch.ones(4, dtype=torch.complex64)}, r"not of real numbers: bn1\.weight"),
    "a number is none": ({"bn1.bias": torch.tensor([0, 0, torch.nan, 0])}, r"infinite numbers or none: bn1\.bias"),
    "a number is infinite": ({"bn1.bias": torch.tensor([0, 0, torch.inf, 0])}, r"infinite numbers or none: bn1\.bias"),
    "a statistic is none": ({"bn1.running_var": torch.full((4,), torch.nan)}, r"or none: bn1\.running_var"),
    "a tensor is a list": ({"bn1.weight": [1.0, 1.0, 1.0, 1.0]}, r"1 missing: bn1\.weight"),
    "a tensor is sparse": ({"bn1.weight": torch.ones(4).to_sparse()}, r"1 missing: bn1\.weight"),
    "a tensor is but a shape": ({"bn1.weight": torch.ones(4, device="meta")}, r"1 missing: bn1\.weight"),
}  # fmt: skip


class Code:
    """What a pickle can be: a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MARKER = "code-was-run"
CALLS = {
    "open": Code(open, MARKER, "w"),
    "os.system": Code(os.system, f"touch {MARKER}"),
    "os.mkdir": Code(os.mkdir, MARKER),
    "subprocess.check_call": Code(subprocess.check_call, ["touch", MARKER]),
    "eval": Code(builtins.eval, f"open({MARKER!r}, 'w')"),
    "exec": Code(builtins.exec, f"open({MARKER!r}, 'w')"),
    "shutil.copy": Code(shutil.copy, "/etc/hostname", MARKER),
    "pickle.loads": Code(pickle.loads, pickle.dumps(Code(open, MARKER, "w"))),
    "torch.save": Code(torch.save, 1, MARKER),
}  # fmt: skip
MALICIOUS = {
    **{f"a pickle that calls {name}": pickle.dumps(code) for name, code in CALLS.items()},
    **{f"an archive that calls {name}": saved(code) for name, code in CALLS.items()},
    "a call beside the weights": saved({**STATE, "epoch": CALLS["open"]}),
    "a call in the place of a tensor": saved({**STATE, "bn1.weight": CALLS["open"]}),
    "a call for a name": pickle.dumps({(CALLS["open"],): 1}),
    "a call under state_dict": saved({"state_dict": CALLS["open"]}),
    "a call in the old form": legacy({"state_dict": STATE, "hooks": [CALLS["os.system"]]}),
    "a model, which is code": saved(nn.Conv2d(1, 1, 1)),
}


# PyTorch says what is unusual about a file before it is refused.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Validating sparse tensor")


@pytest.fixture
def given_file(tmp_path):
    def write(content, suffix=".pth"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        return path

    return write


def refused(path, match=None):
    """Loads a file, which must fail with an error that names it, and leave the model as it was."""
    model = body()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=match) as error:
        load_weights(model, "resnet10t", path)
    assert str(path) in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_file_without_weights_is_refused(given_file, name):
    refused(given_file(*NO_WEIGHTS[name]))


@pytest.mark.parametrize("name", CHANGED)
def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(given_file, name):
    changes, expected = CHANGED[name]
    state = {key: value for key, value in {**STATE, **changes}.items() if value is not None}
    refused(given_file(saved(state)), expected)


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_file_that_would_run_code_is_refused_and_not_run(given_file, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(given_file(MALICIOUS[name]))
    assert not (tmp_path / MARKER).exists()


def test_the_calls_would_run_where_they_are_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in CALLS.values():
        pickle.loads(pickle.dumps(code))
        marker = tmp_path / MARKER
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


NUM_DAMAGED = 100
FILES = {".pth": [ZIPPED, LEGACY], ".safetensors": [SAFE]}


@repeatable(NUM_DAMAGED)
@given(
    st.sampled_from([(content, suffix) for suffix, contents in FILES.items() for content in contents]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def damaged(given_file, seen, file, changes):
    content, suffix = bytearray(file[0]), file[1]
    for place, byte in changes:
        content[place % len(content)] = byte
    seen.add(bytes(content))
    model = body()
    try:
        load_weights(model, "resnet10t", given_file(content, suffix))
    except UserError:
        return
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_whatever_bytes_are_changed_the_weights_are_whole_or_refused(given_file):
    seen = set()
    damaged(given_file, seen)
    assert len(seen - {ZIPPED, LEGACY, SAFE}) >= NUM_DAMAGED // 2


# What a server sends, and what is said.
OK = b"HTTP/1.0 200 OK\r\n"
PIECES = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "nothing": (b"", "could not be fetched"),
    "no HTTP": (b"hello\r\n\r\n", "could not be fetched"),
    "half a header": (OK + b"Content-Le", None),
    "an answer that breaks off": (OK + b"Content-Length: 1000\r\n\r\nhalf", "4 of 1000 bytes"),
    "an answer without a byte": (OK + b"Content-Length: 1000\r\n\r\n", "0 of 1000 bytes"),
    "pieces that break off": (PIECES + b"64\r\nhalf", "could not be fetched"),
    "pieces of no length": (PIECES + b"xyz\r\nhalf", "could not be fetched"),
    "a length that is no number": (OK + b"Content-Length: many\r\n\r\nweights", "could not be fetched"),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\nweights", "could not be fetched"),
    "an error": (b"HTTP/1.0 500 Internal Server Error\r\n\r\n", "500"),
    "no permission": (b"HTTP/1.0 403 Forbidden\r\n\r\n", "403"),
    "a way to a file": (b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n", "could not be fetched"),
    "a way round in a circle": (b"HTTP/1.0 302 Found\r\nLocation: /weights.pth\r\n\r\n", "could not be fetched"),
}  # fmt: skip


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Starts a server on this machine that answers every request with the same bytes; gives its address."""
    monkeypatch.setenv("AUGFPN_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = socket.create_server(("127.0.0.1", 0))

    def start(answer):
        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def kept(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_not_whole_is_not_kept(answering, tmp_path, name):
    answer, expected = ANSWERS[name]
    url = f"{answering(answer)}/weights-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    with pytest.raises(UserError, match=expected or "could not be fetched") as error:
        find_weights("resnet10t", url)
    assert url in str(error.value)
    assert kept(tmp_path) == []


WEIGHTS = OK + b"Content-Length: 7\r\n\r\nweights"
SHA256 = hashlib.sha256(b"weights").hexdigest()
OTHER = hashlib.sha256(b"others").hexdigest()
# The end of a URL, and whether its file is "weights".
PROMISES = {
    f"a-{SHA256[:8]}.pth": True,
    f"a-{SHA256}.pth": True,
    f"a.pth#sha256={SHA256}": True,
    # What is said by hand counts more than what may be a date.
    f"a-20240101.pth#sha256={SHA256}": True,
    f"a-{OTHER[:8]}.pth": False,
    f"a-{SHA256[:7]}0.pth": False,
    f"a.pth#sha256={OTHER}": False,
    f"a-{SHA256[:8]}.pth#sha256={OTHER}": False,
}


@pytest.mark.parametrize("end", PROMISES)
def test_what_a_url_promises_is_verified(answering, tmp_path, end, recwarn):
    url = f"{answering(WEIGHTS)}/{end}"
    if PROMISES[end]:
        assert find_weights("resnet10t", url).read_bytes() == b"weights"
    else:
        with pytest.raises(UserError, match=f"its SHA-256 is {SHA256}, and should begin with"):
            find_weights("resnet10t", url)
        assert kept(tmp_path) == []
    assert not any("could not be verified" in str(warning.message) for warning in recwarn)


def test_a_file_that_was_fetched_is_verified_each_time(answering):
    url = f"{answering(WEIGHTS)}/a-{SHA256[:8]}.pth"
    path = find_weights("resnet10t", url)
    path.write_bytes(b"others")
    with pytest.raises(UserError, match=f"is not what {url} names: its SHA-256 is {OTHER}"):
        find_weights("resnet10t", url)
    path.unlink()
    assert find_weights("resnet10t", url) == path


def test_what_could_not_be_verified_is_said_with_what_would_verify_it(answering):
    url = f"{answering(WEIGHTS)}/a.pth"
    with pytest.warns(UserWarning, match=rf"could not be verified.*{url}#sha256={SHA256}"):
        path = find_weights("resnet10t", url)
    assert find_weights("resnet10t", f"{url}#sha256={SHA256}") == path
    with pytest.raises(UserError, match="is not what"):
        find_weights("resnet10t", f"{url}#sha256={OTHER}")


NO_URLS = {
    "file:///etc/hostname": "by http and https only",
    "ftp://127.0.0.1/weights.pth": "by http and https only",
    "data://127.0.0.1/weights.pth": "by http and https only",
    "s3://bucket/weights.pth": "by http and https only",
    "://weights.pth": "by http and https only",
    "http://": "by http and https only",
    "http:///weights.pth": "by http and https only",
    "http://../weights.pth": "by http and https only",
    "http://127.0.0.1": "names no file",
    "http://127.0.0.1/": "names no file",
    "http://127.0.0.1/..": "names no file",
    "http://[::1/weights.pth": "is no URL",
    "http://127.0.0.1:port/weights.pth": "is no URL",
    "http://127.0.0.1:99999/weights.pth": "is no URL",
    "http://127.0.0.1:1/weights.pth": "could not be fetched",
    "http://127.0.0.1:1/%00.pth": "could not be fetched",
    "http://127.0.0.1:1/a b.pth": "could not be fetched",
    f"http://127.0.0.1:1/{'a' * 5000}.pth": "could not be fetched",
    "http://127.0.0.1:1/weights.pth#": "could not be fetched",
    "http://127.0.0.1:1/weights.pth#sha256=": "hexadecimal digits",
    "http://127.0.0.1:1/weights.pth#sha256=0676ba61": "hexadecimal digits",
    f"http://127.0.0.1:1/weights.pth#sha265={SHA256}": "hexadecimal digits",
    f"http://127.0.0.1:1/weights.pth#{SHA256}": "hexadecimal digits",
    f"http://127.0.0.1:1/weights.pth#md5={SHA256[:32]}": "hexadecimal digits",
}


@pytest.mark.parametrize("url", NO_URLS, ids=lambda url: url[:60])
def test_what_is_no_url_of_a_file_is_refused(tmp_path, monkeypatch, url):
    monkeypatch.setenv("AUGFPN_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=NO_URLS[url]):
        find_weights("resnet10t", url)
    assert kept(tmp_path) == []


OUTWARD = [
    "/../../x.pth",
    "/%2e%2e/%2e%2e/x.pth",
    "/..%2f..%2fx.pth",
    "//etc/x.pth",
    "/a//etc/x.pth",
    "/%2fetc%2fx.pth",
]


@pytest.mark.parametrize("path", OUTWARD)
def test_what_a_url_names_is_kept_inside_the_cache(answering, tmp_path, path):
    with pytest.warns(UserWarning, match="could not be verified"):
        found = find_weights("resnet10t", f"{answering(WEIGHTS)}{path}")
    assert found.resolve().is_relative_to(tmp_path / "cache")
