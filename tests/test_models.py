"""Presets, codec, freeze map, tokens, and models on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imprint.core.errors import InputError
from imprint.core.files import compute_path_digest
from imprint.core.pixels import to_model_range
from imprint.core.prepare import fill_hole as fill_hole_uint8
from imprint.models import (
    PRESETS,
    ImprintModel,
    build_model,
    compute_weights_digest,
    load_encoder,
    load_model,
    save_model,
)
from imprint.models.codec import PixelUnshuffleCodec, fill_hole
from imprint.models.freezing import apply_freeze_map, build_parameter_groups, is_trainable
from imprint.models.presets import choose_encoder

TINY = PRESETS["tiny"]
LIMITS = {"tiny": 1.1e6, "base": 10e6, "small": 40e6}


@pytest.fixture(scope="module")
def model() -> ImprintModel:
    return build_model(TINY, seed=0)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", LIMITS)
def test_presets_keep_their_size(name: str) -> None:
    with torch.device("meta"):
        assert LIMITS[name] / 2 < count_parameters(ImprintModel(PRESETS[name])) <= LIMITS[name]


def test_base_works_on_a_16_by_16_grid_with_cross_attention_everywhere() -> None:
    base = PRESETS["base"]
    assert (base.size_px, base.latent_px, base.reference_px, base.patch_px) == (128, 16, 128, 16)
    unet = build_model(base, seed=0).unet
    assert all(hasattr(block, "attentions") for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks])


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(model: ImprintModel) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    again, other = build_model(TINY, seed=0), build_model(TINY, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert compute_weights_digest(again) == compute_weights_digest(model) != compute_weights_digest(other)


def test_codec_is_exact_and_its_mask_is_too() -> None:
    codec = PixelUnshuffleCodec(8)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    hole = torch.rand(2, 1, 64, 64) < 0.3
    assert torch.equal(codec.decode(codec.encode(image)), image)
    assert torch.equal(codec.decode(codec.encode_hole(hole)), (~hole).float().expand(-1, 3, -1, -1))


def test_the_background_latent_knows_nothing_of_the_hole() -> None:
    """Changing any pixel inside the hole leaves the U-Net's clean input bit-identical."""
    codec = PixelUnshuffleCodec(8)
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 13:42, 20:51] = True
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    changed = torch.where(hole, torch.rand_like(image) * 2 - 1, image)
    clean, keep = codec.encode_background(image, hole)
    other, _ = codec.encode_background(changed, hole)
    assert not torch.equal(image, changed)
    assert torch.equal(clean, other)
    assert torch.equal(keep * clean, keep * codec.encode(image))


def test_the_hole_is_filled_as_in_the_preparation_path() -> None:
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    hole = torch.rand(16, 16) < 0.5
    expected = torch.from_numpy(to_model_range(fill_hole_uint8(pixels, hole.numpy())))
    image = torch.from_numpy(to_model_range(pixels))
    torch.testing.assert_close(fill_hole(image[None], hole[None, None])[0], expected, rtol=0, atol=1e-6)


UNPOOLED = {"class_embed_type": None, "projection_class_embeddings_input_dim": None}


@pytest.mark.parametrize("preset", [TINY, replace(TINY, unet=TINY.unet | UNPOOLED)], ids=["pooled", "tokens alone"])
def test_shapes_and_the_use_of_tokens_and_level(preset) -> None:
    model = build_model(preset, seed=0)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)  # it starts at zero
    torch.nn.init.normal_(model.adapter.level_embedding.weight)
    with torch.no_grad():
        tokens = model.encode_object(torch.rand(2, 3, 64, 64) * 2 - 1)
        assert tokens.shape == model.null_tokens(2).shape == (2, 17, 64)
        x_t, timestep = torch.randn(2, 192, 8, 8), torch.tensor([10, 900])
        plain = model.denoise(x_t, timestep, tokens)
        assert plain.shape == x_t.shape
        assert not torch.equal(plain, model.denoise(x_t, timestep, model.null_tokens(2)))
        levelled = model.denoise(x_t, timestep, tokens, torch.tensor([0, 3]))
    assert torch.equal(plain, levelled) != preset.pooled


def test_an_untrained_model_ignores_the_level(model: ImprintModel) -> None:
    with torch.no_grad():
        assert not model.adapter.embed_levels(torch.arange(4)).any()


def expect_trainable(name: str, stage: str, from_scratch: bool, middle: bool) -> bool:
    """The table of the design, spelled out a second time."""
    if name.startswith("backbone"):
        return stage == "identity"
    if name.startswith("adapter") or stage == "compositing" or from_scratch:
        return True
    if name.startswith("unet.mid_block"):
        return middle
    return not name.startswith(("unet.conv_in", "unet.time_embedding", "unet.down_blocks"))


