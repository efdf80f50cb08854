"""Procedural objects: each seed gives several textured parts, in one of the FAMILIES, standing on z = 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo import textures as tx
from demo.catalogue import HELD_OUT_SEEDS, TRAINING_SEEDS
from demo.geometry import (
    Mesh,
    band,
    cylinder,
    dome,
    ellipsoid,
    extrude,
    gear,
    heart,
    lathe,
    polygon,
    rotation,
    rounded_box,
    scaling,
    torus,
    translation,
)

WIDTH = 2.0  # an object's largest extent, in scene units
MATERIALS = ("diffuse", "plastic", "metal")


@dataclass(frozen=True)
class Part:
    """A mesh, its sRGB texture (H, W, 3) uint8, its material (one of MATERIALS) and GGX roughness 0..1."""

    mesh: Mesh
    texture: np.ndarray
    material: str
    roughness: float


class Kit:
    """The draws that an object's parts share: random generator, palette, and a habit of materials."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.style = choose_style(seed)
        self.colours = tx.vivid_palette(seed, self.rng)
        self.glossy = self.rng.random() < 0.55
        self.parts: list[Part] = []

    def between(self, low: float, high: float) -> float:
        """Uniform draw."""
        return float(self.rng.uniform(low, high))

    def add(self, mesh: Mesh, texture: np.ndarray, material: str | None = None) -> None:
        """Append a part; without a material the object's habit decides."""
        if material is None:
            material = "plastic" if self.glossy else "diffuse"
        self.parts.append(Part(mesh, texture, material, self.between(0.12, 0.35)))

    def plain(self, index: int) -> np.ndarray:
        """Nearly plain texture in a colour of the palette (0..3 vivid, 4 light, 5 dark)."""
        return tx.speckle(self.rng, [self.colours[index]])

    def print(self) -> np.ndarray:
        """Pattern in the palette."""
        return tx.pattern(self.rng, self.colours, self.style)

    def label(self, *, repeat: int = 1) -> np.ndarray:
        """Label with lettering."""
        return tx.label(self.rng, self.colours, repeat=repeat, style=self.style)

    def atlas(self) -> np.ndarray:
        """Labels and patterns for the six faces of a box."""
        return tx.box_atlas(self.rng, self.colours, self.style)

    def metal_or_not(self) -> str:
        """Metal for one part in three."""
        return "metal" if self.rng.random() < 0.33 else "plastic"


def _can(kit: Kit) -> None:
    radius, height = kit.between(0.5, 0.75), kit.between(1.1, 1.7)
    kit.add(cylinder(radius, height, round_px=0.08), kit.plain(5 if kit.rng.random() < 0.3 else 1), kit.metal_or_not())
    kit.add(band(radius * 1.01, 0.15, height - 0.15), kit.label(repeat=2))
    kit.add(cylinder(radius * 0.8, 0.07, round_px=0.03).at(z=height - 0.02), kit.plain(2))
    kit.add(torus(0.16, 0.04).moved(translation(0.1, 0, height + 0.06) @ scaling(1.5, 1, 1)), kit.plain(3), "metal")


def _bottle(kit: Kit) -> None:
    radius, height = kit.between(0.5, 0.62), kit.between(0.95, 1.2)
    neck = kit.between(0.16, 0.24)
    shoulder = [(neck + (radius - neck) * np.cos(t), height + 0.35 * np.sin(t)) for t in np.linspace(0, np.pi / 2, 8)]
    kit.add(lathe([(0, 0), (radius * 0.94, 0), (radius, 0.06), *shoulder, (neck, height + 0.7)]), kit.plain(0))
    kit.add(band(radius * 1.012, 0.18, height - 0.05), kit.label(repeat=2), "diffuse")
    kit.add(
        cylinder(neck * 1.35, 0.26, round_px=0.04).at(z=height + 0.6),
        tx.stripes(kit.rng, kit.colours[1:], vertical=True),
    )
    kit.add(torus(neck * 1.2, 0.05).at(z=height + 0.45), kit.plain(3))


