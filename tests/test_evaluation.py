"""imprint.evaluation: cases, measures, baselines, retrieval, intervals, protocol, table and page."""

from __future__ import annotations

import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flows.gate import Candidate, Measurement, decide, load_rules
from flows.measurements import load_measurement
from imprint.core import files
from imprint.core.errors import InputError
from imprint.core.geometry import Box
from imprint.core.masks import MASK_LEVELS, fill_box
from imprint.core.params import Evaluate, load_params
from imprint.evaluation import measures, summary
from imprint.evaluation.baselines import clone_object, paste_object, place_object
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.cases import CaseSet, load_cases
from imprint.evaluation.composites import METHODS, Composites
from imprint.evaluation.curves import draw_curves, load_curves
from imprint.evaluation.identity import compute_descriptor, find_nearest
from imprint.evaluation.protocol import build_protocol, load_metrics, require_same_protocol
from imprint.evaluation.report import write_report
from imprint.evaluation.table import print_table
from tests.evaluation_cases import write_cases

ROOT = Path(__file__).resolve().parents[1]
LEVELS = list(MASK_LEVELS)


@pytest.fixture(scope="module")
def section() -> Evaluate:
    settings = {"bootstrap_samples": 200, "grid_rows": 3, "levels": LEVELS}
    return load_params(ROOT / "params.yaml").evaluate.model_copy(update=settings)


