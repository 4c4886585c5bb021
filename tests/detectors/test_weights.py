import hashlib
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from augfpn.detectors.backbone import Backbone
from augfpn.detectors.weights import find_weights
from augfpn.errors import UserError
from augfpn.experiments import plan

IMAGE = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)


def whole(name="resnet10t", seed=1):
    """timm's classifier, random down to the statistics of batch norm."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.uniform_(-0.1, 0.1)
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def assert_starts_from(model, backbone):
    """C5 is what the whole model makes before it classifies."""
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(IMAGE)[-1], model.forward_features(IMAGE))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUGFPN_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def file(tmp_path):
    """Writes what is given to a file."""

    def write(content, name="weights.pth"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return str(path)

    return write


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, the URL that serves it on this machine, and the requests so far."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


def prefixed(state, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def without_counters(state):
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


FORMS = {
    "directly": lambda state: state,
    "under state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "under model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "of a detector of mmcv's": lambda state: {
        "meta": {"mmcv_version": "0.2"},
        "state_dict": OrderedDict(
            prefixed(prefixed(state, "backbone."), "module.") | {"module.neck.lateral.weight": torch.zeros(1)}
        ),
    },
    "of torchvision's detectors": lambda state: {
        "model": prefixed(prefixed(state, "body."), "backbone.") | {"rpn.head.weight": torch.zeros(1)}
    },
    "without counters": without_counters,
    "without classifier": lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
}


@pytest.mark.parametrize("frozen_batch_norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_may_hold_the_weights_in_any_of_the_usual_forms(file, form, frozen_batch_norm):
    model = whole()
    path = file(FORMS[form](model.state_dict()))
    assert_starts_from(model, Backbone("resnet10t", path, 0, frozen_batch_norm))


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv2_100", "convnext_atto", "pvt_v2_b0", "mvitv2_tiny", "tresnet_m"]
)
def test_a_file_of_timms_classifier_fits_its_features(file, name):
    # Of MobileNet-v2 there is more than a classifier to leave out, ConvNeXt's features have other names, MViT's and
    # TResNet's are in wrappers.
    model = timm.create_model(name)
    body = Backbone(name, file(model.state_dict(), "weights.safetensors"), 0, False).body
    given = {key.replace("_", "."): value for key, value in model.state_dict().items()}
    for key, tensor in body.state_dict().items():
        plain = key.removeprefix("model.").replace("_", ".")
        assert torch.equal(tensor, given[plain]), key


def test_torchvisions_own_resnet50_gives_its_features(file):
    torch.manual_seed(2)
    model = torchvision.models.resnet50().eval()
    backbone = Backbone("resnet50", file(model.state_dict()), 1, True).eval()
    with torch.no_grad():
        stage = model.maxpool(model.relu(model.bn1(model.conv1(IMAGE))))
        for layer, found in zip((model.layer1, model.layer2, model.layer3, model.layer4), backbone(IMAGE), strict=True):
            stage = layer(stage)
            torch.testing.assert_close(found, stage)


def test_the_backbone_of_a_trained_detector_can_be_taken(file, small_model):
    detector = small_model("table2/baseline")
    path = file(detector.state_dict(), "model.safetensors")
    backbone = Backbone("resnet10t", path, 0, True)
    expected = without_counters(detector.backbone.state_dict())
    assert expected.keys() == backbone.state_dict().keys()
    assert all(torch.equal(expected[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(("bias", "num_warnings"), [(0.0, 0), (0.5, 1)])
def test_biases_in_front_of_batch_norm_are_left_out_with_a_warning_unless_they_are_zero(file, bias, num_warnings):
    # Files made from Caffe's have them.
    model = whole()
    path = file(model.state_dict() | {"layer1.0.conv1.bias": torch.full((64,), bias)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        backbone = Backbone("resnet10t", path, 0, True)
    assert [str(warning.message) for warning in caught] == [
        f"{path}: 1 biases of which resnet10t has none are left out."
    ] * num_warnings
    assert_starts_from(model, backbone)


def changed(state, **tensors):
    """``state`` with other tensors, by names with ``__`` for dots; None takes one away."""
    others = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    return {key: value for key, value in (dict(state) | others).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer1__0__conv1__weight": None}, r"weights.pth does not .* of resnet10t.*1 missing: layer1.0.conv1.weight"),
        ({"bn2__running_mean": None, "layer1__0__bn1__running_mean": None}, "1 missing: layer1.0.bn1.running_mean"),
        (
            {"layer1__0__conv1__weight": torch.zeros(2, 3)},
            r"1 of another shape: layer1.0.conv1.weight \(2, 3\) rather than \(64, 64, 3, 3\)",
        ),
        ({"layer9__weight": torch.zeros(1)}, "1 unknown: layer9.weight"),
        ({"some_thing": torch.zeros(1), "fc__more": torch.zeros(1)}, "1 unknown: some_thing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_what_is_wrong(file, changes, expected):
    with pytest.raises(UserError, match=expected):
        Backbone("resnet10t", file(changed(whole().state_dict(), **changes)), 0, False)


def test_the_file_of_another_architecture_is_refused_with_the_first_few_of_its_faults(file):
    path = file(whole("resnet10t").state_dict())
    with pytest.raises(
        UserError, match=r"missing: conv1.weight, .* …;.*of another shape: .*Name another file"
    ) as error:
        Backbone("resnet50", path, 0, False)
    assert len(str(error.value)) < 900


class Harmless:
    """Python code, as far as pickle is concerned."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": {"conv1.weight": torch.zeros(1)}, "config": Harmless()}, "would run code.*save its state dict"),
        ([torch.zeros(3)], "holds no state dict.*found list"),
        ({"epoch": 3}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict.*found Tensor"),
    ],
)
def test_a_file_of_something_else_is_refused(file, content, expected):
    with pytest.raises(UserError, match=expected):
        Backbone("resnet10t", file(content), 0, False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_holds_no_weights_at_all_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"weights{suffix} cannot be read as a file of weights"):
        Backbone("resnet10t", str(path), 0, False)


