"""Triangle meshes of simple solids, in numpy. Lengths are in scene units, z points up, faces wind outwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Vertices and normals (N, 3), texture coordinates (N, 2) with v upwards, triangles (M, 3)."""

    vertices: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray

    def moved(self, matrix: np.ndarray) -> Mesh:
        """Apply a 4 x 4 affine matrix; normals go by its inverse transpose."""
        linear = matrix[:3, :3]
        normals = self.normals @ np.linalg.inv(linear)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        return Mesh(self.vertices @ linear.T + matrix[:3, 3], normals, self.uvs, self.faces)

    def at(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, *, turn_deg: float = 0.0) -> Mesh:
        """Turn about z, then move."""
        return self.moved(translation(x, y, z) @ rotation("z", turn_deg))


def translation(x: float, y: float, z: float) -> np.ndarray:
    """4 x 4 matrix that moves by (x, y, z)."""
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def scaling(x: float, y: float, z: float) -> np.ndarray:
    """4 x 4 matrix that scales the axes."""
    return np.diag([x, y, z, 1.0])


def rotation(axis: str, angle_deg: float) -> np.ndarray:
    """4 x 4 right-handed rotation about the axis named "x", "y" or "z"."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    cosine, sine = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    matrix = np.eye(4)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def compute_view_direction(position: np.ndarray, centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Unit vector from an object to a camera in the object's own axes: `position` of the camera and `centre` of the
    object are in the world, `turn` [3, 3] is the object's rotation, whatever its scale."""
    away = (np.asarray(position) - np.asarray(centre)) @ (turn / np.linalg.norm(turn, axis=0))
    return away / np.linalg.norm(away)


