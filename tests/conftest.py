"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imprint.core.params import Params, load_params
from tests.synthetic import write_shards
from tests.toy_project import start_server
from tests.video_clips import DRAWINGS, write_colour_network, write_video

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of eight readable videos: six of one turning object, twins that cross, and a cut."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, draw) in enumerate(DRAWINGS.items()):
        write_video(folder / f"{name}.mp4", draw(seed))
    return folder


@pytest.fixture(scope="session")
def clip_params(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The repository's params over `videos`, with a segmenter that is right on them."""
    network = write_colour_network(tmp_path_factory.mktemp("network") / "colour.onnx")
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(
        update={
            "ingest": params.ingest.model_copy(update={"source": str(videos)}),
            "extract_frames": params.extract_frames.model_copy(update={"workers": 1}),
            "segment_objects": params.segment_objects.model_copy(update={"model": str(network), "workers": 1}),
        }
    )


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a Prefect server on loopback."""
    with start_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture(scope="session")
def prepared(clip_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project folder in which all five data stages have run; not to be changed."""
    from data_prep.frames.stage import run_extract_frames
    from data_prep.ingest.stage import run_ingest
    from data_prep.masks.stage import run_segment_objects
    from data_prep.pairs.stage import run_mine_pairs
    from data_prep.shards.stage import run_pack_shards

    root = tmp_path_factory.mktemp("project")
    for run in (run_ingest, run_extract_frames, run_segment_objects, run_mine_pairs, run_pack_shards):
        run(clip_params, root)
    return root


@pytest.fixture(scope="session")
def synthetic_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `data/shards` folder at preset `tiny`'s size, of drawn shapes; not to be changed."""
    return write_shards(tmp_path_factory.mktemp("synthetic") / "data" / "shards")
