"""From registration to rollback against a real MLflow store: who is champion, why, and that it can be undone."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from flows.commands import print_models
from flows.events import describe_decision
from flows.measurements import PROTOCOL_TAG, attach_evaluation, fetch_measurement
from flows.operations import promote as promote_flow
from flows.promotion import (
    evaluate_version,
    promote,
    promote_as_decided,
    register_challenger,
    rollback,
    run_gate,
)
from flows.registry import CHALLENGER, CHAMPION, COMPOSITOR, ENCODER, PREVIOUS, find_alias
from imprint.core.errors import InputError
from imprint.inference.loading import load_compositor
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store
from tests.evaluation_cases import write_cases
from tests.registered_models import PERFECT, add_pair, add_version, write_evaluation, write_models
from tests.source_tree import ROOT

NAME = COMPOSITOR.name
GOOD = {"identity_top1": 0.5, "near_psnr_db": 20.0, **PERFECT}
BETTER = {**GOOD, "near_psnr_db": 21.0}
WORSE = {**GOOD, "identity_top1": 0.3}


@pytest.fixture
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with rules for two metrics and an empty store of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(store, tmp_path / "mlflow.db")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    rules = yaml.safe_load((ROOT / "gate.yaml").read_text())
    rules["metrics"] = {name: rules["metrics"][name] for name in ("identity_top1", "near_psnr_db")}
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(rules | {"bootstrap_samples": 500}))
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """MLflow's tables without a row: to make them takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        client, experiment = open_store(folder)
        client.rename_experiment(experiment, "elsewhere")  # the copies make their own, with their own location
        yield folder / "mlflow.db"


def train(project: Path, seed: int, means: dict[str, float], encoder: int = 1) -> str:
    """What a retraining leaves behind, registered; the compositor's version."""
    write_models(project, seed=encoder, unet_seed=seed)
    write_evaluation(project, means)
    return register_challenger(project).version


