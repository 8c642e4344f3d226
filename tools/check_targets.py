"""Looks for code that could run on a CPU it was not compiled for: usage check_targets.py SOURCE_DIR BUILD_DIR

*.simd.cc files are compiled once per instruction set. A symbol that such an object shares with the rest of the program (an inline
function of the standard library, say) may be the copy that the linker keeps for everybody. So every symbol an
AVX2, AVX-VNNI or AVX-512 object defines for the outside must lie in namespace fathom::avx2, avxvnni or avx512
(src/kernels/simd-inl.h).
"""

import pathlib
import platform
import re
import subprocess
import sys

# Lower-case types are local to the object, U is undefined. DW.ref.* is data, the same on every target.
SHARED_TYPES = set("ABCDGRSTVWu")
HARMLESS = re.compile(r"^DW\.ref\.")


def cache_entry(build, name):
    match = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.M)
    return match.group(1) if match else ""


def shared_symbols(nm, target, path):
    """Names defined in the object at `path` that other objects can see, outside of the target's namespace."""
    own = re.compile(rf"^_Z(GV|T[ISTV])?Z?NK?6fathom{len(target)}{target}")
    output = subprocess.run([nm, path], check=True, capture_output=True, text=True).stdout
    for line in output.splitlines():
        kind, name = line.split()[-2:]
        if kind in SHARED_TYPES and not own.match(name) and not HARMLESS.match(name):
            yield name


def main():
    build = pathlib.Path(sys.argv[2])
    for option in ("FATHOM_SANITIZE", "FATHOM_COVERAGE"):
        if cache_entry(build, option) not in ("", "OFF"):
            print(f"check_targets: skipped: {option} adds symbols of its own")
            return 0
    nm = cache_entry(build, "CMAKE_NM") or "nm"
    targets = ("avx2", "avxvnni", "avx512")
    objects = [(target, path) for target in targets
               for path in sorted(build.glob(f"CMakeFiles/fathom_*_{target}.dir/**/*.o"))]
    missing = sorted(set(targets) - {target for target, _ in objects})
    x86 = platform.machine() in ("x86_64", "AMD64")
    if missing and (x86 or not objects):
        print(f"check_targets: {build}: found no objects for {', '.join(missing)}" +
              (", expected some on this machine (is it built?)" if x86 else ": none are made for this processor"))
        return 1 if x86 else 0
    found = [(path, name) for target, path in objects for name in shared_symbols(nm, target, path)]
    for path, name in found:
        print(f"{path.relative_to(build)}: symbol {name}: outside of its target's namespace (another CPU could get this copy)")
    print(f"check_targets: {len(objects)} objects, {len(found)} symbols outside of their namespace")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