def _mug(kit: Kit) -> None:
    radius, height, thick = kit.between(0.6, 0.75), kit.between(1.0, 1.4), 0.08
    flare = kit.between(0.85, 1.15)
    top = radius * flare
    profile = [(0, 0), (radius, 0), (top, height), (top - thick, height), (radius - thick, thick), (0, thick)]
    kit.add(lathe(profile), kit.plain(4 if kit.rng.random() < 0.3 else 0))
    low, high = height * 0.14, height * 0.86
    edge = [radius + (top - radius) * z / height for z in (low, high)]
    wrap = kit.label(repeat=2) if kit.rng.random() < 0.6 else kit.print()
    kit.add(band(edge[0] * 1.012, low, high, top_radius=edge[1] * 1.012), wrap)
    handle = torus(height * 0.3, 0.09).moved(rotation("x", 90))
    kit.add(handle.at((radius + top) / 2 + 0.06, 0, height * 0.5), kit.plain(1))
    kit.add(cylinder(top - thick, 0.02).at(z=height * 0.8), kit.plain(3), "plastic")


def _carton(kit: Kit) -> None:
    x, y, z = kit.between(0.9, 1.5), kit.between(0.6, 1.1), kit.between(0.9, 1.6)
    kit.add(rounded_box(x, y, z, edge=kit.between(0.0, 0.1), atlas=True), kit.atlas())
    kit.add(rounded_box(x * 1.06, y * 1.06, 0.16, edge=0.04).at(z=z - 0.08), kit.plain(1))
    kit.add(cylinder(0.16, 0.2, round_px=0.06).at(x * 0.22, 0, z + 0.06), kit.plain(2), kit.metal_or_not())


def _rocket(kit: Kit) -> None:
    radius, height = kit.between(0.42, 0.55), kit.between(1.0, 1.3)
    kit.add(cylinder(radius, height, top_radius=radius * 0.94).at(z=0.3), kit.print())
    kit.add(band(radius * 1.01, 0.75, 1.15, top_radius=radius * 0.975), kit.label(repeat=2))
    kit.add(cylinder(radius * 0.94, 0.6, top_radius=0.05, round_px=0.05).at(z=height + 0.3), kit.plain(0))
    fin = extrude([(0, 0.1), (0.55, -0.2), (0.55, 0.15), (0, 0.75)], 0.12)
    for index in range(int(kit.rng.choice([3, 4]))):
        kit.add(fin.at(radius * 0.9, 0, 0.22).at(turn_deg=index * 360 / 3 + 30), kit.plain(1 if index else 2))
    kit.add(cylinder(radius * 0.7, 0.3, top_radius=radius * 0.5), kit.plain(5), "metal")


def _mushroom(kit: Kit) -> None:
    stem, cap = kit.between(0.26, 0.4), kit.between(0.75, 1.0)
    height = kit.between(0.7, 1.0)
    kit.add(cylinder(stem * 1.6, 0.18, round_px=0.06), kit.plain(2))
    kit.add(cylinder(stem, height, top_radius=stem * 0.85), tx.stripes(kit.rng, kit.colours[2:], vertical=False))
    kit.add(dome(cap, kit.between(0.55, 0.9)).at(z=height), tx.dots(kit.rng, [kit.colours[0], *kit.colours[3:5]]))
    kit.add(torus(cap * 0.97, 0.07).at(z=height), kit.plain(1))
    kit.add(ellipsoid(0.12, 0.12, 0.12).at(stem * 1.15, -0.1, 0.3), kit.plain(3))


def _ring_stack(kit: Kit) -> None:
    kit.add(cylinder(0.8, 0.14, round_px=0.05), kit.plain(5))
    height = 0.14
    order = kit.rng.permutation(5)
    for index in range(4):
        tube = 0.2 - 0.015 * index
        texture = kit.print() if index == 1 else kit.plain(int(order[index]))
        kit.add(torus(0.58 - 0.11 * index, tube).at(z=height + tube), texture)
        height += 1.75 * tube
    kit.add(cylinder(0.14, height), kit.plain(4))
    kit.add(ellipsoid(0.27, 0.27, 0.25).at(z=height + 0.12), kit.plain(int(order[4])), kit.metal_or_not())


