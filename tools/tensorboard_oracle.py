"""Reads a run's event files with the tensorboard package and compares every scalar with metrics.jsonl.

usage: tensorboard_oracle.py RUN      (in an environment with `pip install tensorboard`)
       tensorboard_oracle.py --golden  prints the records of tests/train/metrics_test.cc, in hex, as tensorboard writes them
"""
import json
import pathlib
import struct
import sys


def expected(run: pathlib.Path) -> dict[str, dict[int, float]]:
    scalars: dict[str, dict[int, float]] = {}

    def add(tag: str, step: int, value) -> None:
        if value is not None:
            scalars.setdefault(tag, {})[step] = struct.unpack("f", struct.pack("f", value))[0]

    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["kind"] == "step":
            for name in ["loss", "cross_entropy", "mtp_cross_entropy", "balance_loss", "lr", "gradient_norm", "seconds",
                         "tokens_per_second", "flops_per_second"]:
                add(f"train/{name}", line["step"], line[name])
            add("train/memory_bytes", line["step"], line["memory_bytes"] or None)
            for layer, load in enumerate(line.get("expert_load", [])):
                add(f"expert_load/layer_{layer:02d}", line["step"], load)
        elif line["kind"] == "evaluation":
            add("validation/loss", line["step"], line["validation_loss"])
            add("validation/bits_per_byte", line["step"], line["bits_per_byte"])
            for task in line["tasks"]:
                add(f"{task['task']}/greedy", line["step"], task["greedy"])
                for k, share in task["pass_at"]:
                    add(f"{task['task']}/pass_at_{k}", line["step"], share)
    return scalars


def compare(run: pathlib.Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    found: dict[str, dict[int, float]] = {}
    repeated = 0
    for tag in reader.Tags()["scalars"]:
        events = [(e.step, e.value) for e in reader.Scalars(tag)]
        repeated += len(events) - len(dict(events))
        found[tag] = dict(events)
    wanted = expected(run)
    count = sum(len(steps) for steps in wanted.values())
    equal = found == wanted
    print(f"{run}: {len(wanted)} tags, {count} scalars, {repeated} repeated: {'equal' if equal else 'DIFFERENT'}")
    if not equal:
        for tag in sorted(set(found) | set(wanted)):
            if found.get(tag) != wanted.get(tag):
                print(f"  {tag}: {len(found.get(tag, {}))} found, {len(wanted.get(tag, {}))} expected")
    return 0 if equal and repeated == 0 else 1


def golden() -> int:
    import io

    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [summary_pb2.Summary.Value(tag="train/loss", simple_value=2.5),
              summary_pb2.Summary.Value(tag="train/lr", simple_value=0.001)]
    for event in [event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2"),
                  event_pb2.Event(wall_time=1700000000.25, step=301, session_log=event_pb2.SessionLog(status=1)),
                  event_pb2.Event(wall_time=1700000001.5, step=300, summary=summary_pb2.Summary(value=values))]:
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        print(buffer.getvalue().hex())
    return 0


if __name__ == "__main__":
    sys.exit(golden() if sys.argv[1] == "--golden" else compare(pathlib.Path(sys.argv[1])))
