"""Check that each core module is covered by its own test file, alone, branches included.

`src/jobqueue_broadcast/topics.py` and `_topics.py` both belong to `tests/test_topics.py`. Covering
a module only by way of others' tests does not count: such tests stop covering it as soon as the
others change, and say little about what went wrong.

Usage: python tools/check_core_coverage.py [MODULE ...]
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = "jobqueue_broadcast"
# These need sockets or a terminal; tests of whole connections cover them.
NOT_CORE = {"__init__", "__main__", "client"}

ROOT = Path(__file__).parent.parent


def installed_package() -> Path:
    """Where the package is imported from: the source tree, or a wheel in site-packages."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed")
    return Path(spec.origin).parent


def core_modules(package: Path) -> list[Path]:
    return sorted(path for path in package.glob("*.py") if path.stem not in NOT_CORE)


def check(module: Path) -> str | None:
    """Run the module's own tests; return what is wrong, or None."""
    test_file = ROOT / "tests" / f"test_{module.stem.removeprefix('_')}.py"
    if not test_file.exists():
        return f"{module.name}: there is no tests/{test_file.name}"
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"COVERAGE_FILE": str(Path(folder, "coverage"))}
        # One seed, so that a line reached by a lucky example alone is not missed at random.
        tests = coverage(
            env, "run", "--branch", f"--include={module}",
            "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", str(test_file),
        )  # fmt: skip
        if tests.returncode != 0:
            return f"{module.name}: tests/{test_file.name} failed alone\n{tests.stdout}"
        report = coverage(env, "report", "--fail-under=100", "--precision=2", "--show-missing")
        if report.returncode != 0:
            return f"{module.name}: tests/{test_file.name} alone misses lines\n{report.stdout}"
    return None


def coverage(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def main() -> None:
    wanted = set(sys.argv[1:])
    modules = core_modules(installed_package())
    unknown = wanted - {module.stem for module in modules}
    if unknown:
        raise SystemExit(f"no such core module: {', '.join(sorted(unknown))}")
    if wanted:
        modules = [module for module in modules if module.stem in wanted]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(check, modules) if problem is not None]
    for problem in problems:
        print(problem, file=sys.stderr)
    covered = len(modules) - len(problems)
    print(f"{covered} of {len(modules)} core modules are covered, each by its own tests")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
