"""Fuzz each target for a while: `python fuzz/run.py --seconds 60 [--target commands]`.

With atheris (Linux on x86-64, CPython 3.11 to 3.13) coverage leads the way. Where there is no
atheris, a mutator of the standard library works over the corpus; it says so, and finds less.

What fails is written to `fuzz/corpus/TARGET/` and replayed by `tests/security/test_fuzz_corpus.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
ATHERIS = importlib.util.find_spec("atheris") is not None

DICTIONARY = [
    b'{"type":"', b'"subscribe"', b'"topics":["jobs"]', b'"filters":{', b'"priority_range":[1,2]',
    b'"submit_job"', b'"subscribe_progress"', b'"get_job_status"', b'"cancel_job"', b'"job_id":"',
    b'"message_id":"', b'"resync_request"', b'"since_timestamp":', b'"heartbeat"', b'"timestamp":1',
    b"/ws/monitor/", b"/ws/client/", b"?token=", b"&topics=jobs", b"&resume=new", b"&jobs=a,b",
    b"\nBearer ", b"%ff", b"%00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"1e999", b"9" * 30,
    b"[" * 99,
    b'{"type":"$', b'$job_accepted"', b'$principal_revoked"', b'"update_job_progress"',
    b"\x81\x80\0\0\0\0", b"\xc1\x82\0\0\0\0", b"\x00\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x88\x82",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", action="append", help="one of the targets; by default all")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return with_atheris(options.inside, options.seconds, options.seed)
    targets = options.target or ["frames", "commands", "handshakes", "backplane"]
    if not ATHERIS:
        print("atheris is not installed here (it has wheels for CPython 3.11 to 3.13 on x86-64 "
              "Linux): mutating the corpus at random instead, without coverage")  # fmt: skip
    share = options.seconds / len(targets)
    failed = 0
    for name in targets:
        failed += in_a_process(name, share) if ATHERIS else at_random(name, share, options.seed)
    print("nothing was found" if not failed else f"{failed} targets failed: see above")
    return int(failed > 0)


# --- with atheris --------------------------------------------------------------------------------


def in_a_process(name: str, seconds: float) -> int:
    """libFuzzer ends the process it runs in, so each target has one of its own."""
    print(f"{name}: atheris, {seconds:.0f} s", flush=True)
    command = [sys.executable, __file__, "--inside", name, "--seconds", str(seconds)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    shown = [line for line in lines if "number_of_executed_units" in line]
    if done.returncode != 0:
        shown = [line for line in lines if "Instrumenting" not in line][-60:]
    print("\n".join(shown), flush=True)
    return int(done.returncode != 0)


def with_atheris(name: str, seconds: float, seed: int | None) -> int:
    import atheris

    # Its types are known only where it is installed.
    instrument: Any = getattr(atheris, "instrument_imports")  # noqa: B009
    with instrument(include=["jobqueue_broadcast"]):
        target = load(name)
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    words = scratch(name).parent / f"{name}.dict"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in DICTIONARY))

    def one_input(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            keep(name, data)
            raise

    arguments = [sys.argv[0], f"-max_total_time={max(1, round(seconds))}", "-max_len=4096",
                 f"-dict={words}", "-print_final_stats=1", "-verbosity=0", "-timeout=20",
                 f"-artifact_prefix={scratch(name).parent}/", *([f"-seed={seed}"] if seed else []),
                 str(scratch(name)), str(folder)]  # fmt: skip
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()
    return 0


def scratch(name: str) -> Path:
    """Where new interesting inputs go: not into the repository."""
    folder = HERE / ".scratch" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


# --- without -------------------------------------------------------------------------------------


def at_random(name: str, seconds: float, seed: int | None) -> int:
    target = load(name)
    rng = random.Random(seed)
    pool = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] or [b""]
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = mutated(rng, rng.choice(pool), pool)
        tried += 1
        try:
            target(data)
        except Exception:  # noqa: BLE001 - whatever it is, it was found
            traceback.print_exc()
            print(f"{name}: failed after {tried} inputs, kept as {keep(name, data)}")
            return 1
    print(f"{name}: {tried} inputs at random, 0 failed")
    return 0


def mutated(rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        until = min(len(data), at + rng.randrange(8))
        piece = rng.choice([
            b"", rng.randbytes(rng.randrange(1, 5)), rng.choice(DICTIONARY), data[at:until] * 2,
            rng.choice(pool)[at : at + 50],
        ])  # fmt: skip
        data = data[:at] + piece + data[until:]
    return data[:8192]


# --- both ----------------------------------------------------------------------------------------


def load(name: str) -> Callable[[bytes], None]:
    # Late, so that atheris has prepared the import by then.
    sys.path.insert(0, str(HERE.parent))
    # What is dropped is logged, thousands of times a second.
    logging.getLogger("jobqueue_broadcast").setLevel(logging.CRITICAL)
    from fuzz.targets import TARGETS

    return TARGETS[name]


def keep(name: str, data: bytes) -> Path:
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