@pytest.mark.parametrize("stage", ["identity", "compositing"])
@pytest.mark.parametrize("from_scratch", [True, False])
@pytest.mark.parametrize("middle", [True, False])
def test_freeze_map_parameter_by_parameter(model: ImprintModel, stage, from_scratch: bool, middle: bool) -> None:
    apply_freeze_map(model, stage, from_scratch=from_scratch, train_middle_block=middle)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == expect_trainable(name, stage, from_scratch, middle), name
    frozen = {
        name.split(".")[1] for name, value in model.unet.named_parameters(prefix="unet") if not value.requires_grad
    }
    if stage == "identity" and not from_scratch:
        assert (
            {"conv_in", "down_blocks", "time_embedding"}
            <= frozen
            <= {"conv_in", "down_blocks", "time_embedding", "mid_block"}
        )


def test_a_parameter_of_no_part_is_refused() -> None:
    with pytest.raises(AssertionError, match="no part"):
        is_trainable("text.conv", "identity", from_scratch=True, train_middle_block=True)


@pytest.mark.parametrize(
    ("stage", "parts"), [("identity", ["backbone", "adapter", "unet"]), ("compositing", ["adapter", "unet"])]
)
def test_parameter_groups_hold_each_trainable_parameter_once(model: ImprintModel, stage, parts: list[str]) -> None:
    apply_freeze_map(model, stage, from_scratch=True, train_middle_block=True)
    groups = build_parameter_groups(model, {"backbone": 0.1, "adapter": 0.2, "unet": 0.3})
    assert [group["name"] for group in groups] == parts
    assert [group["peak_lr"] for group in groups] == [
        {"backbone": 0.1, "adapter": 0.2, "unet": 0.3}[part] for part in parts
    ]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_saved_model_comes_back_bit_for_bit_and_gives_the_same_files(model: ImprintModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "a", stage="test", extra={"note": 1})
    loaded = load_model(tmp_path / "a")
    assert compute_weights_digest(loaded) == compute_weights_digest(model)
    save_model(loaded, tmp_path / "b", stage="test", extra={"note": 1})
    assert compute_path_digest(tmp_path / "a") == compute_path_digest(tmp_path / "b")
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert texts
    assert not any(str(tmp_path) in text for text in texts)
    reference = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        tokens = load_encoder(tmp_path / "a").encode_object(reference)
        assert torch.equal(tokens, model.eval().encode_object(reference))


def test_a_clip_encoder_gives_tokens_of_the_same_shape_and_comes_back(model: ImprintModel, tmp_path: Path) -> None:
    other = build_model(choose_encoder(TINY, "clip"), seed=0)
    reference = torch.rand(2, 3, 64, 64) * 2 - 1
    save_model(other, tmp_path, stage="test", extra={})
    with torch.no_grad():
        tokens = load_encoder(tmp_path).encode_object(reference)
        assert torch.equal(tokens, other.encode_object(reference))
        assert tokens.shape == model.encode_object(reference).shape
    assert choose_encoder(other.preset, "dinov2") == TINY


def test_half_precision_halves_the_files_and_is_checked_on_loading(model: ImprintModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "whole", stage="s", extra={})
    save_model(model, tmp_path / "half", stage="s", extra={}, half_precision=True)
    loaded = load_model(tmp_path / "half")
    for name, value in loaded.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.get_parameter(name).half().float()), name
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / kind).rglob("*.safetensors")) for kind in ("whole", "half")
    ]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    assert model.unet.conv_in.weight.dtype == torch.float32, "the model itself stays as it was"


class _Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_part_that_is_only_there_as_a_pickle_is_never_opened(
    model: ImprintModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where torch's own guard against pickled code is switched off."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for part, stem, pickled in (
        ("backbone", "model", "pytorch_model.bin"),
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("adapter", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
    ):
        folder = tmp_path / part
        save_model(model, folder, stage="test", extra={})
        (folder / part / f"{stem}.safetensors").unlink()
        torch.save({"x": _Trap(tmp_path / "sprung")}, folder / part / pickled)
        with pytest.raises(InputError, match=f"{part} cannot be read"):
            load_model(folder)
    assert not (tmp_path / "sprung").exists()


def test_what_does_not_fit_is_refused_in_one_line(model: ImprintModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        load_model(tmp_path)
    save_model(model, tmp_path / "encoder", stage="test", extra={}, parts=("backbone", "adapter"))
    with pytest.raises(InputError, match="holds no unet"):
        load_model(tmp_path / "encoder")
    save_model(build_model(TINY, seed=1), tmp_path / "other", stage="test", extra={})
    (tmp_path / "other" / "backbone" / "model.safetensors").replace(
        tmp_path / "encoder" / "backbone" / "model.safetensors"
    )
    digests = [compute_weights_digest(build_model(TINY, seed=seed).backbone) for seed in (1, 0)]
    with pytest.raises(InputError, match=f"{digests[0]}.*{digests[1]}"):
        load_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / "backbone" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(tmp_path / "encoder")
