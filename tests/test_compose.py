"""deploy/compose.yaml against what stands beside it; `make drill-team` runs its servers' commands as processes."""

from __future__ import annotations

import re

import yaml

from tests.drills.team import COMPOSE, SECRETS, translate
from tests.source_tree import ROOT

TEXT = (ROOT / COMPOSE).read_text()
SERVICES = yaml.safe_load(TEXT)["services"]


def test_it_asks_for_what_the_example_names() -> None:
    example = re.findall(r"^(\w+)=", (ROOT / "deploy/env.example").read_text(), re.MULTILINE)
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(example) == set(SECRETS)


def test_services_wait_for_services_that_exist_and_ports_are_on_loopback() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    databases = re.findall(r"CREATE DATABASE (\w+)", (ROOT / "deploy/databases.sql").read_text())
    assert databases == ["prefect", "mlflow"]


def test_the_drill_leaves_nothing_of_the_containers_in_what_it_starts() -> None:
    ports = {"postgres": 15432, "store": 19000, "prefect": 14200, "mlflow": 15000}
    for name in ("prefect", "mlflow"):
        texts = [
            translate(text, name, ports)
            for text in (*SERVICES[name]["command"], *SERVICES[name]["environment"].values())
        ]
        assert not [text for text in texts if re.search(r"\$|0\.0\.0\.0|@postgres|//store|:9000|:5432", text)]
        assert any(str(ports[name]) in text for text in texts)
