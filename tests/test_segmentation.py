"""Segmentation: the shipped network, files and names of other networks, and what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.core.errors import InputError
from imprint.core.params import SegmentObjects, load_params
from imprint.segmentation import build_session, segment_image
from imprint.segmentation.networks import (
    FAMILIES,
    SHIPPED_NAME,
    SHIPPED_PATH,
    find_family,
    find_network,
    identify,
)

PARAMS = load_params(Path(__file__).parents[1] / "params.yaml").segment_objects


def with_model(model: object, **changes: object) -> SegmentObjects:
    return PARAMS.model_copy(update={"model": str(model), **changes})


@pytest.fixture(scope="module")
def session():
    return build_session(with_model(SHIPPED_NAME))


def draw_scene(height: int = 160, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A striped can with a soft shadow on a grey floor before a wall, and its exact mask."""
    rng = np.random.default_rng(3)
    image = np.full((height, width, 3), (150, 150, 160), np.float32)
    image[height * 6 // 10 :] = (105, 98, 90)
    x0, x1, y0, y1 = width * 35 // 100, width * 65 // 100, height * 25 // 100, height * 80 // 100
    shadow = cv2.ellipse(np.zeros((height, width), np.float32), (x1, y1), (width // 5, height // 25), 0, 0, 360, 1, -1)
    image *= 1 - 0.4 * cv2.GaussianBlur(shadow, (0, 0), 4)[..., None]
    mask = np.zeros((height, width), np.uint8)
    cv2.rectangle(mask, (x0, y0), (x1 - 1, y1 - 1), 1, -1)
    for y in (y0, y1 - 1):
        cv2.ellipse(mask, ((x0 + x1) // 2, y), ((x1 - x0) // 2, height // 30), 0, 0, 360, 1, -1)
    stripes = np.where((np.arange(height) // (height // 10) % 2)[:, None, None], (200, 40, 40), (240, 220, 60))
    shade = np.cos((np.arange(width) - (x0 + x1) / 2) / (x1 - x0) * 1.8)[None, :, None] * 0.5 + 0.5
    image = np.where(mask[..., None] > 0, stripes * shade, image) + rng.normal(0, 3, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8), mask > 0


def compute_iou(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def test_shipped_file_is_small():
    assert SHIPPED_PATH.stat().st_size <= 1_500_000


@pytest.mark.parametrize("size_hw", [(128, 128), (160, 160), (240, 420), (300, 200)])
def test_shipped_network_finds_a_plain_object(session, size_hw):
    image, truth = draw_scene(*size_hw)
    scores = session.predict([image])[0]
    assert scores.shape == size_hw
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert compute_iou(scores >= 0.5, truth) > 0.85


def test_shipped_network_needs_no_socket(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    image, truth = draw_scene()
    fresh = build_session(with_model(SHIPPED_NAME), threads=2)
    assert compute_iou(segment_image(image, fresh), truth) > 0.85


def test_batches_of_mixed_sizes_equal_single_pictures(session):
    images = [draw_scene(height, width)[0] for height, width in [(128, 128), (90, 200), (250, 100)] * 7]
    assert len(images) > session.batch_size
    together = session.predict(images)
    for image, scores in zip(images, together, strict=True):
        np.testing.assert_allclose(scores, session.predict([image])[0], atol=1e-5)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_picture_has_no_object(session, value):
    image = np.full((96, 140, 3), value, np.uint8)
    scores = session.predict([image])[0]
    assert np.isfinite(scores).all()
    assert (scores >= 0.5).mean() < 0.01
    assert segment_image(image, session).mean() < 0.01


def test_no_pictures_give_no_scores(session):
    assert session.predict([]) == []


def test_segment_image_is_the_thresholded_score(session):
    image, _ = draw_scene(150, 210)
    mask = segment_image(image, session)
    assert mask.dtype == bool
    scores = session.predict([image])[0]
    assert np.array_equal(mask, np.rint(scores * 255) >= PARAMS.threshold * 255)


def test_one_session_per_process_and_model():
    first = build_session(with_model(SHIPPED_NAME))
    again = build_session(with_model(SHIPPED_NAME, threshold=0.7))
    assert first.rembg_session is again.rembg_session
    assert again.threshold == 0.7
    assert build_session(with_model(SHIPPED_PATH)).rembg_session is not first.rembg_session


def test_import_is_light():
    code = "import sys, imprint.segmentation; print({'rembg', 'onnxruntime', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_own_file_gives_the_same_scores_as_by_name(session, tmp_path):
    path = tmp_path / "mine.onnx"
    path.write_bytes(SHIPPED_PATH.read_bytes())
    image, _ = draw_scene()
    np.testing.assert_array_equal(build_session(with_model(path)).predict([image])[0], session.predict([image])[0])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("withoutbg", "remote service"),
        ("atlascloud", "remote service"),
        ("bria-rmbg", "allow_noncommercial"),
        ("sam", "prompt"),
        ("u2net_custom", "path of an ONNX file"),
        ("no-such-model", "unknown model 'no-such-model'"),
        ("some/where/net.onnx", "there is no file some/where/net.onnx"),
    ],
)
def test_refusals_are_one_line_that_names_the_setting(model, words):
    with pytest.raises(InputError) as caught:
        build_session(with_model(model))
    message = str(caught.value)
    assert words in message
    assert "segment_objects.model" in message
    assert "\n" not in message


def test_every_rembg_model_is_known_or_refused():
    from rembg.sessions import sessions

    from imprint.segmentation.networks import REFUSED, REMBG_NETWORKS

    assert set(sessions) == set(REMBG_NETWORKS) | set(REFUSED)
    assert all(name in REFUSED for name, kind in sessions.items() if not kind.is_local())


@pytest.mark.parametrize("model", ["u2netp", "bria-rmbg"])
def test_weights_that_cannot_be_had_are_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError) as caught:
        build_session(with_model(model, allow_noncommercial=True))
    message = str(caught.value)
    assert "\n" not in message
    assert f"put {model}.onnx into {tmp_path}" in message
    assert "segment_objects.model" in message


def test_named_model_uses_weights_that_are_there(tmp_path, monkeypatch, session):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    folder = tmp_path / "models" / "silueta"
    folder.mkdir(parents=True)
    (folder / "silueta.onnx").write_bytes(SHIPPED_PATH.read_bytes())
    image, _ = draw_scene()
    np.testing.assert_array_equal(build_session(with_model("silueta")).predict([image])[0], session.predict([image])[0])


def test_broken_file_is_one_line(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match=r"broken\.onnx is no usable ONNX file") as caught:
        build_session(with_model(path))
    assert "\n" not in str(caught.value)


# A network whose score is a picture's mean normalised colour, written as ONNX's protobuf wire format.


def encode_field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    data = value.encode() if isinstance(value, str) else value
    return encode_varint(number << 3 | 2) + encode_varint(len(data)) + data


def encode_varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + encode_varint(value >> 7)


def encode_tensor_type(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(encode_field(1, encode_field(1 if isinstance(d, int) else 2, d)) for d in shape)
    kind = encode_field(1, encode_field(1, 1) + encode_field(2, dims))
    return encode_field(1, name) + encode_field(2, kind)


def write_mean_network(path: Path, shape: tuple[int | str, ...], *, sigmoid: bool, flat: bool = False) -> Path:
    axes = encode_field(1, "axes") + encode_field(8, 1) + encode_field(20, 7)
    mean = encode_field(1, "image") + encode_field(2, "mean") + encode_field(4, "ReduceMean") + encode_field(5, axes)
    last = encode_field(1, "mean") + encode_field(2, "score") + encode_field(4, "Sigmoid" if sigmoid else "Identity")
    if flat:  # the softmax over one channel is one
        axis = encode_field(1, "axis") + encode_field(3, 1) + encode_field(20, 2)
        last = encode_field(1, "mean") + encode_field(2, "score") + encode_field(4, "Softmax") + encode_field(5, axis)
    graph = encode_field(1, mean) + encode_field(1, last) + encode_field(2, "mean")
    graph += encode_field(11, encode_tensor_type("image", shape))
    graph += encode_field(12, encode_tensor_type("score", (shape[0], 1, *shape[2:])))
    path.write_bytes(encode_field(1, 8) + encode_field(7, graph) + encode_field(8, encode_field(2, 17)))
    return path


@pytest.mark.parametrize("shape", [("b", 3, "h", "w"), (1, 3, 64, 64), ("b", 3, 48, 80)])
def test_logits_and_probabilities_of_own_files_are_told_apart(shape, tmp_path):
    images = [draw_scene(100, 140)[0], draw_scene(70, 70)[0]]
    logits = build_session(with_model(write_mean_network(tmp_path / "logits.onnx", shape, sigmoid=False)))
    probabilities = build_session(with_model(write_mean_network(tmp_path / "scores.onnx", shape, sigmoid=True)))
    assert logits.rembg_session.logits
    assert not probabilities.rembg_session.logits
    for a, b, image in zip(logits.predict(images), probabilities.predict(images), images, strict=True):
        assert a.shape == image.shape[:2]
        np.testing.assert_allclose(a, b, atol=1e-5)


def write_settings(path: Path, text: str) -> Path:
    path.with_suffix(".json").write_text(text)
    return path


@pytest.mark.parametrize("name", ["isnet-general-use", "isnet-anime", "birefnet-general", "u2netp"])
def test_a_file_is_fed_as_the_same_weights_by_name(name, tmp_path, monkeypatch, capsys):
    """By its own name, by its family's and by its settings; before, all were fed as U2-Net."""
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "home"))
    is_sigmoid = not name.startswith("birefnet")
    weights = write_mean_network(tmp_path / f"{name}.onnx", ("b", 3, 64, 64), sigmoid=is_sigmoid)
    home = tmp_path / f"home/models/{name}"
    home.mkdir(parents=True)
    (home / f"{name}.onnx").write_bytes(weights.read_bytes())
    image, _ = draw_scene()
    expected = build_session(with_model(name)).predict([image])[0]
    family = find_family(weights) or "none"
    settings = FAMILIES[family]
    renamed = [tmp_path / f"{family}-mine.onnx", *(tmp_path / f"{number}.onnx" for number in range(2))]
    for path in renamed:
        path.write_bytes(weights.read_bytes())
    write_settings(renamed[1], json.dumps({"family": family}))
    write_settings(renamed[2], json.dumps({"mean": settings.mean, "std": settings.std}))
    for path in (weights, *renamed):
        np.testing.assert_allclose(build_session(with_model(path)).predict([image])[0], expected, atol=1e-5)
    assert capsys.readouterr().err == ""


def test_a_file_that_nothing_is_known_of_is_told(tmp_path, capsys):
    path = write_mean_network(tmp_path / "mine.onnx", ("b", 3, 64, 64), sigmoid=True)
    build_session(with_model(path))
    told = capsys.readouterr().err
    assert "mine.onnx is fed as U2-Net is (mean (0.485" in told
    assert "say so in mine.json beside it" in told
    assert told.count("\n") == 1


def test_settings_of_a_file_are_checked_and_part_of_what_masks_depend_on(tmp_path):
    path = write_mean_network(tmp_path / "mine.onnx", ("b", 3, "h", "w"), sigmoid=True)
    before = identify(str(path))
    assert identify(SHIPPED_NAME) == SHIPPED_NAME
    write_settings(path, '{"family": "isnet", "size_px": 96, "logits": true}')
    network = find_network(str(path), allow_noncommercial=False)
    assert (network.size_px, network.mean, network.logits) == (96, (0.5, 0.5, 0.5), True)
    assert build_session(with_model(path)).rembg_session.size_hw == (96, 96)
    assert identify(str(path)) != before
    unknown, other = '{"familly": "isnet"}', '{"family": "x"}'
    faults = {unknown: "mine.json: familly: unknown key", other: "mine.json: family", "{": "mine.json cannot be read"}
    for text, fault in faults.items():
        with pytest.raises(InputError, match=fault):
            build_session(with_model(write_settings(path, text)))


def test_a_file_that_answers_the_same_for_everything_is_refused(tmp_path):
    path = write_mean_network(tmp_path / "u2net-broken.onnx", ("b", 3, 64, 64), sigmoid=False, flat=True)
    with pytest.raises(InputError, match=r"u2net-broken.onnx answers the same whatever it is shown .* set segment_obj"):
        build_session(with_model(path))


@pytest.mark.parametrize(
    ("shape", "words"), [(("b", 1, 64, 64), r"not \[batch, 3"), ((4, 3, 64, 64), "4 pictures at once")]
)
def test_networks_of_other_inputs_are_refused(shape, words, tmp_path):
    with pytest.raises(InputError, match=words):
        build_session(with_model(write_mean_network(tmp_path / "other.onnx", shape, sigmoid=True)))
