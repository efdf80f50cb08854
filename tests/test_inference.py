"""imprint.inference and `imprint composite`: what comes out, what stays as it was, and what bad input gets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from imprint.cli import app
from imprint.core.errors import InputError
from imprint.core.files import compute_path_digest
from imprint.core.geometry import Box
from imprint.core.masks import fill_box
from imprint.core.pixels import load_image, save_image
from imprint.inference.composer import Compositor
from imprint.inference.inputs import Request
from imprint.inference.loading import load_compositor
from imprint.models import PRESETS, ImprintModel, build_model, save_model
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store
from tests.evaluation_cases import draw_case

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"steps": 2, "guidance": 2.0}


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    """Random weights in the last layer too, so that the output depends on everything."""
    torch.set_num_threads(1)
    built = build_model(PRESETS["tiny"], seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(built.unet.conv_out.weight, std=0.05, generator=generator)
    torch.nn.init.normal_(built.adapter.level_embedding.weight, generator=generator)
    return built


@pytest.fixture(scope="module")
def compositor(model: ImprintModel) -> Compositor:
    return Compositor(model)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model: ImprintModel) -> Path:
    """A folder with params.yaml, a saved compositor and pictures."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    save_model(model, root / "models" / "compositor", stage="train_compositor", extra={})
    case = draw_case(0, 96)
    pictures = {
        "object.png": case["reference"],
        "background.png": case["plate"],
        "mask.png": case["hole_box"],
        "transparent.png": case["reference"] * np.array([1, 1, 1, 0], np.uint8),
        "empty.png": np.zeros((96, 96), bool),
        "white.png": np.ones((96, 96), bool),
        "small.png": np.ones((8, 9), bool),
    }
    for name, picture in pictures.items():
        save_image(root / name, picture)
    (root / "text.png").write_text("no picture")
    return root


def build_request(height_px: int, width_px: int, place: Box, **changes: object) -> Request:
    background = np.random.default_rng(1).integers(0, 256, (height_px, width_px, 3)).astype(np.uint8)
    request = {
        "object_rgba": draw_case(1, 48)["reference"],
        "background": background,
        "hole": fill_box(place, (height_px, width_px)),
    }
    return Request(**{**request, **changes})  # pyright: ignore[reportArgumentType]


# --- the compositor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size_hw", "hole"),
    [
        ((64, 64), Box(20, 20, 50, 44)),  # the model's own size
        ((150, 230), Box(60, 180, 110, 230)),  # larger, at the border
        ((150, 230), Box(0, 10, 150, 200)),  # a hole wider than the largest square inside
        ((40, 30), Box(5, 5, 20, 20)),  # smaller than the model
        ((400, 90), Box(390, 3, 397, 9)),  # tall, with a hole of a few pixels
    ],
)
def test_only_the_hole_changes_and_the_size_stays(compositor: Compositor, size_hw: tuple[int, int], hole: Box) -> None:
    request = build_request(*size_hw, hole)
    result = compositor.composite(request.object_rgba, request.background, request.hole, **SETTINGS)
    assert result.dtype == np.uint8
    assert result.shape == request.background.shape
    np.testing.assert_array_equal(result[~request.hole], request.background[~request.hole])
    changed = (result != request.background).any(axis=-1)
    assert changed[request.hole].mean() > 0.9


def test_a_pixel_that_changed_outside_is_told_without_asserts_too() -> None:
    code = (
        "import numpy as np; from imprint.core.prepare import check_outside\n"
        "hole = np.zeros((4, 4), bool); hole[1:3, 1:3] = True\n"
        "before = np.zeros((4, 4, 3), np.uint8); after = before.copy()\n"
        "after[1, 1] = 9; check_outside(after, before, hole)\n"
        "after[0, 0, 2] = 1; check_outside(after, before, hole)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: 1 pixels outside the hole changed")


def test_a_result_depends_on_its_request_and_not_on_its_batch(compositor: Compositor) -> None:
    requests = [build_request(80, 100, Box(20, 20 + 10 * seed, 60, 60 + 10 * seed), seed=seed) for seed in range(3)]
    together = compositor.composite_batch(requests, **SETTINGS)
    for request, expected in zip(requests, [made.picture for made in together], strict=True):
        alone = compositor.composite_batch([request], **SETTINGS)[0].picture
        np.testing.assert_allclose(alone.astype(int), expected, atol=1)