def _house(kit: Kit) -> None:
    x, y, z = kit.between(1.1, 1.5), kit.between(0.8, 1.1), kit.between(0.7, 1.0)
    kit.add(rounded_box(x, y, z, atlas=True), kit.atlas())
    roof = extrude([(-x * 0.6, 0), (x * 0.6, 0), (0, kit.between(0.5, 0.8))], y * 1.15)
    kit.add(roof.at(z=z), tx.stripes(kit.rng, kit.colours[1:3] + kit.colours[4:5], vertical=True))
    kit.add(rounded_box(0.2, 0.2, 0.6, edge=0.02).at(x * 0.3, y * 0.2, z + 0.1), kit.plain(3))
    kit.add(rounded_box(0.3, 0.08, 0.5, edge=0.03).at(-x * 0.2, -y / 2, 0), kit.plain(2))
    kit.add(ellipsoid(0.05, 0.05, 0.05).at(-x * 0.12, -y / 2 - 0.05, 0.25), kit.plain(4), "metal")


def _robot(kit: Kit) -> None:
    wide, tall = kit.between(0.8, 1.1), kit.between(0.7, 0.95)
    for side in (-1, 1):
        kit.add(rounded_box(0.28, 0.42, 0.4, edge=0.06).at(side * wide * 0.27), kit.plain(2))
        arm = cylinder(0.12, tall * 0.85, round_px=0.06).moved(rotation("y", side * -18))
        kit.add(arm.at(side * wide * 0.66 - side * 0.04, 0, 0.4), kit.plain(1 if side < 0 else 3))
        kit.add(ellipsoid(0.1, 0.08, 0.1).at(side * 0.16, -0.3, 0.58 + tall), kit.plain(4))
        kit.add(ellipsoid(0.05, 0.05, 0.05).at(side * 0.16, -0.37, 0.58 + tall), kit.plain(5))
    kit.add(rounded_box(wide, 0.6, tall, edge=0.1, atlas=True).at(z=0.35), kit.atlas())
    head = rounded_box(wide * 0.7, 0.55, 0.5, edge=kit.between(0.05, 0.24)).at(z=tall + 0.36)
    kit.add(head, kit.plain(0))
    kit.add(cylinder(0.04, 0.25).at(0.1, 0, tall + 0.84), kit.plain(5), "metal")
    kit.add(ellipsoid(0.11, 0.11, 0.11).at(0.1, 0, tall + 1.1), kit.plain(3))


def _trophy(kit: Kit) -> None:
    shapes = [
        polygon(5, 0.72, inner=0.36),
        heart(0.75),
        gear(9, 0.55, 0.16),
        polygon(6, 0.7, turn_deg=0),
        polygon(4, 0.75),
    ]
    outline = shapes[int(kit.rng.integers(len(shapes)))]
    kit.add(rounded_box(1.0, 0.7, 0.36, edge=0.05, atlas=True), kit.atlas())
    kit.add(cylinder(0.15, 0.4).at(z=0.34), kit.plain(2), "metal")
    kit.add(extrude(outline, kit.between(0.26, 0.45)).at(z=1.2), kit.print(), kit.metal_or_not())
    kit.add(ellipsoid(0.2, 0.3, 0.2).at(z=1.2), kit.plain(3))


