"""Stands for `adb` and the phone behind it: what a phone says is replayed, its shell scripts are really run.

The scenario is `phone.json` beside this file: `devices` (text of `adb devices`) and `fault` (what goes wrong).
Every call is logged in `calls`. The phone's folders are a folder of the test's; its services are small scripts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).resolve().parent
SCENARIO = json.loads((HERE / "phone.json").read_text())
STORAGE = HERE / "storage"


def main() -> None:
    words = sys.argv[1:]
    with (HERE / "calls").open("a") as f:
        f.write(json.dumps(words) + "\n")
    if words == ["devices"]:
        sys.stdout.write(SCENARIO["devices"])
        return
    assert words[0] == "-s"
    serial, verb, *rest = words[1:]
    fault = SCENARIO.get("fault", {})
    if serial not in SCENARIO["devices"] or (fault.get("gone") and verb in fault["gone"]):
        sys.exit(f"adb: device '{serial}' not found")
    if verb == "push":
        source, place = rest
        if fault.get("push"):
            sys.exit(f"adb: error: failed to copy '{source}' to '{place}': remote {fault['push']}")
        target = Path(local(place))
        shutil.copy(source, target)
        if fault.get("corrupt"):
            target.write_bytes(target.read_bytes()[:-1] + b"?")
        print(f"{source}: 1 file pushed, 0 skipped. 61.9 MB/s (91671 bytes in 0.001s)")
        return
    assert verb == "shell" and len(rest) == 1
    environment = os.environ | {"PATH": f"{HERE / 'phone-bin'}:/usr/bin:/bin"}
    sys.exit(subprocess.run(["sh", "-c", local(rest[0])], env=environment).returncode)


def local(text: str) -> str:
    """A script or path of the phone as one of the test's folder."""
    text = text.replace("/data/local/tmp", str(STORAGE)).replace("/proc/meminfo", str(HERE / "meminfo"))
    return text.replace("/sys/devices/system/cpu", str(HERE / "cpu"))


if __name__ == "__main__":
    main()