@pytest.fixture(scope="module")
def case_set(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    return load_cases(write_cases(tmp_path_factory.mktemp("cases") / "cases.tar", 6), LEVELS, 48)


@pytest.fixture(scope="module")
def composites(case_set: CaseSet) -> Composites:
    """The truth inside each hole stands for the model's pictures: the best that a method can do."""
    return {
        level: {
            "ours": [np.where(case.holes[level][..., None], case.truth, case.plate) for case in case_set.cases],
            "paste": [paste_object(case.reference, case.plate, case.holes[level]) for case in case_set.cases],
            "poisson": [clone_object(case.reference, case.plate, case.holes[level]) for case in case_set.cases],
        }
        for level in MASK_LEVELS
    }


@pytest.fixture(scope="module")
def rows(case_set: CaseSet, composites: Composites) -> list[summary.Row]:
    return summary.measure_all(case_set.cases, composites)


@pytest.fixture(scope="module")
def metrics(case_set: CaseSet, section: Evaluate, rows: list[summary.Row]) -> dict:
    loss = {"num_pairs": 4, "right_loss": 0.1, "shuffled_loss": 0.2, "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15}
    return {
        "protocol": build_protocol(section, case_set.digest, len(case_set.cases)),
        "model": "0123456789ab",
        "identity": summary.summarise_identity(case_set.cases),
        "held_out": {"protocol": "ab", "pretrain_encoder": loss, "train_compositor": loss},
        **summary.summarise_rows(rows, section),
    }


# --- cases ----------------------------------------------------------------------------------------------------------


def test_cases_come_in_order_with_disjoint_masks_inside_the_holes(case_set: CaseSet) -> None:
    assert [case.name for case in case_set.cases] == [f"case_{number:03d}" for number in range(6)]
    for case in case_set.cases:
        assert not (case.object_mask & case.shadow_mask).any()
        assert all((case.holes[level] | ~case.object_mask).all() for level in LEVELS)


def test_the_digest_covers_exactly_the_pictures_that_are_used(tmp_path: Path, case_set: CaseSet) -> None:
    more, fewer = write_cases(tmp_path / "more.tar", 7), write_cases(tmp_path / "fewer.tar", 6)
    assert load_cases(more, LEVELS, 6).digest == load_cases(fewer, LEVELS, 48).digest == case_set.digest
    others = {load_cases(more, LEVELS, 7).digest, load_cases(more, ["box"], 6).digest, case_set.digest}
    assert len(others) == 3


def test_bad_archives_are_input_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no archive")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    complete = write_cases(tmp_path / "complete.tar", 1)
    with tarfile.open(complete) as archive, tarfile.open(tmp_path / "partial.tar", "w") as partial:
        for member in archive.getmembers():
            if not member.name.endswith("plate.png"):
                partial.addfile(member, archive.extractfile(member))
    faults = {
        "absent": "cannot be read",
        "text": "no tar",
        "empty": "no cases",
        "partial": r"case_000 has no plate\.png",
    }
    for name, fault in faults.items():
        with pytest.raises(InputError, match=rf"{name}\.tar.*{fault}"):
            load_cases(tmp_path / f"{name}.tar", LEVELS, 48)


# --- measures -------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_the_closed_form() -> None:
    truth = np.full((8, 8, 3), 100, np.uint8)
    region = fill_box(Box(2, 2, 6, 6), (8, 8))
    image = np.where(region[..., None], truth + np.uint8(10), np.uint8(0))  # what lies outside must not count
    assert measures.compute_psnr_db(image, truth, region) == pytest.approx(20 * np.log10(255 / 10))
    assert measures.compute_psnr_db(truth, truth, region) == pytest.approx(measures.MAX_PSNR_DB)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    noisy = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    assert measures.compute_ssim_map(truth, truth) == pytest.approx(np.ones((48, 48)))
    assert 0.5 < measures.compute_ssim_map(noisy, truth).mean() < 0.98


def test_regions_are_inside_the_hole_and_small_ones_do_not_apply(case_set: CaseSet) -> None:
    case = case_set.cases[0]
    exact = measures.measure_composite(np.where(case.object_mask[..., None], case.truth, case.plate), case, "exact")
    assert exact["object_psnr_db"] == measures.MAX_PSNR_DB
    assert exact["shadow_psnr_db"] is exact["surround_ssim"] is None
    assert exact["shape_iou"] == pytest.approx(1.0, abs=0.1)
    box = measures.compute_regions(case, "box")
    assert (box["object"] | box["surround"]).sum() == case.holes["box"].sum()
    assert not (box["shadow"] & ~box["surround"]).any()


def test_a_changed_pixel_outside_the_hole_is_counted(case_set: CaseSet) -> None:
    case = case_set.cases[0]
    image = np.where(case.holes["box"][..., None], case.truth, case.plate)
    image[0, 0, 0] ^= 1
    share = 1 / (~case.holes["box"]).sum()
    assert measures.check_composite(image, case, "box") == {"outside_changed": pytest.approx(share), "failed": 0.0}


@pytest.mark.parametrize("fault", ["plate", "flat", "NaN"])
def test_a_hole_that_shows_nothing_is_a_failure(case_set: CaseSet, fault: str) -> None:
    for case in case_set.cases:
        for level, hole in case.holes.items():
            image = case.plate.copy()
            if fault != "plate":
                image[hole] = 0 if fault == "NaN" else np.random.default_rng(0).integers(90, 93, 3)
            assert measures.check_composite(image, case, level)["failed"] == 1.0
            assert measures.check_composite(case.truth, case, level)["failed"] == 0.0


# --- baselines ------------------------------------------------------------------------------------------------------


def test_both_baselines_leave_the_outside_alone_and_show_the_object(case_set: CaseSet) -> None:
    for case in case_set.cases:
        for level, hole in case.holes.items():
            for compose in (paste_object, clone_object):
                image = compose(case.reference, case.plate, hole)
                np.testing.assert_array_equal(image[~hole], case.plate[~hole])
                assert measures.compute_shape_iou(image, case) > 0.2, (case.name, level, compose)


def test_a_placed_object_fits_the_holes_box_and_keeps_its_shape() -> None:
    reference = np.zeros((50, 50, 4), np.uint8)
    reference[10:20, 5:45] = 200, 100, 50, 255  # 40 x 10
    placed = place_object(reference, fill_box(Box(10, 8, 40, 28), (64, 64)))
    rows, cols = np.nonzero(placed[..., 3])
    assert (cols.min(), cols.max()) == (8, 27)
    assert (rows.min(), rows.max()) == (22, 26)
    np.testing.assert_array_equal(placed[24, 18], [200, 100, 50, 255])


def test_pasting_the_true_view_gives_the_truth(case_set: CaseSet) -> None:
    for case in case_set.cases:
        true_view = np.dstack([case.truth, case.object_mask.astype(np.uint8) * 255])
        pasted = paste_object(true_view, case.plate, case.holes["exact"])
        np.testing.assert_array_equal(pasted[case.object_mask], case.truth[case.object_mask])


def test_poisson_of_a_constant_object_takes_the_plates_colour() -> None:
    plate = np.full((64, 64, 3), 90, np.uint8)
    reference = np.full((32, 32, 4), 255, np.uint8)  # no gradients inside: nothing but the rim's values remains
    image = clone_object(reference, plate, fill_box(Box(16, 16, 48, 48), (64, 64)))
    np.testing.assert_allclose(image.astype(int), plate, atol=2)


def test_a_hole_at_the_border_is_cloned_too() -> None:
    plate = np.full((64, 64, 3), 90, np.uint8)
    reference = np.random.default_rng(0).integers(0, 256, (32, 32, 4)).astype(np.uint8) | np.uint8([0, 0, 0, 255])
    hole = fill_box(Box(32, 32, 64, 64), (64, 64))
    image = clone_object(reference, plate, hole)
    assert image[hole].std() > 20


# --- identity -------------------------------------------------------------------------------------------------------


def test_retrieval_finds_another_view_of_the_same_object(case_set: CaseSet) -> None:
    identity = summary.summarise_identity(case_set.cases)
    assert identity == {"ceiling_top1": 1.0, "chance_top1": pytest.approx(1 / 6)}


def test_the_descriptor_ignores_the_background_and_the_size(case_set: CaseSet) -> None:
    cases = case_set.cases
    gallery = [compute_descriptor(case.truth, case.object_mask) for case in cases]
    for number, case in enumerate(cases):
        elsewhere = np.where(case.object_mask[..., None], case.truth, np.uint8(7))
        larger = elsewhere.repeat(2, axis=0).repeat(2, axis=1)
        moved = compute_descriptor(larger, case.object_mask.repeat(2, axis=0).repeat(2, axis=1))
        assert find_nearest([moved], gallery)[0] == number
        np.testing.assert_allclose(compute_descriptor(elsewhere, case.object_mask), gallery[number])


# --- intervals and summary ------------------------------------------------------------------------------------------


def test_the_bootstrap_interval_matches_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = compute_interval(values, samples=4000, seed=0)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_dependent_values_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(0, 1, 20).repeat(50)
    alone = compute_interval(values, samples=1000, seed=0)
    together = compute_interval(values, list(np.arange(20).repeat(50)), samples=1000, seed=0)
    assert together[1] - together[0] == pytest.approx(np.sqrt(50) * (alone[1] - alone[0]), rel=0.15)


def test_means_leave_out_what_does_not_apply(metrics: dict, rows: list[summary.Row]) -> None:
    assert set(metrics["levels"]) == set(LEVELS)
    exact, box = metrics["levels"]["exact"]["ours"], metrics["levels"]["box"]["ours"]
    assert exact["shadow_ssim"] is None
    assert exact["object_psnr_db"] == box["object_psnr_db"] == measures.MAX_PSNR_DB
    assert (box["shadow_psnr_db"], box["surround_ssim"], box["identity_top1"]) == (measures.MAX_PSNR_DB, 1.0, 1.0)
    chosen = [row.values["object_ssim"] for row in rows if (row.level, row.method) == ("box", "paste")]
    assert metrics["levels"]["box"]["paste"]["object_ssim"] == pytest.approx(np.mean(chosen), abs=1e-4)
    low, high = metrics["intervals"]["box"]["paste"]["object_ssim"]
    assert low < np.mean(chosen) < high


def test_flat_names_hold_the_numbers_alone(metrics: dict) -> None:
    flat = summary.flatten_metrics(metrics)
    assert flat["levels.box.ours.object_ssim"] == 1.0
    assert flat["held_out.train_compositor.gain"] == 0.1
    assert not any(name.startswith("intervals") or name.endswith("hash") for name in flat)


# --- protocol, table and page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 7}, {"guidance": 1.0}, {"draws": 1}, {"levels": ["box"]}])
def test_the_protocols_hash_follows_every_setting(section: Evaluate, change: dict) -> None:
    first = build_protocol(section, "digest", 6)
    assert build_protocol(section.model_copy(update={"batch_size": 1, "threads": 1}), "digest", 6) == first
    hashes = {build_protocol(section.model_copy(update=change), "digest", 6)["hash"], first["hash"]}
    assert len(hashes | {build_protocol(section, "other", 6)["hash"]}) == 3


def test_numbers_of_different_protocols_never_meet(metrics: dict, tmp_path: Path) -> None:
    require_same_protocol(metrics, dict(metrics))
    with pytest.raises(InputError, match="different protocols"):
        require_same_protocol(metrics, {**metrics, "protocol": {**metrics["protocol"], "hash": "0"}})
    (tmp_path / "evaluation.json").write_text("{}")
    for name, fault in {"evaluation.json": "carries no protocol", "absent.json": "cannot be read"}.items():
        with pytest.raises(InputError, match=fault):
            load_metrics(tmp_path / name)


def test_the_table_shows_every_level_method_and_stage(metrics: dict, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(metrics))
    console = Console(width=140, record=True, file=(tmp_path / "log").open("w"))
    print_table(tmp_path / "evaluation.json", console)
    text = console.export_text()
    for word in (*LEVELS, "compositor", "alpha paste", "Poisson", "n/a", "object encoder", metrics["protocol"]["hash"]):
        assert word in text
    assert "60.0" in text
    assert "+0.10000" in text


class _Links(HTMLParser):
    """Collects what a page refers to and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """SVG shapes close themselves."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_curves_are_drawn_to_scale_and_missing_logs_are_none(tmp_path: Path) -> None:
    (tmp_path / "train_log.json").write_text(
        json.dumps([{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5, "rate": 9}])
    )
    curves = load_curves({"a": tmp_path, "b": tmp_path / "none"})
    assert curves == {"a": {"loss": [(2, 1.0), (4, 0.5)]}, "b": {}}
    line = re.search(r'polyline points="([^"]*)"', draw_curves(curves["a"]))
    assert line is not None
    (x_half, y_top), (x_end, y_half) = [tuple(map(float, point.split(","))) for point in line[1].split()]
    assert x_end - x_half == pytest.approx((x_end - 46) / 2, abs=0.1)
    assert y_top == pytest.approx(8.0)
    assert y_half == pytest.approx((8 + 190 - 26) / 2, abs=0.1)


def test_the_gate_sees_every_pixel_that_the_evaluation_has_counted(
    tmp_path: Path, metrics: dict, rows: list[summary.Row], case_set: CaseSet, composites: Composites
) -> None:
    """13 of 512 x 512 pixels of one composite are 0.00005: more than nothing."""
    share = 13 / 512**2
    changed = [
        summary.Row(row.case, row.level, row.method, row.values | {"outside_changed": share * (number == 0)})
        for number, row in enumerate(rows)
    ]
    options = {"rows": changed, "cases": case_set.cases, "composites": composites, "grid_rows": 1}
    write_report(tmp_path, metrics, curves={"pretrain_encoder": {}, "train_compositor": {}}, **options)
    files.write_json_atomic(tmp_path / "evaluation.json", metrics)
    read = load_measurement(tmp_path / "evaluation.json", tmp_path / "cases.csv").values
    for name in ("object_psnr_db", "outside_changed"):
        ours = {(row.case, row.level): row.values[name] for row in changed if row.method == "ours"}
        assert read[name] == {cell: value for cell, value in ours.items() if value is not None}
    rules = load_rules(ROOT)
    candidate = Candidate("1", "digest", Measurement("protocol", read))
    decision = decide(None, candidate, rules)
    assert (decision.promote, decision.reason) == (False, "limit")
    assert "outside_changed" in decision.explanation


def test_the_report_stands_alone_and_is_the_same_every_time(
    tmp_path: Path, metrics: dict, rows: list[summary.Row], case_set: CaseSet, composites: Composites
) -> None:
    curves = {"pretrain_encoder": {"loss": [(1, 0.5), (20, 0.03)], "val_loss": [(20, 0.04)]}, "train_compositor": {}}
    for name in ("first", "second"):
        options = {"rows": rows, "cases": case_set.cases, "composites": composites, "grid_rows": 3}
        write_report(tmp_path / name, metrics, curves=curves, **options)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert all((tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes() for file in files)
    page = _Links()
    page.feed((tmp_path / "first" / "index.html").read_text())
    assert page.open == []
    assert len(page.links) == 3 * len(LEVELS)
    assert all((tmp_path / "first" / link).is_file() for link in page.links)
    assert (
        tmp_path / "first" / "plots" / "pretrain_encoder" / "loss.csv"
    ).read_text() == "step,loss\n1,0.5000\n20,0.0300\n"
    assert {"grid.png", "composite.png", "cases.csv", "plots/quality.csv"} <= {str(f) for f in files}
    assert len((tmp_path / "first" / "cases.csv").read_text().splitlines()) == 1 + 6 * len(LEVELS) * len(METHODS)