def _vase(kit: Kit) -> None:
    heights = np.linspace(0, 1.6, 18)
    phase, swing = kit.between(0, 6.3), kit.between(0.1, 0.22)
    radii = 0.5 + swing * np.sin(heights * kit.between(2.0, 4.5) + phase)
    profile = [(0.0, 0.0), *[(float(r), float(z)) for r, z in zip(radii, heights, strict=True)]]
    inside = [(float(r) - 0.07, float(z)) for r, z in zip(radii[:8:-2], heights[:8:-2], strict=True)]
    kit.add(lathe([*profile, *inside, (0.0, heights[9])], crease_deg=50), kit.print())
    kit.add(torus(float(radii[-1]) - 0.02, 0.07).at(z=1.6), kit.plain(1))
    kit.add(torus(float(radii[0]), 0.1).at(z=0.1), kit.plain(2))
    for side in range(int(kit.rng.choice([1, 2]))):
        handle = torus(0.3, 0.07).moved(rotation("x", 90)).at(float(radii[11]) + 0.08, 0, 1.0)
        kit.add(handle.at(turn_deg=180 * side), kit.plain(3))


def _car(kit: Kit) -> None:
    long, wide = kit.between(1.6, 1.9), kit.between(0.75, 0.95)
    body = rounded_box(long, wide, 0.5, edge=0.14, atlas=True).at(z=0.22)
    kit.add(body, kit.atlas())
    cab = rounded_box(long * kit.between(0.42, 0.58), wide * 0.86, kit.between(0.4, 0.6), edge=0.14)
    kit.add(cab.at(kit.between(-0.25, 0.2), 0, 0.66), kit.print())
    wheel = cylinder(0.3, 0.2, round_px=0.07).moved(rotation("x", 90))
    hub = cylinder(0.14, 0.03).moved(rotation("x", 90))
    for x in (-0.3, 0.3):
        for side in (-1, 1):
            kit.add(wheel.at(x * long, side * wide / 2 + 0.1, 0.3), kit.plain(5))
            kit.add(hub.at(x * long, side * (wide / 2 + 0.11) + (0.015 if side > 0 else 0), 0.3), kit.plain(4), "metal")
    kit.add(ellipsoid(0.08, 0.1, 0.08).at(long / 2, 0, 0.5), kit.plain(3))


def _gift(kit: Kit) -> None:
    size, tall = kit.between(1.0, 1.3), kit.between(0.8, 1.2)
    kit.add(rounded_box(size, size, tall, edge=0.05), kit.print())
    ribbon = kit.plain(1)
    kit.add(rounded_box(size * 0.2, size * 1.03, tall * 1.02, edge=0.01), ribbon, "plastic")
    kit.add(rounded_box(size * 1.03, size * 0.2, tall * 1.02, edge=0.01), ribbon, "plastic")
    for side in (-1, 1):
        bow = torus(0.2, 0.08).moved(rotation("y", side * 35) @ rotation("x", 90))
        kit.add(bow.at(side * 0.2, 0, tall + 0.2), kit.plain(2))
    kit.add(rounded_box(0.34, 0.05, 0.3, edge=0.01).at(size * 0.3, -size / 2, tall * 0.55), kit.label())


def _gear_toy(kit: Kit) -> None:
    kit.add(rounded_box(1.5, 0.6, 0.22, edge=0.06), kit.print())
    for x, z, teeth, colour in ((-0.4, 0.85, 10, 0), (0.48, 0.62, 7, 1)):
        wheel = extrude(gear(teeth, 0.06 * teeth - 0.1, 0.13), 0.3).at(x, 0, z)
        kit.add(wheel, kit.plain(colour), kit.metal_or_not())
        front = cylinder(0.05 * teeth - 0.15, 0.36, round_px=0.03).moved(rotation("x", 90)).at(x, 0.18, z)
        kit.add(front, kit.label() if colour == 0 else kit.print())
        kit.add(rounded_box(0.16, 0.2, z).at(x, 0.2, 0), kit.plain(3))


def _cone_toy(kit: Kit) -> None:
    low, height = kit.between(0.6, 0.75), kit.between(1.2, 1.6)
    kit.add(rounded_box(1.5, 1.5, 0.14, edge=0.05), kit.plain(1))
    kit.add(
        cylinder(low, height, top_radius=0.12, round_px=0.06).at(z=0.12),
        tx.stripes(kit.rng, kit.colours, vertical=False),
    )
    kit.add(ellipsoid(0.22, 0.22, 0.22).at(z=height + 0.22), kit.plain(2), kit.metal_or_not())
    kit.add(torus(low * 0.8, 0.11).at(z=0.3), kit.plain(3))
    kit.add(rounded_box(0.5, 0.04, 0.4, edge=0.01).moved(rotation("x", -18)).at(0, -low * 0.74, 0.48), kit.label())


