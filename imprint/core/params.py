"""`params.yaml`: one section per stage, each one frozen model. An unknown or missing key is an error that names it.

There are no defaults here: the values, documented, are in `params.yaml` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imprint.core.errors import InputError
from imprint.core.masks import MaskLevel
from imprint.core.outside import load_yaml
from imprint.core.records import PairKind
from imprint.core.view_changes import ViewChange

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
RUN_ONLY = "run-only"  # marks a field that says how a stage works, not what comes out of it (imprint.core.keys)
RunOnlyCount = Annotated[int, Field(ge=1), RUN_ONLY]
RunOnlyNatural = Annotated[int, Field(ge=0), RUN_ONLY]
RunOnlyShare = Annotated[float, Field(ge=0.0, le=1.0), RUN_ONLY]
PresetName = Literal["tiny", "base", "small", "sd15-tiny", "sd15", "sd15-lora"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Ingest(Section):
    source: str  # folder in one of the layouts of docs/data_format.md, or one video or picture file
    licence: str  # of what `licences.csv` in the source does not name; goes through to the shards
    min_frames: Count  # of a video or a sequence; sets of photos and single pictures may be smaller
    max_rejected_share: RunOnlyShare


class ExtractFrames(Section):
    sample_fps: Positive
    max_frames_per_clip: Count
    max_side_px: Count  # larger frames are scaled down to it
    min_sharpness: Annotated[float, Field(ge=0.0)]  # variance of the Laplacian, grey levels squared
    min_hash_distance: Natural  # bits (of 64) by which a kept frame differs from the last kept one
    cut_threshold: Positive  # PySceneDetect's content threshold
    deadline_s: Positive  # per clip and reader
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]
    workers: RunOnlyNatural  # processes; 0: one per core
    max_rejected_share: RunOnlyShare


class Sam2(Section):
    """Weights of SAM 2, which follows objects in a video: a hub id or a folder. A hub id needs its commit."""

    weights: str
    revision: str


class Touching(Section):
    """Objects that touch and so are one mask (docs/models.md)."""

    judged_frames: Natural  # of a track; 0: nothing is judged
    max_foreign_share: Share  # of a mask, held to be of another object: above it there are several


class SegmentObjects(Section):
    backend: Literal["rembg", "sam2"]  # sam2: of videos, follows what `model` or a given first mask shows once
    sam2: Sam2
    model: str  # "imprint-small" (shipped), a rembg model's name, or the path of an ONNX file
    allow_noncommercial: bool
    threshold: Share
    min_area_share: Share
    max_area_share: Share
    min_component_share: Share  # an object's largest component / all its pixels
    min_confidence: Share
    min_link_iou: Share
    min_track_frames: Count
    touching: Touching
    batch_size: Count
    workers: RunOnlyNatural
    max_rejected_share: RunOnlyShare


class NearDuplicates(Section):
    """Below which difference two clips show the same and go to one split; 0 looks away from that measure."""

    frame_bits: Natural  # of the 64 bits of the frames' perceptual hashes
    object_change: Share  # of view, between views of two objects
    background_rms: Annotated[float, Field(ge=0.0)]  # grey levels, outside the objects, place by place
    background_matches: Natural  # features that match under one shift, turn and change of size; as many or more


class MinePairs(Section):
    seed: int
    max_border_contact: Share
    min_box_share: Share  # the larger of the box's sides as shares of the frame's
    max_target_box_share: Share  # of stage 2's targets: above it too little background is left
    min_view_change: Share  # stage 1: by how much two views must differ
    video_max_gap_frames: Count  # in sampled frames
    video_max_gap_s: Positive
    video_max_background_change: Share  # of what both frames show beside the objects
    max_pairs_per_track: dict[Literal["multiview", "video", "single"], Natural]
    max_pairs_per_clip: dict[Literal["multiview", "video", "single"], Natural]
    near_duplicates: NearDuplicates
    split_share: dict[Literal["val", "test"], Share]
    min_clips_per_split: Natural
    min_pairs_per_split: Natural
    max_rejected_share: RunOnlyShare


class PackShards(Section):
    size_px: Count
    reference_px: Count
    scene_context: Annotated[float, Field(ge=1.0)]
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]
    shard_mb: Annotated[float, Field(ge=64.0, le=512.0)]  # size of a full shard


class ReportData(Section):
    seed: int  # of the draw of what is shown
    picture_px: Count  # height of the pictures
    max_tracks: Natural
    max_pairs_per_kind: Natural
    max_pictures_per_reason: Natural


class Rates(Section):
    """Peak learning rates of the parameter groups."""

    backbone: Annotated[float, Field(ge=0.0)]
    adapter: Positive
    unet: Positive


class CompositorRates(Rates):
    """A part whose rate is 0 does not train; without adapter and U-Net there is no diffusion loss to compute."""

    adapter: Annotated[float, Field(ge=0.0)]
    unet: Annotated[float, Field(ge=0.0)]
    appearance_flow: Annotated[float, Field(ge=0.0)]


class Training(Section):
    """What both training stages share."""

    seed: int
    threads: Count  # torch CPU threads; results are bitwise equal only for the same count
    loader_workers: RunOnlyNatural  # of each process
    processes: Natural  # on this machine; 0: one per GPU. Under torchrun those count that it has started
    cpu_precision: Literal["float32", "bfloat16"]  # the latter needs AVX512_BF16; a GPU always trains in bfloat16
    max_steps: Natural  # 0: the model that training starts from, as it is
    max_hours: Annotated[
        float, Field(ge=0.0)
    ]  # of training in all, resumed ones too; rate and average follow what ends first; 0: no limit
    batch_size: Count  # of a step, of all processes together
    accumulate_steps: Count  # a process takes its share of the batch in so many parts
    gradient_checkpointing: bool  # U-Net and backbone compute twice and remember less
    mixture: dict[PairKind, Share]  # kinds of pair, as shares of the samples
    learning_rate: Rates
    optimizer: Literal[
        "adamw", "adamw-8bit"
    ]  # the latter needs bitsandbytes and a CUDA GPU: states of a quarter the size
    offload_frozen: bool  # parts that do not train are on the GPU only while they are at work
    warmup_steps: Natural
    weight_decay: Annotated[float, Field(ge=0.0)]
    max_grad_norm: Positive
    ema_halflife_share: Share  # of the run's length
    min_snr: Positive  # x0 loss weight: clamp(SNR, min_snr, max_snr)
    max_snr: Positive
    timestep_shift: Annotated[float, Field(ge=1.0)]  # 1: uniform timesteps; more: more of them with much noise
    timestep_shifts: dict[PairKind, Annotated[float, Field(ge=0.0)]]  # of kinds of pair; 0: as `timestep_shift`
    half_size_steps: Natural  # the first steps run at half the preset's size
    null_rate: Share  # object tokens replaced by the null token, per sample
    flip_rate: Share  # reference and target mirrored together
    channel_swap_rate: Share  # colour channels permuted, in reference and target alike: objects of other colours
    colour_jitter: Share  # strength of colour and light changes of the reference (stage 2: of single pairs)
    checkpoint_every_steps: RunOnlyCount
    keep_checkpoints: RunOnlyCount  # the newest so many, and beside them the best by held-out loss
    log_checkpoints_as_models: Annotated[bool, RUN_ONLY]  # the averaged weights of each, in MLflow
    log_every_steps: RunOnlyCount
    validate_every_steps: RunOnlyCount
    validation_pairs: Count


class PresetOptions(Section):
    """What may be chosen for any preset; see docs/models.md. Stage 2 takes it over from stage 1's model."""

    encoder: Literal["dinov2", "clip"]
    blending: Literal["clean", "noised", "none"]  # of the background; clean is the paper's
    max_references: Annotated[int, Field(ge=1, le=8)]  # views of the object, drawn per sample; 1 is the paper's
    detail_crop: bool  # a zoomed crop of the reference as well; false is the paper's
    appearance_flow: bool  # the object's pixels come from the reference; false is the paper's