@pytest.mark.parametrize("change", [{"seed": 1}, {"level": "exact"}, {"object_rgba": draw_case(3, 48)["reference"]}])
def test_seed_level_and_object_matter(compositor: Compositor, change: dict) -> None:
    first, again, other = (
        compositor.composite_batch([build_request(64, 64, Box(16, 16, 48, 48), **extra)], **SETTINGS)[0].picture
        for extra in ({}, {}, change)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_pixels_inside_the_hole_do_not_matter(compositor: Compositor) -> None:
    first = build_request(64, 64, Box(16, 16, 48, 48))
    background = np.where(first.hole[..., None], 255 - first.background, first.background)
    second = build_request(64, 64, Box(16, 16, 48, 48), background=background)
    results = [compositor.composite_batch([request], **SETTINGS)[0].picture for request in (first, second)]
    inner = (slice(20, 44), slice(20, 44))  # the feather at the rim blends the background in
    np.testing.assert_array_equal(results[0][inner], results[1][inner])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hole": np.zeros((64, 64), bool)}, "is empty"),
        ({"hole": np.ones((64, 64), bool)}, "all white"),
        ({"hole": np.ones((10, 64), bool)}, "64 x 10 px but the background 64 x 64"),
        ({"object_rgba": np.zeros((9, 9, 4), np.uint8)}, "no pixels"),
    ],
)
def test_unusable_requests_are_input_errors(compositor: Compositor, change: dict, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        compositor.composite_batch([build_request(64, 64, Box(16, 16, 48, 48), **change)], **SETTINGS)


def test_a_hole_too_thin_for_the_model_is_an_input_error(compositor: Compositor) -> None:
    request = build_request(500, 500, Box(100, 20, 101, 480))
    with pytest.raises(InputError, match="too thin"):
        compositor.composite_batch([request], **SETTINGS)


# --- the command ----------------------------------------------------------------------------------------------------


ABOUT = {"model": "models/compositor", "view": 1, "shadow_reach": 0.0, "outside_unchanged": True}


def run_composite(project: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> tuple[int, str]:
    """Exit code and standard error of `imprint composite` in the project's folder."""
    options = {"object": "object.png", "background": "background.png", "mask": "mask.png", "output": "out.png"}
    options |= {"steps": "2", **{name.replace("_", "-"): value for name, value in changes.items()}}
    monkeypatch.chdir(project)
    result = CliRunner().invoke(app, ["composite", *(part for n, v in options.items() for part in (f"--{n}", v))])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def test_the_command_writes_the_composite(project: Path, monkeypatch: pytest.MonkeyPatch, model: ImprintModel) -> None:
    assert run_composite(project, monkeypatch, mask_level="coarse", seed="3") == (0, "")
    pictures = {name: load_image(project / f"{name}.png") for name in ("object", "background", "mask", "out")}
    hole = pictures["mask"][..., 0] > 127
    expected = Compositor(model).composite(
        pictures["object"], pictures["background"], hole, level="coarse", steps=2, seed=3
    )
    np.testing.assert_array_equal(pictures["out"], expected)
    with Image.open(project / "out.png") as picture:
        about = json.loads(picture.info["imprint"])
    assert about == {**ABOUT, "level": "coarse", "seed": 3, "steps": 2}
    (project / "out.png").unlink()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"object": "absent.png"}, r"object absent\.png cannot be read .*check the path"),
        ({"background": "text.png"}, r"background text\.png is not a readable image; give a PNG"),
        ({"mask": "absent.png"}, r"mask absent\.png cannot be read"),
        ({"mask": "empty.png"}, r"mask empty\.png is empty; paint white"),
        ({"mask": "white.png"}, r"mask white\.png is all white; leave black"),
        ({"mask": "small.png"}, r"mask small\.png is 9 x 8 px but the background 96 x 96 px; give a mask"),
        ({"object": "transparent.png"}, r"object transparent\.png has no pixels.*give another"),
        ({"model": "absent"}, r"absent"),
        ({"output": "out.jpg"}, r"output out\.jpg is no \.png"),
        ({"output": "absent/out.png"}, r"output absent/out\.png cannot be written"),
        ({"mask_level": "boks"}, r"--mask-level boks is unknown; use one of exact, soft"),
        ({"steps": "0"}, r"--steps, --guidance and --draws must be at least 1"),
    ],
)
def test_bad_input_gets_one_line_and_no_output(
    project: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, fault: str
) -> None:
    code, text = run_composite(project, monkeypatch, **changes)
    assert code == 2
    assert text.startswith("composite: ")
    assert text.count("\n") == 1
    assert re.search(fault, text), text
    assert not list(project.glob("*out.*"))


def test_an_object_without_alpha_is_segmented(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(0, 128)
    save_image(project / "photo.png", case["truth"])
    assert run_composite(project, monkeypatch, object="photo.png") == (0, "")
    (project / "out.png").unlink()


def test_checks_come_before_torch_is_loaded(project: Path) -> None:
    script = (
        "import sys\nfrom imprint.cli import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    assert not {'torch', 'mlflow', 'rembg'} & set(sys.modules)"
    )
    options = ["--object", "object.png", "--background", "background.png", "--mask", "empty.png", "--output", "out.png"]
    done = subprocess.run(
        [sys.executable, "-c", script, "composite", *options],
        cwd=project,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["composite: mask empty.png is empty; paint white where the object goes"],
    )


# --- the registry ---------------------------------------------------------------------------------------------------


def test_a_registered_model_is_found_by_its_alias(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client, _ = open_store(project)
    client.create_registered_model("imprint-compositor")
    tags = {DIGEST_TAG: compute_path_digest(project / "models" / "compositor")}
    client.create_model_version("imprint-compositor", source=(project / "models").as_uri(), tags=tags)
    client.set_registered_model_alias("imprint-compositor", "champion", "1")
    request = build_request(64, 64, Box(16, 16, 48, 48))
    registered = load_compositor("models:/imprint-compositor@champion", project)
    local = load_compositor("models/compositor", project)
    results = [loaded.composite_batch([request], **SETTINGS)[0].picture for loaded in (registered, local)]
    np.testing.assert_array_equal(*results)
    for uri, fault in {
        "@absent": "is not in sqlite.*make demo",
        "/9": "is not in sqlite",
        "": "write models:/name@",
    }.items():
        with pytest.raises(InputError, match=f"--model models:/imprint-compositor{uri}.* {fault}"):
            load_compositor(f"models:/imprint-compositor{uri}", project)