def _tower(kit: Kit) -> None:
    z = 0.0
    for level in range(int(kit.rng.choice([3, 4]))):
        wide, tall = kit.between(0.6, 1.15) * (1 - 0.1 * level), kit.between(0.4, 0.6)
        turn = kit.between(-35, 35)
        shape = int(kit.rng.integers(4))
        if shape == 0:
            kit.add(
                rounded_box(wide, wide * kit.between(0.6, 1.0), tall, edge=0.08, atlas=True).at(z=z, turn_deg=turn),
                kit.atlas(),
            )
        elif shape == 1:
            kit.add(cylinder(wide / 2, tall, round_px=0.05).at(z=z, turn_deg=turn), kit.print(), kit.metal_or_not())
        elif shape == 2:
            block = extrude(polygon(6, wide / 2, turn_deg=0), tall).moved(rotation("x", 90)).at(z=z + tall / 2)
            kit.add(block.at(turn_deg=turn), kit.print())
        else:
            kit.add(
                cylinder(wide / 2, tall, top_radius=wide / 3, round_px=0.04).at(z=z, turn_deg=turn), kit.label(repeat=2)
            )
        z += tall
    tops = [dome(0.35, 0.35), cylinder(0.35, 0.5, top_radius=0.03, round_px=0.02), ellipsoid(0.3, 0.3, 0.3).at(z=0.2)]
    kit.add(tops[int(kit.rng.integers(3))].at(z=z), kit.plain(int(kit.rng.integers(4))))


def _plush(kit: Kit) -> None:
    body, head = kit.between(0.45, 0.65), kit.between(0.36, 0.5)
    tall = kit.between(0.55, 0.8)
    kit.add(ellipsoid(body, body * 0.85, tall).at(z=tall), kit.print(), "diffuse")
    top = 2 * tall + head * 0.7
    kit.add(ellipsoid(head, head * 0.9, head).at(z=top), kit.plain(0), "diffuse")
    ear = (kit.between(0.1, 0.2), 0.08, kit.between(0.12, 0.4))
    for side in (-1, 1):
        kit.add(ellipsoid(*ear).at(side * head * 0.65, 0, top + head * 0.8), kit.plain(1), "diffuse")
        kit.add(ellipsoid(0.17, 0.2, 0.17).at(side * body * 0.6, -body * 0.6, 0.16), kit.plain(2), "diffuse")
        arm = ellipsoid(0.13, 0.13, 0.32).moved(rotation("y", side * kit.between(15, 70)))
        kit.add(arm.at(side * body * 0.95, -0.1, tall * 1.25), kit.plain(2), "diffuse")
        kit.add(ellipsoid(0.06, 0.05, 0.07).at(side * head * 0.4, -head * 0.84, top + 0.06), kit.plain(5), "plastic")
    kit.add(ellipsoid(head * 0.4, 0.16, head * 0.3).at(0, -head * 0.82, top - head * 0.25), kit.plain(4), "diffuse")
    kit.add(ellipsoid(body * 0.55, 0.12, tall * 0.6).at(0, -body * 0.78, tall), kit.label(), "diffuse")