class Weights(Section):
    """Pretrained weights for the presets sd15*: hub ids or folders. A hub id needs its commit: `imprint doctor`."""

    base: str  # U-Net, VAE and scheduler, in diffusers' layout
    base_revision: str
    backbone: str  # of transformers
    backbone_revision: str


class PretrainEncoder(Training):
    preset: PresetName
    options: PresetOptions
    weights: Weights
    init: str  # checkpoints/fresh, checkpoints/pretrained (see `weights`), or a model's folder
    freeze_unet_encoder: bool  # paper: true. A model from scratch has nothing to freeze
    train_middle_block: bool  # the figure leaves the U-Net's middle block open


class FreezeEncoder(Section):
    verify_pairs: Count  # held-out pairs on which the saved encoder must give the same tokens as the trained one


class TrainCompositor(Training):
    learning_rate: CompositorRates
    exposure_jitter: Annotated[float, Field(ge=0.0)]  # of the reference, in stops; its white balance by a third of it
    scene_metering: Share  # of the way to middle grey, drawn per sample: scenes as a camera would have exposed them
    hide_rate: Share  # of plates: the appearance flow learns to `replace`, else to `insert`
    mask_levels: dict[MaskLevel, Share]  # drawn per sample
    max_contact_margin: Annotated[float, Field(ge=0.0, le=0.3)]  # of the object's size
    condition_on_level: bool
    outside_weight: Annotated[float, Field(ge=0.0)]  # of the x0 loss outside the hole
    init_unet: str  # models/pretrained, checkpoints/fresh, checkpoints/pretrained, or a model's folder


