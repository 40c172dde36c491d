"""The command: measure, show, keep, compare, and profile."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks import profiling, report
from benchmarks.programs import NCHAN, NODE, ROOT, install_peers, missing
from benchmarks.results import Goal, Results
from benchmarks.scenarios import Bench, Settings

ALL = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8")
REDIS = "REDIS"
SCENARIOS = (*ALL, REDIS)
PAGE = ROOT / "docs" / "explanation" / "performance.md"


def main() -> None:
    arguments = _parser().parse_args()
    match arguments.command:
        case "compare":
            print(report.comparison(_load(arguments.before), _load(arguments.after)))
        case "profile":
            profiling.main()
        case "docs":
            report.write_docs(_load(arguments.results), PAGE)
        case _:
            _measure(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure S1 to S8 beside peers, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="small and short: is all well?")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="such as S1,S3,redis")
    parser.add_argument("--connections", type=int, help="to each server (2000)")
    parser.add_argument("--runs", type=int, help="of each figure, in turns (5)")
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    parser.add_argument("--write-docs", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    parser.add_argument(
        "--install-peers", action="store_true", help="ws by npm; nginx and nchan by apt, as root"
    )
    parser.add_argument("--no-peers", action="store_true", help="only websockets and transports")
    commands = parser.add_subparsers(dest="command")
    compare = commands.add_parser("compare", help="two kept results side by side")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    commands.add_parser("profile", help="where the time of a broadcast goes")
    docs = commands.add_parser("docs", help="write kept results into the page")
    docs.add_argument("results", type=Path)
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    wanted = {name.strip().upper() for name in arguments.only.split(",")}
    if unknown := sorted(wanted - set(SCENARIOS)):
        raise SystemExit(
            f"--only: expected some of {', '.join(SCENARIOS)}, got {', '.join(unknown)}"
        )
    if arguments.install_peers:
        install_peers()
    results = Results(
        machine=_machine(),
        settings={"connections": settings.connections, "runs": settings.runs},
    )
    measure(settings, wanted, results)
    results.settings["load of the machine at the end"] = f"{os.getloadavg()[0]:.1f}"
    print(report.text(results))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    if arguments.write_docs:
        report.write_docs(results, PAGE)


def measure(settings: Settings, wanted: set[str], results: Results) -> None:
    """Measure the wanted scenarios."""
    _allow_files(settings.connections)
    bench = Bench(settings, results, _tell)
    if wanted & {"S1", "S2"}:
        bench.fan_out(wanted)
    for name, scenario in {
        "S3": bench.deflate,
        "S4": bench.idle_memory,
        "S6": bench.own_jobs,
        "S7": bench.overload,
        "S8": bench.resume,
    }.items():
        if name in wanted:
            scenario()
    if "S5" in wanted:
        _core(settings, results)
    if REDIS in wanted:
        _through_redis(settings, results)


def _through_redis(settings: Settings, results: Results) -> None:
    _tell(REDIS)
    if importlib.util.find_spec("redis") is None:
        results.absent["Redis"] = "redis is not installed"
        return
    # Only here: all the rest works without the package.
    from benchmarks import redis_path

    events = max(settings.core // 5, 1_000)
    redis_path.measure(results, events=events, paced=events // 20, runs=settings.runs)


def _core(settings: Settings, results: Results) -> None:
    _tell("S5")
    few = max(settings.core // 100, 100)
    command = [sys.executable, "-m", "benchmarks.core", str(few), str(settings.core)]
    ran = subprocess.run(
        [*command, str(settings.runs)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(ran.stdout)
    ours = "core"
    small, large = (f"{count:,} clients × 10 jobs" for count in (few, settings.core))
    for what, values in ((small, found["small"]), (large, found["large"])):
        for value in values:
            results.add("S5", what, ours, "CPU µs per event", value)
    results.compare("S5", f"broadcast at {large}, over {small}", (large, ours), (small, ours), 1.2)
    subscription = found["subscription"]
    results.goals.append(
        Goal(
            scenario="S5",
            text="bytes per subscription, beside the ids",
            reached=[subscription],
            limit=400,
        )
    )
    for what, value in (
        ("client, beside its connection", found["client"]),
        ("subscription, beside the ids", subscription),
        ("retained event of 125 bytes, frame included", found["event"]),
        ("open job: submitted, with progress", found["open_job"]),
        ("ended job: submitted, progress, outcome", found["ended_job"]),
    ):
        results.add("memory", what, ours, "bytes", value)


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {
        "connections": arguments.connections,
        "runs": arguments.runs,
    }
    quick = {
        "connections": 100,
        "runs": 1,
        "seconds": 0.05,
        "flood_seconds": 0.5,
        "retained": 1_000,
        "core": 2_000,
    }
    chosen = (quick if arguments.quick else {}) | {
        name: value for name, value in given.items() if value is not None
    }
    return msgspec.convert({**chosen, "others": not arguments.no_peers}, Settings)


def _allow_files(connections: int) -> None:
    """Let children open as many files as connections, and say when they may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 500
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise SystemExit(f"{connections} connections need {wanted} open files, got {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _machine() -> dict[str, str]:
    found = {
        "CPU:": f"{_cpu_model()} ({os.cpu_count()} cores)",
        "Linux": platform.release(),
        "Python": platform.python_version(),
    }
    for name in (
        "websockets", "msgspec", "uvloop", "socketify", "starlette", "uvicorn", "python-socketio",
    ):  # fmt: skip
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if missing(NODE) is None:
        found["Node.js"] = _output("node", "--version")
    if missing(NCHAN) is None:
        found["nginx"] = _output("nginx", "-v").rpartition("/")[2]
    return found


def _output(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return (ran.stdout or ran.stderr).strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _tell(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def _load(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


if __name__ == "__main__":
    main()