def test_a_file_that_is_cut_short_is_refused(file):
    path = Path(file(whole().state_dict()))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be read"):
        Backbone("resnet10t", str(path), 0, False)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no file of weights nowhere/weights.pth"):
        Backbone("resnet10t", "nowhere/weights.pth", 0, False)


def test_a_url_is_fetched_once_and_kept_by_host_and_path(served, cache):
    folder, url, requests = served
    model = whole()
    (folder / "a").mkdir()
    torch.save(model.state_dict(), folder / "a" / "weights.pth")
    for _ in range(2):
        assert_starts_from(model, Backbone("resnet10t", f"{url}/a/weights.pth", 0, True))
    assert len(requests) == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / "127.0.0.1" / "a" / "weights.pth"]


def test_urls_that_differ_in_their_query_are_different_files(served, cache):
    folder, url, _ = served
    (folder / "uc").write_bytes(b"")
    one, other = (find_weights("resnet10t", f"{url}/uc?id={id}") for id in ("A", "B"))
    assert one != other


@pytest.mark.parametrize("right", [True, False])
def test_a_hash_in_a_files_name_is_that_of_its_content(served, cache, right):
    folder, url, _ = served
    content = b"some weights"
    name = f"weights-{hashlib.sha256(content if right else b'others').hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    if right:
        assert find_weights("resnet10t", f"{url}/{name}").read_bytes() == content
        return
    with pytest.raises(UserError, match=r"could not be fetched \(its SHA-256 is"):
        find_weights("resnet10t", f"{url}/{name}")
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_a_url_that_cannot_be_fetched_is_an_error_that_says_what_to_put_where(served, cache):
    _, url, _ = served
    place = cache / "127.0.0.1" / "absent.pth"
    with pytest.raises(UserError, match=rf"404.*Fetch {url}/absent.pth and put it at {place}\.$"):
        Backbone("resnet10t", f"{url}/absent.pth", 0, False)
    torch.save(whole().state_dict(), place)
    assert_starts_from(whole(), Backbone("resnet10t", f"{url}/absent.pth", 0, False))


def test_a_url_cannot_reach_out_of_the_cache_folder(served, cache):
    folder, url, _ = served
    (folder / "weights.pth").write_bytes(b"")
    assert find_weights("resnet10t", f"{url}/%2e%2e/%2e%2e/weights.pth").is_relative_to(cache)