class Evaluate(Section):
    cases: str  # tar of the test cases with ground truth
    max_cases: Count
    levels: list[MaskLevel]
    view_changes: list[ViewChange]  # strata: degrees between the views of reference and truth
    views_per_case: Count  # so many of the strata are tried with each case, in turn
    from_noise_cases: Natural  # the first ones are also composited from noise, as in the paper
    steps: Count
    guidance: Annotated[float, Field(ge=1.0)]
    draws: Count  # of noise per step, whose mean is taken
    strength: Share | None  # 1: from noise; 0: the appearance flow alone; empty: as the model has it
    seed: int
    threads: Count
    batch_size: Count
    held_out_pairs: Count
    bootstrap_samples: Count
    grid_rows: Count


class Params(Section):
    ingest: Ingest
    extract_frames: ExtractFrames
    segment_objects: SegmentObjects
    mine_pairs: MinePairs
    pack_shards: PackShards
    report_data: ReportData
    pretrain_encoder: PretrainEncoder
    freeze_encoder: FreezeEncoder
    train_compositor: TrainCompositor
    evaluate: Evaluate


Model = TypeVar("Model", bound=Section)


def load_params(path: str | Path = "params.yaml", overlay: str | Path | None = None) -> Params:
    """Read and check `params.yaml`; `overlay` is a file of the same shape whose keys replace those of the first."""
    values = _load_mapping(Path(path))
    if overlay is not None:
        values = merge_overlay(values, _load_mapping(Path(overlay)), str(overlay))
    return parse_section(Params, values, str(path if overlay is None else overlay))


def parse_section(model: type[Model], values: Any, name: str) -> Model:
    """Check `values` against `model`; `InputError` names the first wrong key, what is wrong and the file."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # a typo is both an unknown key and a missing one: the one that the user wrote is the one to name
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        raise InputError(f"{name}: {key}: {_explain(first, model)}") from None


def merge_overlay(values: dict[str, Any], overlay: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """`values` with the keys of `overlay` replaced, sections merged; a key that `values` has not is an error."""
    merged = dict(values)
    for key, value in overlay.items():
        if key not in values:
            raise InputError(f"{name}: {prefix}{key}: unknown key; the keys are those of params.yaml")
        both_sections = isinstance(value, dict) and isinstance(values[key], dict)
        merged[key] = merge_overlay(values[key], value, name, f"{prefix}{key}.") if both_sections else value
    return merged


def _load_mapping(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run from the project's root folder") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a mapping of sections")
    return values


def _explain(error: Any, model: type[Section]) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key; the keys are {', '.join(_keys_beside(error['loc'], model))}"
    if error["type"] == "missing":
        return "missing key; `imprint migrate` adds what is new, see params.yaml of the repository for its meaning"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (found {error['input']!r})"


def _keys_beside(location: tuple[Any, ...], model: type[Section]) -> list[str]:
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        model = annotation
    return list(model.model_fields)