def find_aliases(project: Path, name: str = NAME) -> dict[str, str | None]:
    client, _ = open_store(project)
    return {alias: find_alias(client, name, alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}


def read_tags(project: Path, version: str, name: str = NAME) -> dict[str, str]:
    return open_store(project)[0].get_model_version(name, version).tags


def test_champions_come_and_go(project: Path) -> None:
    assert train(project, 1, GOOD) == "1"
    decision = run_gate(project)
    assert (decision.promote, decision.reason) == (True, "first")
    assert find_aliases(project) == {CHAMPION: None, CHALLENGER: "1", PREVIOUS: None}  # the gate moves nothing
    promote(NAME, "1", reason="the first", root=project)
    assert find_aliases(project) == {CHAMPION: "1", CHALLENGER: None, PREVIOUS: None}
    assert register_challenger(project).created is False
    assert run_gate(project).reason == "same-content"

    assert train(project, 2, BETTER, encoder=2) == "2"
    for folder in ("models", "metrics", "reports"):  # the gate needs no file of the folder that trained
        shutil.rmtree(project / folder)
    decision = run_gate(project)
    assert (decision.promote, decision.reason, decision.champion_version) == (True, "better", "1")
    promote(NAME, "2", reason=decision.explanation, root=project)
    for name in (NAME, ENCODER.name):
        assert find_aliases(project, name) == {CHAMPION: "2", CHALLENGER: None, PREVIOUS: "1"}
    assert read_tags(project, "2")["imprint.promotion.reason"] == "better in near_psnr_db, worse in nothing"

    assert json.loads((project / "reports" / "gate" / "decision.json").read_text())["promote"] is True

    assert train(project, 3, WORSE) == "3"
    decision = run_gate(project)
    assert (decision.promote, decision.reason) == (False, "worse")
    tags = read_tags(project, "3")
    assert (tags["imprint.gate.outcome"], tags["imprint.gate.champion"]) == ("keep", "2")
    assert tags["imprint.gate.champion_digest"] == read_tags(project, "2")["imprint.digest"]
    assert tags["imprint.gate.challenger_digest"] == tags["imprint.digest"]
    assert tags["imprint.gate.metric.identity_top1"].endswith("worse")
    assert tags["imprint.gate.metric.near_psnr_db"].endswith("worse")

    assert rollback(NAME, reason="blurs logos", root=project) == "1"
    assert find_aliases(project) == {CHAMPION: "1", CHALLENGER: "3", PREVIOUS: None}
    assert find_aliases(project, ENCODER.name)[CHAMPION] == "1"
    with pytest.raises(InputError, match="version 1 is the first champion"):
        rollback(NAME, reason="once more", root=project)

    assert train(project, 2, BETTER, encoder=2) == "2"  # the same files again
    decision = run_gate(project)
    assert (decision.promote, decision.reason) == (False, "rolled-back")
    assert "blurs logos" in decision.explanation
    promote(NAME, "2", reason="the logos were the camera's", root=project)
    assert find_aliases(project)[CHAMPION] == "2"
    assert "imprint.rolled_back" not in read_tags(project, "2")


def fire(project: Path, payload: dict[str, str]) -> str:
    """What the event of a decision does, through the parameters that the trigger in `prefect.yaml` gives the flow."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (triggers,) = [one["triggers"] for one in deployments if one["entrypoint"] == "flows/operations.py:promote"]
    given = {key: payload[text[2:-2].split(".")[2].strip()] for key, text in triggers[0]["parameters"].items()}
    assert set(given) <= set(inspect.signature(promote_flow.fn).parameters)
    return promote_as_decided(**given, root=project)


def test_an_event_after_a_rollback_does_nothing_and_says_so(project: Path) -> None:
    promote(NAME, add_pair(project, "a" * 64, GOOD), reason="by hand", root=project)
    add_pair(project, "b" * 64, BETTER)
    payload = describe_decision(NAME, run_gate(project))
    assert fire(project, payload) == ""
    assert find_aliases(project)[CHAMPION] == "2"
    assert read_tags(project, "2")["imprint.promotion.reason"].startswith("gate: better in")
    assert fire(project, payload) == "version 2 is champion already"
    rollback(NAME, reason="blurs logos", root=project)
    before = find_aliases(project), read_tags(project, "2")
    assert fire(project, payload) == "version 2 was rolled back (blurs logos); promote it by hand"
    assert (find_aliases(project), read_tags(project, "2")) == before
    assert before[1]["imprint.rolled_back"] == "blurs logos"


@pytest.mark.parametrize("change", ["champion", "content", "judged", "rules"])
def test_an_event_of_a_decision_that_does_not_hold_any_more_does_nothing(project: Path, change: str) -> None:
    promote(NAME, add_pair(project, "a" * 64, GOOD), reason="by hand", root=project)
    version = add_pair(project, "b" * 64, BETTER)
    payload = describe_decision(NAME, run_gate(project))
    client, _ = open_store(project)
    rules = yaml.safe_load((project / "gate.yaml").read_text())
    if change == "champion":
        promote(NAME, add_pair(project, "c" * 64, GOOD), reason="by hand", root=project)
    elif change == "content":
        client.set_model_version_tag(NAME, "1", DIGEST_TAG, "d" * 64)
    else:
        (project / "gate.yaml").write_text(yaml.safe_dump(rules | {"min_cases": 10_000}))
    if change == "judged":
        assert not run_gate(project).promote
    told = {
        "champion": "it was compared with champion 1, and now that is 3",
        "content": "the champion 1 has other content",
        "judged": "version 2 was judged anew since, with the outcome keep",
        "rules": "gate.yaml has changed since",
    }
    before = find_aliases(project)
    assert told[change] in fire(project, payload)
    assert find_aliases(project) == before
    assert before[CHAMPION] != version


def test_rolling_back_twice_goes_two_back(project: Path) -> None:
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        promote(NAME, add_pair(project, digest, GOOD), reason="by hand", root=project)
    assert rollback(NAME, reason="a", root=project) == "2"
    assert find_aliases(project) == {CHAMPION: "2", CHALLENGER: None, PREVIOUS: "1"}
    assert rollback(NAME, reason="b", root=project) == "1"
    assert find_aliases(project, ENCODER.name)[CHAMPION] == "1"


def test_a_challenger_of_another_protocol_or_without_an_evaluation_stays_one(project: Path) -> None:
    promote(NAME, add_pair(project, "a" * 64, GOOD), reason="by hand", root=project)
    add_pair(project, "b" * 64, BETTER, protocol="fedcba987654")
    assert run_gate(project).reason == "protocol"
    version = add_pair(project, "c" * 64, None)  # the evaluation that lies there is of version 2
    decision = run_gate(project)
    assert decision.reason == "not-measured"
    assert "other weights" in decision.explanation
    write_evaluation(project, BETTER, digest="c" * 64)  # it is evaluated after all
    client, _ = open_store(project)
    attach_evaluation(client, client.get_model_version(NAME, version), project)
    assert run_gate(project).reason == "better"
    assert find_aliases(project) == {CHAMPION: "1", CHALLENGER: "3", PREVIOUS: None}


def test_a_deleted_champion_is_not_no_champion(project: Path) -> None:
    promote(NAME, add_pair(project, "a" * 64, GOOD), reason="by hand", root=project)
    add_pair(project, "b" * 64, BETTER)
    client, _ = open_store(project)
    client.delete_model_version(NAME, "1")
    decision = run_gate(project)
    assert (decision.promote, decision.reason, decision.champion_version) == (False, "champion-not-measured", "1")
    promote(NAME, "2", reason="version 1 is gone", root=project)
    with pytest.raises(InputError, match="version 2 is the first champion"):
        rollback(NAME, reason="no", root=project)


def test_the_encoder_moves_with_its_compositor_alone(project: Path) -> None:
    add_pair(project, "a" * 64, GOOD)
    with pytest.raises(InputError, match="moves with the compositor"):
        promote(ENCODER.name, "1", reason="why not", root=project)
    with pytest.raises(InputError, match="moves with the compositor"):
        rollback(ENCODER.name, reason="why not", root=project)
    with pytest.raises(InputError, match="give a reason"):
        promote(NAME, "1", reason=" ", root=project)
    with pytest.raises(InputError, match="imprint-compositor has no version 9"):
        promote(NAME, "9", reason="why not", root=project)
    with pytest.raises(InputError, match="has no champion"):
        rollback(NAME, reason="why not", root=project)
    open_store(project)[0].delete_model_version(ENCODER.name, "1")
    with pytest.raises(InputError, match="the encoder that it was trained on is not registered"):
        promote(NAME, "1", reason="why not", root=project)
    assert find_aliases(project)[CHAMPION] is None


def test_two_compositors_of_one_encoder_share_its_version(project: Path) -> None:
    first = add_pair(project, "a" * 64, GOOD)
    add_pair(project, "b" * 64, GOOD)
    third = add_version(project, NAME, digest="c" * 64, encoder="a" * 64)
    for version, encoder in ((first, "1"), ("2", "2"), (str(third.version), "1")):
        promote(NAME, version, reason="by hand", root=project)
        assert find_aliases(project, ENCODER.name)[CHAMPION] == encoder
    rollback(NAME, reason="no", root=project)
    assert find_aliases(project, ENCODER.name)[CHAMPION] == "2"


def test_files_that_are_not_those_registered_are_not_loaded(project: Path) -> None:
    import mlflow

    promote(NAME, train(project, 1, GOOD), reason="by hand", root=project)
    uri = f"models:/{NAME}@champion"
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    load_compositor(uri, project)
    mlflow.pyfunc.load_model(uri)
    (stored,) = (project / "mlruns").rglob("artifacts/artifacts/compositor/train_log.json")
    stored.write_text("[]\n ")
    with pytest.raises(InputError, match=r"version 1: its files have the digest .* do not use it"):
        load_compositor(uri, project)
    with pytest.raises(InputError, match="are of no version in sqlite"):
        mlflow.pyfunc.load_model(uri)


def test_a_registered_version_is_measured_under_todays_protocol(project: Path) -> None:
    """Into a folder of its own; then the gate can compare, and measures a champion of another protocol if asked to."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluate"] |= {"max_cases": 2, "levels": ["box"], "steps": 2, "grid_rows": 1, "bootstrap_samples": 100}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (project / "demo" / "assets").mkdir(parents=True)
    write_cases(project / params["evaluate"]["cases"], 2)
    promote(NAME, train(project, 1, GOOD), reason="by hand", root=project)
    train(project, 2, GOOD)
    shutil.rmtree(project / "models")
    metrics = evaluate_version(NAME, "2", project)
    assert (project / "reports" / "versions" / f"{NAME}-2" / "index.html").is_file()
    client, _ = open_store(project)
    protocol = read_tags(project, "2")[PROTOCOL_TAG]
    assert protocol == f"{metrics['protocol']['name']}/{metrics['protocol']['hash']}"
    version = client.get_model_version(NAME, "2")
    measured = fetch_measurement(client, version, root=project)
    assert measured is not None
    means = metrics["levels"]["box"]["ours"]
    assert np.mean(list(measured.values["near_psnr_db"].values())) == pytest.approx(means["near_psnr_db"], abs=1e-3)
    assert fetch_measurement(client, version, protocol="cases/0123456789ab", root=project) is not None  # the first one
    assert run_gate(project).reason == "protocol"
    decision = run_gate(project, remeasure=True)
    assert (decision.protocol, decision.reason) == (protocol, "few-cases")


def test_the_list_of_models_is_whole_on_a_narrow_screen(project: Path) -> None:
    first, second = add_pair(project, "a" * 64, GOOD), add_pair(project, "b" * 64, BETTER)
    promote(NAME, first, reason="by hand", root=project)
    run_gate(project)
    console = Console(width=80, record=True, file=(project / "screen").open("w"))
    print_models(project, console)
    rows = [line.split() for line in console.export_text().splitlines() if NAME in line]
    assert [row[:4] for row in rows] == [
        [NAME, second, "challenger", "b" * 8],
        [NAME, first, "champion", "a" * 8],
    ]
    assert rows[0][-2:] == ["promote", "better"]
