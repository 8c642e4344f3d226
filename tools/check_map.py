"""Fails when docs/map.md misses a source file or names one that is gone. usage: check_map.py SOURCE_DIR [BUILD_DIR]

A line of the map is "- `path/name.{h,cc}` what it is for"; braces list the endings.
"""
import itertools
import pathlib
import re
import sys

FOLDERS = ["src", "tests", "bench", "tools", "scripts", "cmake"]
SOURCES = {".h", ".cc", ".py", ".mjs", ".sh", ".cmake", ""}
DATA = ("tests/golden/", "tests/fuzz/corpus/")


def expand(path: str) -> list[str]:
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [[p] if i % 2 == 0 else p.split(",") for i, p in enumerate(parts)]
    return ["".join(c) for c in itertools.product(*choices)]


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    mapped = set()
    for line in (root / "docs/map.md").read_text(encoding="utf-8").splitlines():
        match = re.match(r"- `([^`]+)` \S", line)
        if match:
            mapped.update(expand(match.group(1)))
    present = set()
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            relative = path.relative_to(root).as_posix()
            if path.is_file() and path.suffix in SOURCES and not relative.startswith(DATA) and "__pycache__" not in relative:
                present.add(relative)
    problems = [f"docs/map.md: {p} is missing" for p in sorted(present - mapped)]
    problems += [f"docs/map.md: {p} is not in the tree" for p in sorted(mapped - present)]
    print("\n".join(problems) if problems else f"{len(present)} files, each on the map")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