@pytest.mark.parametrize("url", ["ftp://host/weights.pth", "open-mmlab://resnet50_caffe", "file:///weights.pth"])
def test_other_kinds_of_urls_are_refused(url):
    with pytest.raises(UserError, match="by http and https only"):
        find_weights("resnet10t", url)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)


def test_the_weights_of_a_tag_can_be_put_where_the_error_says(no_network, cache):
    place = cache / "resnet10t.c3_in1k.safetensors"
    with pytest.raises(UserError) as error:
        Backbone("resnet10t", "c3_in1k", 0, False)
    assert str(error.value) == (
        "The weights 'resnet10t.c3_in1k' could not be fetched (ConnectionError). Fetch "
        f"https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors and put it at {place}, or name "
        "a file (weights=, --backbone-weights)."
    )
    cache.mkdir()
    save_file(whole().state_dict(), place)
    assert_starts_from(whole(), Backbone("resnet10t", "c3_in1k", 0, False))


def test_the_weights_of_a_tag_are_otherwise_hugging_faces(monkeypatch, file):
    asked = []

    def download(*arguments):
        asked.append(arguments)
        return file(whole().state_dict(), "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_starts_from(whole(), Backbone("resnet10t", "c3_in1k", 0, False))
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("resnext101_64x4d", "tv_in1", "did you mean 'tv_in1k'.*c1_in1k, gluon_in1k, tv_in1k.*--backbone-weights"),
        ("resnext101_32x4d", "tv_in1k", "Valid: .*gluon_in1k"),
        ("resnet50", "tv_in1k2", "did you mean 'tv_in1k'"),
    ],
)
def test_a_tag_that_timm_does_not_have_is_refused_with_those_that_it_has(no_network, name, tag, expected):
    with pytest.raises(UserError, match=expected):
        find_weights(name, tag)


@pytest.mark.parametrize("tag", ["tv_in1k", "gluon_in1k", "ra_in1k"])
def test_the_papers_backbones_have_the_weights_that_are_said(no_network, tag):
    names = {
        "tv_in1k": ("resnet50", "resnet101", "resnext101_64x4d"),
        "gluon_in1k": ("resnext101_32x4d",),
        "ra_in1k": ("mobilenetv2_100",),
    }
    for name in names[tag]:
        with pytest.raises(UserError, match=f"huggingface.co/timm/{name}.{tag}/"):
            find_weights(name, tag)


def test_a_run_can_start_from_other_weights_at_any_scale(file, monkeypatch, tmp_path):
    path = file(whole().state_dict())
    monkeypatch.chdir(tmp_path)
    for scale in ("smoke", "paper"):
        config = plan("table2/cs", scale, data="somewhere", backbone_weights="weights.pth")
        # Absolute, so that the run can be resumed from anywhere.
        assert config.model.backbone.weights == path
        assert (
            plan("table2/cs", scale, data="somewhere", backbone_weights="a1_in1k").model.backbone.weights == "a1_in1k"
        )


def test_a_run_starts_from_the_weights_that_are_named(file):
    from augfpn.engine.runs import build_model

    model = build_model(plan("table2/cs", "smoke", backbone_weights=file(whole().state_dict())), 6, pretrained=True)
    assert_starts_from(whole(), model.backbone)


def test_what_is_saved_is_what_is_loaded(file):
    path = file(whole().state_dict(), "weights.safetensors")
    given, loaded = load_file(path), Backbone("resnet10t", path, 0, False).body.state_dict()
    assert all(torch.equal(loaded[key], given[key]) for key in loaded)


def test_the_command_refuses_weights_that_do_not_fit_before_it_makes_a_run(file, tmp_path):
    path, out = file(whole("resnet18").state_dict()), tmp_path / "run"
    command = ["train", "table2/baseline", "--scale", "smoke", "--out", str(out), "--backbone-weights", path]
    done = subprocess.run([sys.executable, "-m", "augfpn", *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {path} does not hold the weights of resnet10t" in done.stderr
    assert not (out / "run.json").exists()


def test_default_stands_for_the_papers_tag_or_timms(no_network, cache):
    for name, tag in (("resnet50", "tv_in1k"), ("mobilenetv2_100", "ra_in1k")):
        kept = cache / f"{name}.{tag}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"")
        assert find_weights(name, "default") == kept
