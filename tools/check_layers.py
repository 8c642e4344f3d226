"""Fails when a file includes upwards. usage: check_layers.py SOURCE_DIR [BUILD_DIR]

Folders of src/ are layers; a file may include its own folder and the folders named here (the table of docs/map.md).
"""
import pathlib
import re
import sys

ALLOWED = {
    "base": [],
    "tensor": ["base"],
    "kernels": ["tensor", "base"],
    "formats": ["tensor", "base"],
    "text": ["formats", "tensor", "base"],
    "model": ["kernels", "formats", "tensor", "base"],
    "engine": ["model", "kernels", "tensor", "base"],
    "train": ["engine", "text", "model", "kernels", "formats", "tensor", "base"],
    "cli": ["train", "engine", "text", "model", "kernels", "formats", "tensor", "base"],
}
# Libraries with heavy headers live in one file each.
ONLY_IN = {"CLI/": "src/cli/commands.cc", "toml++/": "src/train/recipe.cc"}


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    problems = []
    files = 0
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in (".h", ".cc"):
            continue
        files += 1
        relative = path.relative_to(root).as_posix()
        layer = relative.split("/")[1]
        if layer not in ALLOWED:
            problems.append(f"{relative}: folder {layer} is not a layer (tools/check_layers.py)")
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            quoted = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if quoted:
                target = quoted.group(1).split("/")[0]
                if target != layer and target not in ALLOWED[layer]:
                    problems.append(f"{relative}:{number}: {layer} may not include {quoted.group(1)}")
            angled = re.match(r"\s*#\s*include\s+<([^>]+)>", line)
            if angled:
                for prefix, home in ONLY_IN.items():
                    if angled.group(1).startswith(prefix) and relative != home:
                        problems.append(f"{relative}:{number}: <{angled.group(1)}> belongs in {home} only")
    print("\n".join(problems) if problems else f"{files} files include downwards only")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