def compute_angle_deg(first: np.ndarray, second: np.ndarray) -> float:
    """0 to 180 degrees between two unit vectors."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)))


def _grid_faces(num_rows: int, num_columns: int, offset: int = 0) -> np.ndarray:
    """Triangles of a vertex grid, row-major; the normal is (along columns) x (along rows)."""
    corner = (np.arange(num_rows - 1)[:, None] * num_columns + np.arange(num_columns - 1)[None]).ravel() + offset
    right, above = corner + 1, corner + num_columns
    return np.concatenate([np.stack([corner, right, above + 1], 1), np.stack([corner, above + 1, above], 1)])


def _joined(pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Mesh:
    vertices, normals, uvs, faces, offset = [], [], [], [], 0
    for piece_vertices, piece_normals, piece_uvs, piece_faces in pieces:
        vertices.append(piece_vertices)
        normals.append(piece_normals)
        uvs.append(piece_uvs)
        faces.append(piece_faces + offset)
        offset += len(piece_vertices)
    return Mesh(np.concatenate(vertices), np.concatenate(normals), np.concatenate(uvs), np.concatenate(faces))


def _edge_normals(points: np.ndarray, crease_deg: float) -> np.ndarray:
    """Normals (K-1, 2 ends, 2) of a 2-D polyline, to the right of its direction; smooth below the crease angle."""
    step = np.diff(points, axis=0)
    flat = np.stack([step[:, 1], -step[:, 0]], 1)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    ends = np.stack([flat, flat], 1)
    for index in range(len(flat) - 1):
        if flat[index] @ flat[index + 1] > np.cos(np.radians(crease_deg)):
            mean = flat[index] + flat[index + 1]
            ends[index, 1] = ends[index + 1, 0] = mean / np.linalg.norm(mean)
    return ends


def lathe(profile: list[tuple[float, float]], *, segments: int = 40, crease_deg: float = 40.0) -> Mesh:
    """Revolve (radius, height) points, listed from the bottom up the outside, about z. u runs round, v along."""
    points = np.asarray(profile, float)
    ends = _edge_normals(points, crease_deg)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    along /= along[-1]
    angle = np.linspace(-np.pi, np.pi, segments + 1)  # the front (-y) lies at u = 0.25
    cosine, sine = np.cos(angle), np.sin(angle)
    pieces = []
    for index in range(len(points) - 1):
        rings = [(points[index + end], ends[index, end], along[index + end]) for end in (0, 1)]
        vertices = [np.stack([r * cosine, r * sine, np.full_like(angle, z)], 1) for (r, z), _, _ in rings]
        normals = [np.stack([n * cosine, n * sine, np.full_like(angle, m)], 1) for _, (n, m), _ in rings]
        uvs = [np.stack([np.linspace(0, 1, segments + 1), np.full_like(angle, v)], 1) for _, _, v in rings]
        faces = _grid_faces(2, segments + 1)
        pieces.append((np.concatenate(vertices), np.concatenate(normals), np.concatenate(uvs), faces))
    return _joined(pieces)


def cylinder(radius: float, height: float, *, top_radius: float | None = None, round_px: float = 0.0) -> Mesh:
    """Side of a cylinder or cone frustum standing on z = 0, closed; `round_px` rounds both rims (scene units)."""
    top = radius if top_radius is None else top_radius
    if round_px <= 0:
        return lathe([(0, 0), (radius, 0), (top, height), (0, height)])
    turn = np.linspace(0, np.pi / 2, 6)
    low = [(radius - round_px + round_px * np.sin(t), round_px - round_px * np.cos(t)) for t in turn]
    high = [(top - round_px + round_px * np.cos(t), height - round_px + round_px * np.sin(t)) for t in turn]
    return lathe([(0, 0), *low, *high, (0, height)])


def band(radius: float, low: float, high: float, *, top_radius: float | None = None) -> Mesh:
    """Open ring from height `low` to `high`: a label about a can. Its whole texture is the band."""
    return lathe([(radius, low), (radius if top_radius is None else top_radius, high)])


def ellipsoid(radius_x: float, radius_y: float, radius_z: float) -> Mesh:
    """Ellipsoid about the origin."""
    turn = np.linspace(-np.pi / 2, np.pi / 2, 22)
    ball = lathe([(float(np.cos(t)), float(np.sin(t))) for t in turn], crease_deg=60)
    return ball.moved(scaling(radius_x, radius_y, radius_z))


def dome(radius: float, height: float) -> Mesh:
    """Half an ellipsoid on z = 0, closed below."""
    turn = np.linspace(0, np.pi / 2, 14)
    return lathe([(0, 0), *[(radius * float(np.cos(t)), height * float(np.sin(t))) for t in turn]])


def torus(radius: float, tube: float, *, arc_deg: float = 360.0) -> Mesh:
    """Torus about z at the origin; a smaller arc starts at angle 0 (open ends, to be hidden in a body)."""
    around, across = np.radians(np.linspace(0, arc_deg, 41)), np.linspace(0, 2 * np.pi, 19)
    a, b = (g.ravel() for g in np.meshgrid(around, across, indexing="xy"))
    normals = np.stack([np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)], 1)
    centre = np.stack([np.cos(a), np.sin(a), np.zeros_like(a)], 1) * radius
    uvs = np.stack([a / np.radians(arc_deg), b / (2 * np.pi)], 1)
    return Mesh(centre + tube * normals, normals, uvs, _grid_faces(len(across), len(around)))


def rounded_box(size_x: float, size_y: float, size_z: float, *, edge: float = 0.0, atlas: bool = False) -> Mesh:
    """Box standing on z = 0 with edges rounded by `edge`. `atlas`: each face has its own cell of a 3 x 2 texture."""
    half = np.array([size_x, size_y, size_z]) / 2
    edge = min(edge, 0.95 * float(half.min()))
    # Per face: axis that it looks along, sign, and the axes (with sign) of its u and v. Front (-y) comes first.
    layout = [(1, -1, 0, 1, 2, 1), (0, 1, 1, 1, 2, 1), (1, 1, 0, -1, 2, 1), (0, -1, 1, -1, 2, 1)]
    layout += [(2, 1, 0, 1, 1, 1), (2, -1, 0, 1, 1, -1)]
    bend = edge * np.array([0.0, 0.1, 0.3, 0.6, 1.0]) if edge > 0 else np.zeros(1)
    pieces = []
    for cell, (axis, sign, u_axis, u_sign, v_axis, v_sign) in enumerate(layout):
        u_line, v_line = (np.concatenate([-half[a] + bend, half[a] - bend[::-1]]) for a in (u_axis, v_axis))
        u, v = (g.ravel() for g in np.meshgrid(u_line, v_line, indexing="xy"))
        points = np.zeros((len(u), 3))
        points[:, axis], points[:, u_axis], points[:, v_axis] = sign * half[axis], u_sign * u, v_sign * v
        core = np.clip(points, -(half - edge), half - edge)
        normals = points - core if edge > 0 else np.eye(3)[axis] * sign * np.ones((len(u), 1))
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        uvs = np.stack([u / (2 * half[u_axis]) + 0.5, v / (2 * half[v_axis]) + 0.5], 1)
        if atlas:
            uvs = (np.clip(uvs, 0.01, 0.99) + np.array([cell % 3, 1 - cell // 3])) / np.array([3, 2])
        vertices = core + edge * normals if edge > 0 else points
        pieces.append((vertices + np.array([0, 0, half[2]]), normals, uvs, _grid_faces(len(v_line), len(u_line))))
    return _joined(pieces)


def extrude(outline: list[tuple[float, float]], depth: float, *, crease_deg: float = 35.0) -> Mesh:
    """Prism of a counter-clockwise (x, z) outline, star-shaped about its mean, along y and centred on y = 0."""
    points = np.asarray(outline, float)
    low, span = points.min(0), np.ptp(points, axis=0)
    centre = points.mean(0)
    caps = []
    for side in (-1, 1):
        flat = np.concatenate([points, centre[None]])
        vertices = np.stack([flat[:, 0], np.full(len(flat), side * depth / 2), flat[:, 1]], 1)
        uvs = (flat - low) / span
        uvs[:, 0] = uvs[:, 0] if side < 0 else 1 - uvs[:, 0]
        ring = np.arange(len(points))
        faces = np.stack([ring, np.roll(ring, -1), np.full_like(ring, len(points))], 1)
        caps.append((vertices, np.tile([0.0, side, 0.0], (len(flat), 1)), uvs, faces if side < 0 else faces[:, ::-1]))
    closed = np.concatenate([points, points[:1]])
    ends = _edge_normals(closed, crease_deg)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    for index in range(len(points)):
        pair = closed[[index, index + 1, index, index + 1]]
        depth_y = np.array([-1, -1, 1, 1]) * depth / 2
        normal = np.concatenate([ends[index], ends[index]])
        uvs = np.stack([along[[index, index + 1] * 2] / along[-1] * 3, np.array([0, 0, 1, 1]) * 0.9], 1)
        vertices = np.stack([pair[:, 0], depth_y, pair[:, 1]], 1)
        normals = np.stack([normal[:, 0], np.zeros(4), normal[:, 1]], 1)
        caps.append((vertices, normals, uvs, np.array([[0, 3, 1], [0, 2, 3]])))
    return _joined(caps)


def polygon(num_points: int, radius: float, *, inner: float | None = None, turn_deg: float = 90.0) -> list:
    """Counter-clockwise outline of a regular polygon, or a star whose notches lie at radius `inner`."""
    count = num_points * (2 if inner is not None else 1)
    angles = np.radians(turn_deg) + 2 * np.pi * np.arange(count) / count
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def gear(num_teeth: int, radius: float, tooth: float) -> list:
    """Counter-clockwise outline of a gear wheel with square teeth of height `tooth`."""
    shape = [(0.0, 0.0), (0.08, 1.0), (0.42, 1.0), (0.5, 0.0)]
    outline = []
    for index in range(num_teeth):
        for part, lift in shape:
            angle = 2 * np.pi * (index + part) / num_teeth
            reach = radius + tooth * lift
            outline.append((float(reach * np.cos(angle)), float(reach * np.sin(angle))))
    return outline


def heart(radius: float) -> list:
    """Counter-clockwise outline of a heart."""
    angle = np.linspace(0, 2 * np.pi, 49)[:-1]
    x = 16 * np.sin(angle) ** 3
    z = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return [(float(a), float(b)) for a, b in zip(-x * radius / 17, z * radius / 17, strict=True)]