def _solid(kit: Kit) -> tuple[Mesh, float]:
    """A random solid, from boxes, revolved profiles and extruded outlines, standing on z = 0; and its height."""
    wide, tall = kit.between(0.35, 1.1), kit.between(0.25, 1.0)
    kind = int(kit.rng.integers(5))
    if kind == 0:
        return rounded_box(wide, wide * kit.between(0.5, 1.0), tall, edge=kit.between(0.0, 0.12)), tall
    if kind == 1:
        heights = np.linspace(0, tall, 9)
        radii = wide * (0.5 + kit.between(0.05, 0.2) * np.sin(heights * kit.between(2, 9) + kit.between(0, 6)))
        inner = [(float(r), float(z)) for r, z in zip(radii, heights, strict=True)]
        return lathe([(0.0, 0.0), *inner, (0.0, tall)], crease_deg=50), tall
    if kind == 2:
        sides = int(kit.rng.integers(3, 8))
        outline = polygon(sides, wide * 0.6, inner=wide * 0.3 if kit.rng.random() < 0.4 else None)
        if kit.rng.random() < 0.5:
            return extrude(outline, tall).moved(rotation("x", 90)).at(z=tall / 2), tall
        low = float(np.asarray(outline)[:, 1].min())
        return extrude(outline, kit.between(0.2, 0.5)).at(z=-low), float(np.asarray(outline)[:, 1].max()) - low
    if kind == 3:
        return ellipsoid(wide * 0.55, wide * kit.between(0.35, 0.55), tall / 2).at(z=tall / 2), tall
    return cylinder(wide / 2, tall, top_radius=wide * kit.between(0.1, 0.6), round_px=0.03), tall


def _assembly(kit: Kit) -> None:
    """A pile of random solids with some at its sides: no known thing, for variety."""
    z = 0.0
    for _ in range(int(kit.rng.integers(2, 5))):
        mesh, tall = _solid(kit)
        texture = (kit.print, kit.label, lambda: kit.plain(int(kit.rng.integers(6))))[int(kit.rng.integers(3))]()
        turn = kit.between(0, 360)
        kit.add(mesh.at(kit.between(-0.1, 0.1), kit.between(-0.1, 0.1), z, turn_deg=turn), texture, kit.metal_or_not())
        z += tall * 0.97
    for _ in range(int(kit.rng.integers(1, 5))):
        mesh, _ = _solid(kit)
        small = mesh.moved(scaling(*[kit.between(0.25, 0.5)] * 3))
        place = small.at(kit.between(0.3, 0.6), 0, kit.between(0, 0.7) * z).at(turn_deg=kit.between(0, 360))
        kit.add(place, kit.plain(int(kit.rng.integers(6))))


FAMILIES = (_can, _bottle, _mug, _carton, _rocket, _mushroom, _ring_stack, _house, _robot, _trophy)
FAMILIES += (_vase, _car, _gift, _gear_toy, _cone_toy, _tower)
# The shipped clips and cases were made of the 16 above; the training world, whose seeds are higher, has these as well.
WORLD_FAMILIES = (*FAMILIES, _plush, _assembly, _assembly)


def choose_style(seed: int) -> tx.Style:
    """Held-out objects bear words of other syllables in another font, and every third has patterns of its own."""
    if seed not in HELD_OUT_SEEDS:
        return tx.HOME
    return tx.FOREIGN if seed % 3 == 0 else tx.FOREIGN_WORDS


def build_object(seed: int) -> list[Part]:
    """Parts of the object of this seed, standing on z = 0, centred, its largest extent WIDTH.

    The family goes round with the seed, so that neighbouring seeds differ in shape as well as in colour.
    """
    kit = Kit(seed)
    families = WORLD_FAMILIES if seed >= TRAINING_SEEDS.start else FAMILIES
    families[seed % len(families)](kit)
    points = np.concatenate([part.mesh.vertices for part in kit.parts])
    low, high = points.min(0), points.max(0)
    extent = high - low
    stretch = kit.rng.uniform(0.92, 1.08, 3) * np.array([max(1.0, extent[2] / (1.7 * max(extent[:2])))] * 2 + [1.0])
    fit = WIDTH / float((extent * stretch).max())
    middle = (low + high) / 2
    matrix = scaling(*(stretch * fit)) @ translation(-middle[0], -middle[1], -low[2])
    return [Part(p.mesh.moved(matrix), p.texture, p.material, p.roughness) for p in kit.parts]
