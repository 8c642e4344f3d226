"""What the scripts of this folder share: models of random weights, `fathom bench` as a function."""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Bench:
    def __init__(self, build):
        self.build = pathlib.Path(build)
        self.models = ROOT / "build" / "bench-models"

    def model(self, preset, type):
        """The file, written first where it is missing."""
        path = self.models / f"{preset}-{type}.gguf"
        if not path.exists():
            self.models.mkdir(parents=True, exist_ok=True)
            print(f"writing {path} (random weights)", file=sys.stderr)
            subprocess.run([self.build / "make_model", preset, path, "--type", type],
                           check=True, stdout=sys.stderr)
        return path

    def lines(self, *arguments):
        """The objects that `fathom bench ... --json` prints."""
        command = [str(self.build / "fathom"), "bench", *map(str, arguments), "--json", "-q"]
        print(" ".join(command), file=sys.stderr)
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return [json.loads(line) for line in text.splitlines()]
