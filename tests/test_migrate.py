"""`imprint migrate`: what is new comes in, what is there stays as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imprint.core.errors import InputError
from imprint.core.migrate import ADDED, migrate_params
from imprint.core.params import load_params

ROOT = Path(__file__).resolve().parents[1]


def remove_added(values: dict) -> dict:
    for key in ADDED:
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        del section[name]
    return values


def test_an_old_parameter_file_loads_after_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    old = remove_added(yaml.safe_load((ROOT / "params.yaml").read_text()))
    path.write_text("# mine\n" + yaml.safe_dump(old, sort_keys=False))
    with pytest.raises(InputError, match=r"missing key; `imprint migrate` adds what is new"):
        load_params(path)
    assert migrate_params(path) == ADDED
    assert not load_params(path).pretrain_encoder.options.appearance_flow
    assert path.read_text().startswith("# mine\n")
    assert remove_added(yaml.safe_load(path.read_text())) == old
    before = path.read_bytes()
    assert migrate_params(path) == {}
    assert path.read_bytes() == before


def test_comments_and_values_of_todays_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = "\n".join(line for line in (ROOT / "params.yaml").read_text().splitlines() if "hide_rate" not in line) + "\n"
    path.write_text(text)
    assert set(migrate_params(path)) == {"train_compositor.hide_rate"}
    assert path.read_text().count("#") == text.count("#")
    assert load_params(path).train_compositor.hide_rate == 1.0


def test_what_is_no_yaml_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is no valid YAML"):
        migrate_params(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        migrate_params(tmp_path / "absent.yaml")
