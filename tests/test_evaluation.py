"""imprint.evaluation: cases, trials, retrieval, intervals, summary, protocol, tables and page."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.gate import Candidate, Measurement, decide, load_rules
from flows.measurements import load_measurement
from imprint.cli import app
from imprint.core import files
from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS
from imprint.core.params import Evaluate, load_params
from imprint.core.pixels import load_image
from imprint.core.view_changes import find_view_change
from imprint.evaluation import measures, summary
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.cases import CaseSet, load_cases
from imprint.evaluation.composites import METHODS, Made, make_baselines
from imprint.evaluation.curves import draw_curves, load_curves
from imprint.evaluation.goals import list_goals, print_markdown
from imprint.evaluation.identity import compute_descriptor, find_nearest
from imprint.evaluation.measuring import Shown, measure_cases
from imprint.evaluation.protocol import build_protocol, load_metrics, require_same_protocol
from imprint.evaluation.report import write_report
from imprint.evaluation.table import is_best, print_table
from imprint.evaluation.trials import choose_places, choose_trials
from tests.evaluation_cases import write_cases

ROOT = Path(__file__).resolve().parents[1]
LEVELS = list(MASK_LEVELS)
NUM_CASES = 6


@pytest.fixture(scope="module")
def section() -> Evaluate:
    settings = {"bootstrap_samples": 200, "grid_rows": 3, "levels": LEVELS, "views_per_case": 2}
    return load_params(ROOT / "params.yaml").evaluate.model_copy(update=settings)


@pytest.fixture(scope="module")
def case_set(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    return load_cases(write_cases(tmp_path_factory.mktemp("cases") / "cases.tar", 6), LEVELS, 48)


@pytest.fixture(scope="module")
def shown(case_set: CaseSet, section: Evaluate) -> Shown:
    """The truth inside each hole stands for the model's pictures: the best that a method can do. The first case alone
    is made from noise, and shows the plate."""
    trials = choose_trials(case_set.cases, section)
    masks = [trial.case.object_mask.astype(np.uint8) * 255 for trial in trials]
    truths = [np.where(trial.hole[..., None], trial.case.truth, trial.case.plate) for trial in trials]
    ours = [Made(picture, mask) for picture, mask in zip(truths, masks, strict=True)]
    from_noise = [Made(trial.case.plate, None) if trial.place == 0 else None for trial in trials]
    return Shown(trials, {"ours": list(ours), "from_noise": from_noise, **make_baselines(trials)})


@pytest.fixture(scope="module")
def measured(case_set: CaseSet, section: Evaluate, shown: Shown) -> tuple[list[summary.Row], dict]:
    loss = {"num_pairs": 4, "right_loss": 0.1, "shuffled_loss": 0.2, "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15}
    held_out = {"protocol": "ab", "pretrain_encoder": loss, "train_compositor": loss}
    return measure_cases(shown, case_set, section, held_out=held_out, model="0123456789ab")


@pytest.fixture(scope="module")
def rows(measured: tuple[list[summary.Row], dict]) -> list[summary.Row]:
    return measured[0]


@pytest.fixture(scope="module")
def metrics(measured: tuple[list[summary.Row], dict]) -> dict:
    return measured[1]


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
    with tarfile.open(complete) as archive, tarfile.open(tmp_path / "one_view.tar", "w") as one_view:
        for member in archive.getmembers():
            if not member.name.endswith("reference_045.png"):
                one_view.addfile(member, archive.extractfile(member))
    faults = {
        "absent": "cannot be read",
        "text": "no tar",
        "empty": "no cases",
        "partial": r"case_000 has no plate\.png",
        "one_view": r"case_000 has no reference_045\.png",
    }
    for name, fault in faults.items():
        with pytest.raises(InputError, match=rf"{name}\.tar.*{fault}"):
            load_cases(tmp_path / f"{name}.tar", LEVELS, 48)


# --- trials ---------------------------------------------------------------------------------------------------------


def test_strata_are_half_open() -> None:
    angles_deg = (0.0, 19.9, 20.0, 44.9, 45.0, 90.0, 180.0)
    assert list(map(find_view_change, angles_deg)) == ["0-20"] * 2 + ["20-45"] * 2 + ["45-90"] + ["90-180"] * 2


def test_strata_take_turns_so_that_each_gets_as_many_cases() -> None:
    for count, num_cases in ((1, 14), (2, 28), (3, 42), (4, 56), (9, 56)):
        chosen = [choose_places(place, 4, count) for place in range(56)]
        assert all(len(places) == min(count, 4) for places in chosen)
        assert [sum(number in places for places in chosen) for number in range(4)] == [num_cases] * 4
    assert all(len(choose_places(place, 4, 2) & {0, 1}) == 1 for place in range(56))  # a near and a far view each


def test_a_case_is_tried_with_its_strata_at_every_level(case_set: CaseSet, section: Evaluate, shown: Shown) -> None:
    assert len(shown.trials) == NUM_CASES * 2 * len(LEVELS)
    assert {trial.level for trial in shown.trials} == set(LEVELS)
    for trial in shown.trials:
        assert trial.case is case_set.cases[trial.place]
        assert trial.reference is trial.case.references[trial.view_change]
        assert trial.hole is trial.case.holes[trial.level]
        assert trial.seed == section.seed + trial.place
    one = section.model_copy(update={"view_changes": ["20-45"], "levels": ["box"]})
    assert [trial.place for trial in choose_trials(case_set.cases, one)] == list(range(NUM_CASES))


# --- identity -------------------------------------------------------------------------------------------------------


def test_retrieval_finds_another_view_of_the_same_object(case_set: CaseSet) -> None:
    identity = summary.summarise_identity(case_set.cases, ["0-20", "90-180"])
    assert identity["ceilings_top1"] == {"0-20": 1.0, "90-180": 1.0}
    assert (identity["ceiling_top1"], identity["near_ceiling_top1"]) == (1.0, 1.0)
    assert identity["chance_top1"] == pytest.approx(1 / 6, abs=1e-4)


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
    assert (box["sharpness"], box["gradient_agreement"], box["outline_iou"]) == (1.0, 1.0, 1.0)
    assert metrics["view_changes"]["0-20"]["from_noise"]["outline_iou"] is None
    assert metrics["intervals"]["view_changes"]["0-20"]["from_noise"]["outline_iou"] is None


def test_levels_are_summarised_up_to_45_degrees_and_view_changes_over_all_levels(
    metrics: dict, rows: list[summary.Row]
) -> None:
    paste = [row for row in rows if row.method == "paste"]
    near = [row for row in paste if row.level == "box" and row.view_change in ("0-20", "20-45")]
    far = [row for row in paste if row.view_change == "90-180"]
    assert len(near) == NUM_CASES
    for tree, group, chosen in (("levels", "box", near), ("view_changes", "90-180", far)):
        mean = measures.get_applicable([row.values for row in chosen], "object_ssim").mean()
        assert metrics[tree][group]["paste"]["object_ssim"] == pytest.approx(mean, abs=1e-4)
        low, high = metrics["intervals"][tree][group]["paste"]["object_ssim"]
        assert low < mean < high
    cell = metrics["cells"]["90-180"]["box"]["paste"]["object_ssim"]
    one = measures.get_applicable([row.values for row in far if row.level == "box"], "object_ssim")
    assert cell[0] == pytest.approx(one.mean(), abs=1e-4)
    assert cell[1] <= cell[0] <= cell[2]
    assert all(row.values["near_psnr_db"] is None for row in far)
    assert metrics["view_changes"]["90-180"]["paste"]["near_psnr_db"] is None


def test_a_method_has_rows_of_what_it_was_tried_on_alone(metrics: dict, rows: list[summary.Row]) -> None:
    noise = [row for row in rows if row.method == "from_noise"]
    assert {row.case for row in noise} == {"case_000"}
    assert {row.view_change for row in noise} == {"0-20", "45-90"}
    assert "from_noise" not in metrics["view_changes"]["20-45"]
    assert [row.values["failed"] for row in noise] == [1.0] * len(noise)


def test_flat_names_hold_the_numbers_alone(metrics: dict) -> None:
    flat = summary.flatten_metrics(metrics)
    assert flat["levels.box.ours.object_ssim"] == flat["view_changes.0-20.ours.sharpness"] == 1.0
    assert flat["held_out.train_compositor.gain"] == 0.1
    assert not any(name.startswith(("intervals", "cells")) or name.endswith("hash") for name in flat)


# --- protocol, table and page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 7},
        {"guidance": 1.0},
        {"draws": 1},
        {"levels": ["box"]},
        {"strength": 0.5},
        {"view_changes": ["0-20"]},
        {"views_per_case": 3},
        {"from_noise_cases": 0},
    ],
)
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


def test_the_tables_show_every_level_view_change_method_and_stage(metrics: dict, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(metrics))
    console = Console(width=160, record=True, file=(tmp_path / "log").open("w"))
    print_table(tmp_path / "evaluation.json", console)
    text = console.export_text()
    words = (*LEVELS, "0-20", "90-180", "compositor", "from noise", "alpha paste", "Poisson", "n/a", "object encoder")
    for word in (*words, metrics["protocol"]["hash"]):
        assert word in text
    assert "60.0" in text
    assert "+0.10000" in text


def test_the_best_sharpness_is_the_one_nearest_to_right() -> None:
    def tell(sharpness: float) -> dict:
        return {"sharpness": sharpness, "log_sharpness": abs(np.log(sharpness)), "copy_distance": 1.0, "psnr": None}

    methods = {"ours": tell(1.2), "paste": tell(0.7), "poisson": tell(3.0)}
    assert [is_best(method, methods, "sharpness") for method in methods] == [True, False, False]
    assert not any(is_best(method, methods, name) for method in methods for name in ("copy_distance", "psnr"))
    methods["from_noise"] = tell(1.0)  # of fewer cases: no best, and none is beaten by it
    assert [is_best(method, methods, "sharpness") for method in methods] == [True, False, False, False]


def test_goals_are_bound_to_the_paste_the_ceiling_and_the_level(metrics: dict, tmp_path: Path, capsys) -> None:
    goals = {(goal.metric, goal.level): goal for goal in list_goals(metrics)}
    psnr = goals["object_psnr_db", "box"]
    assert psnr.low == metrics["levels"]["box"]["paste"]["object_psnr_db"] + 2.0
    assert (goals["sharpness", "soft"].low, goals["sharpness", "soft"].high) == (0.9, 1.25)
    assert goals["identity_top1", "soft"].low == metrics["identity"]["near_ceiling_top1"] - 0.03
    assert goals["outline_iou", "coarse"].low == 0.88
    assert all(goal.met for goal in goals.values() if goal.met is not None)  # the truth itself meets them all
    assert goals["copy_distance", "box"].met is goals["shadow_psnr_db", "exact"].met is None
    (tmp_path / "evaluation.json").write_text(json.dumps(metrics))
    print_markdown(tmp_path / "evaluation.json")
    printed = capsys.readouterr().out
    again = CliRunner().invoke(app, ["evaluation-table", "--metrics", str(tmp_path / "evaluation.json")])
    assert again.stdout == printed
    assert "| object PSNR dB | box | at least " in printed
    assert printed.count("| yes |") == sum(goal.met is True for goal in goals.values())
    old = {name: value for name, value in metrics.items() if name != "cells"}
    (tmp_path / "evaluation.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="has no view changes; evaluate the model again"):
        print_markdown(tmp_path / "evaluation.json")


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
    tmp_path: Path, metrics: dict, rows: list[summary.Row], shown: Shown
) -> None:
    """13 of 512 x 512 pixels of one composite are 0.00005: more than nothing."""
    share = 13 / 512**2
    changed = [
        replace(row, values=row.values | {"outside_changed": share * (number == 0)}) for number, row in enumerate(rows)
    ]
    options = {"rows": changed, "shown": shown, "grid_rows": 1}
    write_report(tmp_path, metrics, curves={"pretrain_encoder": {}, "train_compositor": {}}, **options)
    files.write_json_atomic(tmp_path / "evaluation.json", metrics)
    read = load_measurement(tmp_path / "evaluation.json", tmp_path / "cases.csv").values
    for name in ("object_psnr_db", "outside_changed"):
        ours = {
            (row.case, f"{row.view_change} {row.level}"): row.values[name] for row in changed if row.method == "ours"
        }
        assert read[name] == {cell: value for cell, value in ours.items() if value is not None}
    rules = load_rules(ROOT)
    candidate = Candidate("1", "digest", Measurement("protocol", read))
    decision = decide(None, candidate, rules)
    assert (decision.promote, decision.reason) == (False, "limit")
    assert "outside_changed" in decision.explanation


def test_the_report_stands_alone_and_is_the_same_every_time(
    tmp_path: Path, metrics: dict, rows: list[summary.Row], shown: Shown
) -> None:
    curves = {"pretrain_encoder": {"loss": [(1, 0.5), (20, 0.03)], "val_loss": [(20, 0.04)]}, "train_compositor": {}}
    for name in ("first", "second"):
        options = {"rows": rows, "shown": shown, "grid_rows": 3}
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
    names = {"grid.png", "composite.png", "cases.csv", "plots/levels.csv", "plots/view_changes.csv"}
    assert names <= {str(f) for f in files}
    lines = (tmp_path / "first" / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows) == 1 + 2 * len(LEVELS) * (NUM_CASES * (len(METHODS) - 1) + 1)
    first = next(n for n, t in enumerate(shown.trials) if (t.place, t.view_change, t.level) == (0, "0-20", "box"))
    made = shown.composites["ours"][first]
    assert made is not None
    np.testing.assert_array_equal(load_image(tmp_path / "first" / "composite.png"), made.picture)
