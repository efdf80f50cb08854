"""Renders everything that the demo ships, and training objects: `python -m demo.render --help`.

Needs the extra `render` (Mitsuba 3 and PyAV). Each clip, case or picture is a task; what is on disk is not made again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def start_worker(variant: str) -> None:
    """Choose Mitsuba's variant, before any module that uses it; one thread, since the pool has one process per core."""
    import drjit
    import mitsuba

    mitsuba.set_variant(variant)
    drjit.set_thread_count(1)
    mitsuba.set_log_level(mitsuba.LogLevel.Error)


def _call(task: Callable[[], object]) -> object:
    return task()


def run_pool(tasks: Sequence[Callable[[], object]], title: str, args: argparse.Namespace) -> list[object]:
    """Run the tasks in worker processes; one line of progress every few seconds. The first error ends it."""
    context = multiprocessing.get_context("spawn")
    started = shown = time.monotonic()
    results: list[object] = []
    with ProcessPoolExecutor(args.workers, context, start_worker, (args.variant,)) as pool:
        futures = [pool.submit(_call, task) for task in tasks]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                now = time.monotonic()
                if now - shown > 5 or len(results) == len(tasks):
                    rate = (now - started) / len(results)
                    left = rate * (len(tasks) - len(results))
                    print(f"{title}: {len(results)}/{len(tasks)}, {now - started:.0f} s, {left:.0f} s left", flush=True)
                    shown = now
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


# The tasks import their modules when they run: those need Mitsuba's variant to be set.
def _scene_task(seed: int, folder: Path, size_px: int, num_frames: int, multi: bool) -> None:
    from demo.segdata import write_scene

    write_scene(seed, folder, size_px=size_px, num_frames=num_frames, multi=multi)


def _world_task(seed: int, folder: Path) -> None:
    from demo.training_world import write_object

    write_object(seed, folder)


def _clip_task(index: int, folder: Path, first_seed: int) -> None:
    from demo.encode import write_clip

    write_clip(index, folder, first_seed=first_seed)


def _example_task(folder: Path) -> None:
    from demo.example import write_example

    write_example(folder)


def _case_task(index: int, folder: Path, scenes: Path | None) -> None:
    from demo.cases import write_case

    write_case(index, folder, scenes=scenes)


def render_scenes(args: argparse.Namespace) -> None:
    """Pictures of one to four objects with exact masks."""
    # Steps of 5: a scene draws its objects from the seeds that follow its own.
    seeds = [args.first + 5 * i for i in range(args.count)]
    tasks = [partial(_scene_task, seed, args.out, args.px, args.frames, args.multi) for seed in seeds]
    run_pool(tasks, "scenes", args)


def render_world(args: argparse.Namespace) -> None:
    """The base model's training world: held-out objects first, then training objects (14 views each)."""
    from demo.catalogue import HELD_OUT_SEEDS, TRAINING_SEEDS

    seeds = [*HELD_OUT_SEEDS[: args.held_out], *TRAINING_SEEDS[args.skip : args.skip + args.count]]
    run_pool([partial(_world_task, seed, args.out) for seed in seeds], "world", args)


def pack_world_shards(args: argparse.Namespace) -> None:
    """Pack a rendered world, or as much of it as there is, as shards for `make base`. Needs no renderer."""
    from demo.world_shards import pack_world

    print(", ".join(f"{n} {name}" for name, n in pack_world(args.world, args.out, quality=args.quality).items()))


def render_clips(args: argparse.Namespace) -> None:
    """The demo clips with their masks, then their archive; or others like them, packed beside their pictures."""
    from demo.archive import pack_clips
    from demo.catalogue import CLIP_SEEDS, NUM_CLIPS

    chosen = args.only or range(NUM_CLIPS)
    run_pool([partial(_clip_task, index, args.out, args.first) for index in chosen], "clips", args)
    if args.first != CLIP_SEEDS.start:
        pack_clips(args.out, args.out, chosen)
    elif not args.only:
        pack_clips(args.out, ASSETS)


def render_example(args: argparse.Namespace) -> None:
    """The pictures that `imprint composite` is shown with: an object, a background and a mask."""
    run_pool([partial(_example_task, args.out)], "example", args)


def render_cases(args: argparse.Namespace) -> None:
    """The test cases with ground truth, then their archive."""
    from demo.archive import pack_cases
    from demo.catalogue import NUM_CASES

    chosen = args.only or range(NUM_CASES)
    scenes = ASSETS / "cases.tar" if args.keep_scenes else None
    run_pool([partial(_case_task, index, args.out, scenes) for index in chosen], "cases", args)
    if not args.only:
        pack_cases(args.out, ASSETS)


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.render", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    entries = {"clips": render_clips, "cases": render_cases, "world": render_world, "scenes": render_scenes}
    entries |= {"example": render_example}
    for name, action in entries.items():
        command = commands.add_parser(name, help=(action.__doc__ or "").strip(), description=action.__doc__)
        command.add_argument("--out", type=Path, required=True, help="folder for the pictures; keeps what is there")
        command.add_argument("--workers", type=int, default=2, help="processes (default 2)")
        command.add_argument(
            "--variant",
            default="scalar_rgb",
            choices=["scalar_rgb", "llvm_ad_rgb"],
            help="Mitsuba's; llvm_ad_rgb is several times faster and needs LLVM 17 or newer",
        )
        command.set_defaults(action=action)
        if name in ("clips", "cases"):
            command.add_argument(
                "--only", type=int, nargs="+", help="numbers to render; of the demo's none are packed then"
            )
        if name == "cases":
            command.add_argument(
                "--keep-scenes",
                action="store_true",
                help="render references alone; the rest comes from the shipped tar",
            )
        elif name == "clips":
            command.add_argument("--first", type=int, default=0, help="seed of the first; 0: the demo's (default)")
        elif name == "world":
            command.add_argument("--count", type=int, default=2000, help="training objects (default 2000)")
            command.add_argument(
                "--skip", type=int, default=0, help="training objects to pass over first: others (default 0)"
            )
            command.add_argument("--held-out", type=int, default=100, help="held-out objects (default 100)")
        elif name == "scenes":
            command.add_argument("--count", type=int, default=300, help="how many (default 300)")
            command.add_argument("--first", type=int, default=100_000, help="first seed (default: SEGMENTER_SEEDS)")
            command.add_argument("--px", type=int, default=128, help="side in pixels")
            command.add_argument("--frames", type=int, default=2, help="per scene (default 2)")
            command.add_argument("--multi", action="store_true", help="none of one object alone")
    pack = commands.add_parser("pack", help=pack_world_shards.__doc__, description=pack_world_shards.__doc__)
    pack.add_argument("--world", type=Path, required=True, help="folder that `world` wrote")
    pack.add_argument("--out", type=Path, required=True, help="folder for the shards; replaced")
    pack.add_argument("--quality", type=int, help="encode colours anew as WebP of this quality, for a smaller archive")
    pack.set_defaults(action=pack_world_shards)
    return parser


def main() -> None:
    """Entry point."""
    args = build_parser().parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
