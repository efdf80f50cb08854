"""Models that start from published weights: sizes, loading, what is refused, and both stages at reduced width."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from imprint.core.errors import InputError
from imprint.core.params import load_params
from imprint.core.sources import Source
from imprint.models import PRESETS, ImprintModel, compute_weights_digest
from imprint.models.backbone import build_backbone, compute_features
from imprint.models.codec import VaeCodec
from imprint.models.configs import DINOV2_GIANT
from imprint.models.freezing import apply_freeze_map
from imprint.models.presets import choose_encoder
from imprint.models.pretrained import load_pretrained
from tests.published_weights import load_published, write_published
from tests.test_models import count_parameters

ROOT = Path(__file__).resolve().parents[1]
TINY = PRESETS["sd15-tiny"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, `sd21`, `dinov2` and `clip`; not to be changed."""
    return write_published(tmp_path_factory.mktemp("published"))


# --- full size, without weights


def test_the_published_architectures_have_their_exact_sizes() -> None:
    with torch.device("meta"):
        model = ImprintModel(PRESETS["sd15"])
        giant = build_backbone(DINOV2_GIANT)
    assert count_parameters(model.unet) == 859_520_964
    assert model.vae is not None
    assert count_parameters(model.vae) == 83_653_863
    assert count_parameters(model.backbone) == 304_368_640
    assert count_parameters(giant) == 1_136_480_768
    preset = model.preset
    assert (preset.size_px, preset.reference_px, preset.latent_px, preset.num_tokens) == (512, 224, 64, 257)
    assert model.unet.conv_in.in_channels == 4
    assert (model.adapter.project.in_features, model.adapter.project.out_features) == (1024, 768)


@pytest.mark.parametrize("middle", [True, False])
def test_freeze_map_of_sd15_by_name(middle: bool) -> None:
    """Paper: stage 1 trains backbone, adapter and the U-Net's decoder; stage 2 adapter and U-Net. Full size."""
    with torch.device("meta"):
        model = ImprintModel(PRESETS["sd15"])
    apply_freeze_map(model, "identity", from_scratch=False, train_middle_block=middle)
    decoder = ("unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out.")
    trains = ("backbone.", "adapter.", *decoder, *(["unet.mid_block."] if middle else []))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(trains), name
    frozen = {
        name.split(".")[1] for name, p in model.named_parameters() if name.startswith("unet") and not p.requires_grad
    }
    assert frozen == {"conv_in", "time_embedding", "down_blocks"} | (set() if middle else {"mid_block"})
    apply_freeze_map(model, "compositing", from_scratch=False, train_middle_block=middle)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(("adapter.", "unet.")), name


# --- loading


