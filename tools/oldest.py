"""Print the oldest allowed run-time dependencies, pinned, from the floors in pyproject.toml.

For example `websockets==15.0 msgspec==0.20`, ready to be given to `pip install`.
"""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def pin(requirement: str) -> str:
    """Turn `name>=floor` into `name==floor`."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9][0-9.]*)", requirement)
    if match is None:
        raise SystemExit(f"expected 'name>=version' in {PYPROJECT.name}, got {requirement!r}")
    return f"{match[1]}=={match[2]}"


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    print(*map(pin, project["dependencies"]))


if __name__ == "__main__":
    main()