def test_published_weights_arrive_bit_for_bit_under_a_new_adapter(published: Path) -> None:
    model = load_published(published)
    unet = load_file(published / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(unet) == set(model.unet.state_dict())
    assert all(torch.equal(value, model.unet.state_dict()[name]) for name, value in unet.items())
    torch.manual_seed(2)  # as `write_dinov2`: the file has other names
    assert compute_weights_digest(model.backbone) == compute_weights_digest(build_backbone(TINY.backbone))
    vae = load_file(published / "base" / "vae" / "diffusion_pytorch_model.safetensors")
    assert any(".query." in name for name in vae), "the file has the names of 2022"
    query = vae["encoder.mid_block.attentions.0.query.weight"]
    assert torch.equal(query, model.vae.encoder.mid_block.attentions[0].to_q.weight)  # pyright: ignore
    assert compute_weights_digest(model.adapter) == compute_weights_digest(load_published(published).adapter)
    assert (model.preset.prediction_type, model.preset.zero_terminal_snr) == ("epsilon", False)


def test_a_base_like_sd21_loads_by_the_same_code_and_trains(published: Path) -> None:
    model = load_published(published, base="sd21")
    assert (model.preset.prediction_type, model.preset.token_dim) == ("v_prediction", 48)
    assert model.unet.config["attention_head_dim"] == [2, 4, 4, 4]
    check_backward(model)


def test_clips_image_tower_stands_behind_the_same_interface(published: Path) -> None:
    model = load_published(published, backbone="clip", preset=choose_encoder(TINY, "clip"))
    picture = torch.rand(2, 3, 56, 56) * 2 - 1
    whole = CLIPModel.from_pretrained(published / "clip")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((picture + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        expected = whole.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(compute_features(model.backbone, picture), expected)
        assert model.encode_object(torch.zeros(2, 3, 28, 28)).shape == (2, 5, 32)
    check_backward(model)


def check_backward(model: ImprintModel) -> None:
    """A pass through the full structure reaches every weight that takes part."""
    model.requires_grad_(True)
    tokens = model.encode_object(torch.rand(2, 3, 28, 28) * 2 - 1)
    model.denoise(torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), tokens).square().mean().backward()
    unused = {"backbone.embeddings.mask_token", "backbone.post_layernorm.weight", "backbone.post_layernorm.bias"}
    unused |= {"adapter.null_token", "adapter.level_embedding.weight"}
    untouched = {name for name, value in model.named_parameters() if value.grad is None and not name.startswith("vae.")}
    assert untouched <= unused


def test_forward_and_backward_through_the_full_structure(published: Path) -> None:
    check_backward(load_published(published))


# --- what is refused


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_and_add(path: Path) -> None:
    weights = load_file(path)
    weights["conv_in.bias"] = torch.zeros(3)
    weights.pop("conv_out.weight")
    save_file(weights | {"left.over": torch.zeros(1)}, path, metadata={"format": "pt"})


UNET, CONFIG = "base/unet/diffusion_pytorch_model.safetensors", "base/unet/config.json"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing, extra and misshapen weights": (
        lambda root: drop_and_add(root / UNET),
        r"base/unet: weights do not fit UNet2DConditionModel: 1 missing \(conv_out.weight\); 1 not of this class "
        r"\(left.over\); 1 of another shape \(conv_in.bias \(3,\) for \(16,\)\); name another",
    ),
    "a pickle": (
        lambda root: (root / UNET).rename(root / "base/unet/diffusion_pytorch_model.bin"),
        r"has diffusion_pytorch_model.bin, a pickle, which is never loaded.*take the repository's .safetensors",
    ),
    "no weights": (lambda root: (root / UNET).unlink(), r"base/unet has no .safetensors file; download"),
    "damaged weights": (lambda root: (root / UNET).write_bytes(b"0" * 40), r"base/unet cannot be loaded .*download"),
    "another class": (
        lambda root: edit_json(root / CONFIG, _class_name="FluxTransformer2DModel"),
        r"base/unet holds a FluxTransformer2DModel, not a UNet2DConditionModel; name a base like SD 1.5",
    ),
    "an inpainting base": (
        lambda root: edit_json(root / CONFIG, in_channels=9),
        r"has 9 input channels; IMPRINT's has four: name the base model itself",
    ),
    "sdxl": (
        lambda root: edit_json(root / CONFIG, addition_embed_type="text_time"),
        r"base/unet is of another generation \(SDXL\?\); name one of the classes of SD 1.5",
    ),
    "no diffusers layout": (
        lambda root: shutil.rmtree(root / "base/vae"),
        r"base/vae has no config.json; name a folder",
    ),
    "another encoder": (
        lambda root: edit_json(root / "dinov2/config.json", model_type="vit"),
        r"dinov2 holds a vit, not one of dinov2, clip; set weights.backbone",
    ),
    "a clip for a dinov2": (
        lambda root: (shutil.rmtree(root / "dinov2"), shutil.copytree(root / "clip", root / "dinov2")),
        r"dinov2 holds a clip_vision_model; set options.encoder to it, or weights.backbone to another",
    ),
    "neither folder nor id": (
        lambda root: shutil.rmtree(root / "base"),
        r"weights.base: 'base' is no folder and no hub id",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_gets_one_line_with_the_remedy(published: Path, tmp_path: Path, name: str) -> None:
    breaks, message = FAULTS[name]
    shutil.copytree(published, tmp_path / "here")
    breaks(tmp_path / "here")
    with pytest.raises(InputError) as caught:
        load_published(tmp_path / "here")
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_hub_id_needs_a_commit(tmp_path: Path) -> None:
    for revision in ("", "main", "abc123"):
        with pytest.raises(
            InputError, match=r"weights.base_revision: .* is no commit of a/b; `imprint doctor --download`"
        ):
            load_pretrained(
                TINY,
                {"base": Source("base", "a/b", revision), "backbone": Source("backbone", "c/d")},
                seed=0,
                root=tmp_path,
            )


# --- the codec


def test_the_vaes_background_latent_knows_nothing_of_the_hole(published: Path) -> None:
    """Changing any pixel inside the hole leaves the clean input bit-identical, though the VAE sees far."""
    codec = load_published(published).codec
    assert isinstance(codec, VaeCodec)
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 13:42, 20:51] = True
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = torch.where(hole, -image, image)
    clean, keep = codec.encode_background(image, hole)
    other, _ = codec.encode_background(changed, hole)
    assert torch.equal(clean, other)
    leaking = keep * (codec.encode(image) - codec.encode(changed))
    assert leaking.abs().max() > 0, "unfilled, the hole is seen beside it"


def test_a_latent_cell_that_the_hole_touches_is_not_kept(published: Path) -> None:
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 15, 40] = True
    keep = load_published(published).codec.encode_hole(hole)
    expected = torch.ones(1, 4, 8, 8)
    expected[:, :, 1, 5] = 0
    assert torch.equal(keep, expected)


def test_latents_carry_the_scaling_factor_and_draw_nothing(published: Path) -> None:
    model = load_published(published)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = model.codec.encode(image)
    assert torch.equal(latents, model.codec.encode(image))
    with torch.no_grad():
        mean = model.vae.encode(image).latent_dist.mean  # pyright: ignore
        torch.testing.assert_close(latents, 0.18215 * mean)
        torch.testing.assert_close(model.codec.decode(latents), model.vae.decode(mean).sample)  # pyright: ignore


# --- the recipes


@pytest.mark.parametrize("name", ["small", "sd15", "sd15-lora"])
def test_the_shipped_recipes_fit_their_presets(name: str) -> None:
    params = load_params(ROOT / "params.yaml", ROOT / "params" / f"{name}.yaml")
    preset = PRESETS[params.pretrain_encoder.preset]
    assert preset.name == name
    assert (params.pack_shards.size_px, params.pack_shards.reference_px) == (preset.size_px, preset.canvas_px)
    assert params.train_compositor.condition_on_level == preset.pooled
    assert (ROOT / params.pretrain_encoder.init).is_dir()
    assert not params.pretrain_encoder.weights.base_revision, "no commit is invented"
